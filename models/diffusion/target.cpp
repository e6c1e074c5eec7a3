#include "models/diffusion/target.h"

#include <algorithm>
#include <cmath>

#include "models/diffusion/names.h"
#include "runtime/core/error.h"

namespace rz::models::diffusion {

namespace {
constexpr Names<Target, 6> kTargets = {
    {{Target::x0, "x0"}, {Target::eps, "eps"}, {Target::v, "v"}, {Target::flow, "flow"}, {Target::score, "score"}, {Target::edm, "edm"}}};
constexpr Names<NoiseInput, 7> kNoiseInputs = {{{NoiseInput::index, "index"},
                                                {NoiseInput::time, "time"},
                                                {NoiseInput::time_999, "time_999"},
                                                {NoiseInput::time_1000, "time_1000"},
                                                {NoiseInput::quarter_log_sigma, "quarter_log_sigma"},
                                                {NoiseInput::log_half_sigma, "log_half_sigma"},
                                                {NoiseInput::sigma, "sigma"}}};
}  // namespace

const char* name(Target target) { return name_in(kTargets, target); }
Target parse_target(std::string_view text) { return parse_in(kTargets, "target", text); }
const char* name(NoiseInput input) { return name_in(kNoiseInputs, input); }
NoiseInput parse_noise_input(std::string_view text) { return parse_in(kNoiseInputs, "noise input", text); }

double noise_input(NoiseInput input, const Path& path, double t) {
  switch (input) {
    case NoiseInput::index: {
      RZ_CONFIG_CHECK(path.steps() > 0, "path {} is continuous: its times have no index; choose another noise input", path.name());
      const double index = t * static_cast<double>(path.steps()) - 1;
      const double nearest = std::nearbyint(index);
      return std::max(0.0, std::abs(index - nearest) < 1e-9 ? nearest : index);
    }
    case NoiseInput::time:
      return t;
    case NoiseInput::time_999:
      return 999 * t;
    case NoiseInput::time_1000:
      return 1000 * t;
    case NoiseInput::quarter_log_sigma:
      return 0.25 * std::log(path.at(t).sigma());
    case NoiseInput::log_half_sigma:
      return std::log(0.5 * path.at(t).sigma());
    case NoiseInput::sigma:
      return path.at(t).sigma();
  }
  return t;
}

Mixture mixture(Target target, const Coef& c, double sigma_data) {
  switch (target) {
    case Target::x0:
      return {1, 0};
    case Target::eps:
      return {0, 1};
    case Target::v:
      return {-c.s, c.a};
    case Target::flow:
      return {c.da, c.ds};
    case Target::score:
      return {0, -1 / c.s};
    case Target::edm: {
      const double r = std::hypot(c.s, c.a * sigma_data);
      return {c.s / (sigma_data * r), -c.a * sigma_data / r};
    }
  }
  return {};
}

Precond precond(const Parametrization& p, const Path& path, double t) {
  const Coef c = path.at(t);
  Precond out;
  if (p.target != Target::x0) {
    const Mixture m = mixture(p.target, c, p.sigma_data);
    const double determinant = c.a * m.eps_factor - c.s * m.x0_factor;
    RZ_CONFIG_CHECK(
        std::isfinite(determinant) && determinant != 0,
        "target {} does not determine the data at t = {} of path {} (a = {}, s = {}); use x0, v, flow or edm there, or another path",
        name(p.target), t, path.name(), c.a, c.s);
    out.c_skip = m.eps_factor / determinant;
    out.c_out = -c.s / determinant;
  }
  if (p.scale_input || p.target == Target::edm) out.c_in = 1 / std::hypot(c.s, c.a * p.sigma_data);
  out.c_noise = noise_input(p.noise, path, t);
  RZ_CONFIG_CHECK(std::isfinite(out.c_noise), "noise input {} is not finite at t = {} of path {}; choose time, or start below it",
                  name(p.noise), t, path.name());
  return out;
}

}  // namespace rz::models::diffusion
