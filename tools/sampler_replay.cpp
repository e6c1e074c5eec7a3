#include "tools/sampler_replay.h"

#include <cmath>
#include <functional>
#include <numbers>
#include <random>

#include "models/diffusion/sampler_core.h"
#include "runtime/autograd/grad_mode.h"
#include "runtime/ops/ops.h"

namespace rz::tools {

namespace {

using namespace models::diffusion;

constexpr int64_t kBatch = 4, kChannels = 3, kRows = 8, kColumns = 8;
constexpr int64_t kElements = kBatch * kChannels * kRows * kColumns;

// 0, 1/768, .. over [3, 8, 8, 4], read as [4, 3, 8, 8]; `reversed`: their deterministic noise.
Tensor counting(bool reversed) {
  std::vector<double> values(kElements);
  for (int64_t b = 0; b < kBatch; ++b)
    for (int64_t i = 0; i < kElements / kBatch; ++i) {
      const int64_t count = i * kBatch + b;
      values[static_cast<size_t>(b * (kElements / kBatch) + i)] =
          static_cast<double>(reversed ? kElements - 1 - count : count) / static_cast<double>(kElements);
    }
  return Tensor::of<double>({kBatch, kChannels, kRows, kColumns}, values, "replayed sample");
}

// torch.randn on a CPU for at least 16 float32 numbers: 24-bit uniforms from a Mersenne twister, then Box-Muller over pairs that
// lie 8 apart in each block of 16.
class TorchNormal {
 public:
  explicit TorchNormal(uint32_t seed) : twister_(seed) {}
  Tensor draw(const Shape& shape) {
    std::vector<double> values(static_cast<size_t>(shape.numel()));
    for (double& v : values) v = static_cast<double>(twister_() & 0xFFFFFFu) * 0x1.0p-24;
    for (size_t block = 0; block + 16 <= values.size(); block += 16)
      for (size_t i = block; i < block + 8; ++i) {
        const double radius = std::sqrt(-2 * std::log(1 - values[i]));
        const double angle = 2 * std::numbers::pi * values[i + 8];
        values[i] = radius * std::cos(angle);
        values[i + 8] = radius * std::sin(angle);
      }
    return Tensor::of<double>(shape, values, "replayed noise");
  }

 private:
  std::mt19937 twister_;
};

struct ReplayWorld {
  using State = Tensor;
  const Denoiser& denoiser;
  TorchNormal normal{0};

