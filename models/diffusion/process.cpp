#include "models/diffusion/process.h"

#include <algorithm>

#include "models/diffusion/names.h"

namespace rz::models::diffusion {

namespace {

constexpr Names<Weight, 4> kWeights = {
    {{Weight::target, "target"}, {Weight::snr, "snr"}, {Weight::x0, "x0"}, {Weight::likelihood, "likelihood"}}};

enum Option : unsigned { kTimesteps = 1, kBetas = 2, kSigmas = 4, kShift = 8 };

Process ddpm(const PresetOptions& o) {
  const int64_t T = o.timesteps.value_or(1000);
  Process p;
  p.path = std::make_shared<DiscreteBetas>("linear", linear_betas(T, o.beta_first.value_or(1e-4), o.beta_last.value_or(0.02)));
  p.parametrization = {Target::eps, NoiseInput::index, o.sigma_data, false};
  p.times = std::make_shared<UniformIndex>(T);
  p.sampler.eta = 1;
  p.grid.kind = GridKind::leading;
  p.steps = T;
  return p;
}

Process ddim(const PresetOptions& o) {
  Process p = ddpm(o);
  p.sampler.eta = 0;
  p.steps = std::min<int64_t>(50, p.steps);
  return p;
}

Process iddpm(const PresetOptions& o) {
  const int64_t T = o.timesteps.value_or(1000);
  Process p;
  p.path = std::make_shared<DiscreteBetas>("cosine", cosine_betas(T));
  p.parametrization = {Target::eps, NoiseInput::index, o.sigma_data, false};
  p.times = std::make_shared<UniformIndex>(T);
  p.vlb = VlbTerm{static_cast<double>(T) / 1000, false};
  p.sampler.eta = 1;
  p.sampler.variance = Variance::learned;
  p.grid.kind = GridKind::linspace;
  p.steps = T;
  return p;
}

Process ncsn(const PresetOptions& o) {
  const int64_t levels = o.timesteps.value_or(10);
  Process p;
  p.path = std::make_shared<VeGeometric>(o.sigma_min.value_or(0.01), o.sigma_max.value_or(1), levels);
  p.parametrization = {Target::score, NoiseInput::index, o.sigma_data, false};
  p.times = std::make_shared<UniformIndex>(levels);
  p.weight = Weight::snr;
  p.sampler.method = Method::annealed_langevin;
  p.sampler.start_high = 1;
  p.steps = levels;
  return p;
}

Process vp_sde(const PresetOptions& o, bool sub) {
  Process p;
  p.path = std::make_shared<VpLinear>(o.beta_first.value_or(0.1), o.beta_last.value_or(20), sub);
  p.parametrization = {Target::eps, NoiseInput::time_999, o.sigma_data, false};
  p.times = std::make_shared<UniformTime>(1e-5, 1);
  p.sampler.method = Method::euler_maruyama;
  p.steps = 1000;
  return p;
}

Process ve_sde(const PresetOptions& o) {
  Process p;
  p.path = std::make_shared<VeGeometric>(o.sigma_min.value_or(0.01), o.sigma_max.value_or(50));
  p.parametrization = {Target::eps, NoiseInput::log_half_sigma, o.sigma_data, false};
  p.times = std::make_shared<UniformTime>(1e-5, 1);
  p.sampler.method = Method::reverse_diffusion;
  p.sampler.corrector.steps = 1;
  p.steps = 1000;
  return p;
}

Process edm(const PresetOptions& o) {
  Process p;
  p.path = std::make_shared<EdmIdentity>(o.sigma_min.value_or(0.002), o.sigma_max.value_or(80));
  p.parametrization = {Target::edm, NoiseInput::quarter_log_sigma, o.sigma_data, true};
  p.times = std::make_shared<LogNormalSigma>(p.path);
  p.sampler.method = Method::heun;
  p.grid.kind = GridKind::karras;
  p.steps = 18;
  return p;
}

Process straight_lines(NoiseInput noise, std::shared_ptr<TimeDist> times, double sigma_data) {
  Process p;
  p.path = std::make_shared<RectFlow>();
  p.parametrization = {Target::flow, noise, sigma_data, false};
  p.times = std::move(times);
  p.sampler.coordinates = Coordinates::time;
  p.steps = 50;
  return p;
}

Process flow(const PresetOptions& o) { return straight_lines(NoiseInput::time, std::make_shared<UniformTime>(), o.sigma_data); }

Process rectified_flow(const PresetOptions& o) {
  return straight_lines(NoiseInput::time_999, std::make_shared<UniformTime>(1e-3, 1), o.sigma_data);
}

Process sd3_flow(const PresetOptions& o) {
  Process p = straight_lines(NoiseInput::time_1000, std::make_shared<LogitNormalTime>(), o.sigma_data);
  p.grid = {.kind = GridKind::shifted, .shift = o.shift.value_or(3)};
  p.steps = 28;
  return p;
}

struct Preset {
  const char* name;
  Process (*make)(const PresetOptions&);
  unsigned options;  // those it reads
};
const Preset kPresets[] = {
    {"ddpm", ddpm, kTimesteps | kBetas},
    {"ddim", ddim, kTimesteps | kBetas},
    {"iddpm", iddpm, kTimesteps},
    {"ncsn", ncsn, kTimesteps | kSigmas},
    {"vp_sde", [](const PresetOptions& o) { return vp_sde(o, false); }, kBetas},
    {"subvp_sde", [](const PresetOptions& o) { return vp_sde(o, true); }, kBetas},
    {"ve_sde", ve_sde, kSigmas},
    {"edm", edm, kSigmas},
    {"flow", flow, 0},
    {"rectified_flow", rectified_flow, 0},
    {"sd3_flow", sd3_flow, kShift},
};

}  // namespace

const char* name(Weight weight) { return name_in(kWeights, weight); }
Weight parse_weight(std::string_view text) { return parse_in(kWeights, "loss weight", text); }

const std::vector<std::string>& preset_names() {
  static const std::vector<std::string> names = [] {
    std::vector<std::string> out;
    for (const Preset& p : kPresets) out.emplace_back(p.name);
    return out;
  }();
  return names;
}

Process make_preset(std::string_view preset, const PresetOptions& options) {
  for (const Preset& row : kPresets) {
    if (preset != row.name) continue;
    const auto refuse = [&](bool given, unsigned option, const char* what) {
      RZ_CONFIG_CHECK(!given || (row.options & option) != 0, "preset {} has no {}", preset, what);
    };
    refuse(options.timesteps.has_value(), kTimesteps, "number of timesteps: its path is continuous");
    refuse(options.beta_first || options.beta_last, kBetas, "range of betas");
    refuse(options.sigma_min || options.sigma_max, kSigmas, "range of sigmas");
    refuse(options.shift.has_value(), kShift, "shift of times");
    RZ_CONFIG_CHECK(options.sigma_data > 0, "sigma_data is the standard deviation of the data and positive, not {}", options.sigma_data);
    Process p = row.make(options);
    p.preset = row.name;
    return p;
  }
  throw ConfigError(fmt::format("unknown preset '{}'; valid: {}", preset, fmt::join(preset_names(), ", ")));
}

}  // namespace rz::models::diffusion