  // Qualified: tools::Prediction is what the simulator foretells of a run.
  models::diffusion::Prediction<Tensor> predict(const Tensor& x, double t) const { return denoiser.predict(x, t, {}); }
  Tensor noise(const Tensor& like, uint64_t) { return normal.draw(like.shape()); }
  Tensor settle(Tensor x) const { return x; }
};

struct Loop {
  PathPtr path;
  Parametrization parametrization;
  Grid grid;
  SamplerConfig sampler;
  bool clamp = true;
  bool rederive_eps = false;  // diffusers' DDIM keeps the noise from before clamping
  bool noised = false;        // begin with a sample noised to the grid's first time
  double start_scale = 1;
};

DenoiserPtr denoiser_of(const Loop& loop) {
  const Network model = [](const Tensor& x, const Tensor& t_B, const Conditioning&) {
    const double t = t_B.view_slice(0, 0, 1).item();
    return ops::scale(x, t / (t + 1));
  };
  DenoiserPtr denoiser = std::make_shared<NetworkDenoiser>(model, loop.path, loop.parametrization);
  if (loop.clamp) denoiser = std::make_shared<ClampedDenoiser>(denoiser, loop.path, -1, 1, loop.rederive_eps);
  return denoiser;
}

Tensor start_of(const Loop& loop) {
  const Coef start = loop.path->at(loop.grid.front());
  return loop.noised ? combine(start.a, counting(false), start.s, counting(true)) : scaled(loop.start_scale, counting(false));
}

nlohmann::ordered_json sums(const Tensor& end) {
  double sum = 0;
  for (const double v : end.to_vector<double>()) sum += std::abs(v);
  return {{"sum_abs", sum}, {"mean_abs", sum / static_cast<double>(kElements)}};
}

nlohmann::ordered_json run(const Loop& loop) {
  const autograd::NoGrad no_grad;
  const DenoiserPtr denoiser = denoiser_of(loop);
  ReplayWorld world{*denoiser};
  return sums(SamplerLoop<ReplayWorld>(world, *loop.path, loop.grid, loop.sampler, {}).run(start_of(loop)));
}

// The linear schedule as diffusers holds it, in float32: betas are rounded, products are taken in double and rounded. Their sums
// show it in the fourth decimal.
class Float32Betas final : public Path {
 public:
  explicit Float32Betas(double first) {
    const float low = static_cast<float>(first), high = 0.02f;
    const float step = (high - low) / static_cast<float>(kTimes - 1);
    double product = 1;
    for (int64_t i = 0; i < kTimes; ++i) {
      // torch.linspace counts from the nearer end.
      const float beta = i < kTimes / 2 ? low + step * static_cast<float>(i) : high - step * static_cast<float>(kTimes - 1 - i);
      product *= static_cast<double>(1.0f - beta);
      alpha_bar_.push_back(static_cast<float>(product));
    }
  }
  std::string name() const override { return "linear in float32"; }
  int64_t steps() const override { return kTimes; }
  double t_min() const override { return time(0); }
  double prior_std(double) const override { return 1; }
  // Index -1 is data.
  float alpha_bar(int64_t k) const { return k < 0 ? 1.0f : alpha_bar_.at(static_cast<size_t>(k)); }
  double time(int64_t k) const { return static_cast<double>(k + 1) / kTimes; }
  Coef at(double t) const override {
    const auto ab = static_cast<double>(alpha_bar(static_cast<int64_t>(std::nearbyint(t * kTimes)) - 1));
    return {std::sqrt(ab), std::sqrt(1 - ab), 0, 0};
  }

 private:
  static constexpr int64_t kTimes = 1000;
  std::vector<float> alpha_bar_;
};

std::shared_ptr<Float32Betas> linear_path(double first = 1e-4) { return std::make_shared<Float32Betas>(first); }

Loop ddim(Target target = Target::eps, double beta_first = 1e-4) {
  Loop loop;
  loop.path = linear_path(beta_first);
  loop.parametrization = {target, NoiseInput::index};
  loop.grid = make_grid({.kind = GridKind::leading}, *loop.path, 10);
  return loop;
}

nlohmann::ordered_json run_ddim(Target target) { return run(ddim(target)); }

nlohmann::ordered_json run_ddim_alpha(bool to_one) {
  Loop loop = ddim(Target::eps, 0.01);
  // Without it the last step ends at the first discrete time instead of at the data.
  if (!to_one) loop.grid.back() = loop.path->t_min();
  return run(loop);
}

nlohmann::ordered_json run_ddim_noised() {
  Loop loop = ddim();
  loop.grid.erase(loop.grid.begin(), loop.grid.begin() + 8);
  loop.noised = true;
  return run(loop);
}

// The posterior between discrete times (Ho et al. 2020, equation 7) with every operation rounded to float32, as diffusers computes it. The
// differences of nearly equal numbers, 1 - alpha_bar and 1 - alpha, lose digits: over a thousand steps it shows in the sums' sixth.
Posterior float32_posterior(const Float32Betas& path, int64_t k) {
  const float from = path.alpha_bar(k), to = path.alpha_bar(k - 1);
  const float alpha = from / to;
  const float beta = 1.0f - alpha, noise_from = 1.0f - from, noise_to = 1.0f - to;
  return {std::sqrt(to) * beta / noise_from, std::sqrt(alpha) * noise_to / noise_from, noise_to / noise_from * beta};
}

// The step of eta 1 written as that posterior: with the exact one it is SamplerLoop's. `exact`: to see the difference.
nlohmann::ordered_json run_ddpm(Target target, bool noised, bool exact = false) {
  const autograd::NoGrad no_grad;
  const auto path = linear_path();
  Loop loop;
  loop.path = path;
  loop.parametrization = {target, NoiseInput::index};
  loop.grid = make_grid({.kind = GridKind::leading}, *path, path->steps());
  if (noised) loop.grid.erase(loop.grid.begin(), loop.grid.end() - 3);
  loop.rederive_eps = true;  // the posterior's mean is that of the clamped x0
  loop.noised = noised;
  if (exact) {
    loop.sampler.eta = 1;
    return run(loop);
  }
  const DenoiserPtr denoiser = denoiser_of(loop);
  TorchNormal normal(0);
  Tensor x = start_of(loop);
  for (int64_t k = static_cast<int64_t>(loop.grid.size()) - 2; k >= 0; --k) {
    const Posterior q = float32_posterior(*path, k);
    const Tensor x0 = denoiser->predict(x, path->time(k), {}).x0;
    x = k > 0 ? combine(q.x0_factor, x0, q.x_factor, x, std::sqrt(q.variance), normal.draw(x.shape())) : combine(q.x0_factor, x0, q.x_factor, x);
  }
  return sums(x);
}

nlohmann::ordered_json run_edm_euler() {
  Loop loop;
  loop.path = std::make_shared<EdmIdentity>();
  loop.parametrization = {Target::edm, NoiseInput::quarter_log_sigma};
  loop.grid = make_grid({.kind = GridKind::karras}, *loop.path, 10);
  loop.clamp = false;
  loop.start_scale = std::hypot(80.0, 1.0);
  return run(loop);
}

// The posterior's variance between discrete times, index -1 being data.
nlohmann::ordered_json variances(const std::vector<std::pair<int64_t, int64_t>>& pairs) {
  const auto path = linear_path();
  nlohmann::ordered_json rows = nlohmann::ordered_json::array();
  for (const auto& [from, to] : pairs)
    rows.push_back({{"t", from}, {"next", to}, {"variance", posterior(path->at(path->time(from)), path->at(path->time(to))).variance}});
  return {{"variances", rows}};
}

struct Case {
  const char* name;
  std::function<nlohmann::ordered_json()> run;
};

const std::vector<Case>& cases() {
  static const std::vector<Case> all = {
      {"ddim_no_noise", [] { return run_ddim(Target::eps); }},
      {"ddim_v_prediction", [] { return run_ddim(Target::v); }},
      {"ddim_set_alpha_to_one", [] { return run_ddim_alpha(true); }},
      {"ddim_no_set_alpha_to_one", [] { return run_ddim_alpha(false); }},
      {"ddim_noise", [] { return run_ddim_noised(); }},
      {"ddim_variance",
       [] {
         return variances({{0, 0}, {420, 400}, {980, 960}, {487, 486}, {999, 998}});
       }},
      {"ddpm_no_noise", [] { return run_ddpm(Target::eps, false); }},
      {"ddpm_v_prediction", [] { return run_ddpm(Target::v, false); }},
      {"ddpm_noise", [] { return run_ddpm(Target::eps, true); }},
      {"ddpm_no_noise_in_double", [] { return run_ddpm(Target::eps, false, true); }},
      {"ddpm_variance",
       [] {
         return variances({{0, -1}, {487, 486}, {999, 998}});
       }},
      {"edm_euler_no_noise", [] { return run_edm_euler(); }},
  };
  return all;
}

// diffusers' own names, shortened to ours.
std::string short_name(std::string name) {
  for (const char* part : {"test_", "full_loop_", "with_"})
    for (size_t at; (at = name.find(part)) != std::string::npos;) name.erase(at, std::string_view(part).size());
  const bool bare = name == "ddim" || name == "ddpm" || name == "edm_euler";
  return bare ? fmt::format("{}_no_noise", name) : name;
}

}  // namespace

std::vector<std::string> replay_cases() {
  std::vector<std::string> names;
  for (const Case& c : cases()) names.emplace_back(c.name);
  return names;
}

nlohmann::ordered_json replay_json(const std::string& name) {
  for (const Case& c : cases()) {
    if (short_name(name) != c.name) continue;
    nlohmann::ordered_json json = {{"replay", "diffusers"}, {"case", c.name}};
    json.update(c.run());
    return json;
  }
  throw ConfigError(fmt::format("unknown case '{}'; valid: {}", name, fmt::join(replay_cases(), ", ")));
}

}  // namespace rz::tools
