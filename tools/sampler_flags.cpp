#include "tools/sampler_flags.h"

#include "runtime/core/error.h"

namespace rz::tools {

namespace diffusion = models::diffusion;

void add_sampler_flags(CLI::App& c, SamplerFlags& f, const std::string& times_flag) {
  c.add_option("--steps", f.steps, "steps of the sampler; default: the preset's");
  c.add_option(times_flag, f.times,
                "times that are visited: leading, trailing, linspace, quad (discrete paths), karras[:SMIN,SMAX[,RHO]], shifted:K");
  c.add_option("--eta", f.eta, "noise of a first-order step: 0 DDIM (the probability flow), 1 DDPM");
  c.add_option("--order", f.order, "1: first-order steps; 2: Heun's method");
  c.add_option("--variance", f.variance, "of a step with eta 1: fixed_small (the posterior's) or fixed_large (the forward step's)");
  c.add_option("--method", f.method,
                "euler, heun, midpoint, rk4, euler_maruyama, reverse_diffusion, annealed_langevin; default: the preset's");
  c.add_option("--coordinates", f.coordinates,
                "of heun, midpoint and rk4: sigma (x / a over sigma) or time (x over t); default: the preset's");
  c.add_option("--churn", f.churn, "EDM's S_churn: noise added before deterministic steps");
  c.add_option("--churn-min", f.churn_low, "smallest sigma that churns");
  c.add_option("--churn-max", f.churn_high, "largest sigma that churns");
  c.add_option("--churn-noise", f.churn_noise, "EDM's S_noise");
  c.add_option("--corrector-steps", f.corrector_steps, "Langevin steps before each step of euler_maruyama or reverse_diffusion");
  c.add_option("--snr", f.snr, "signal-to-noise ratio of the corrector");
  c.add_option("--langevin-steps", f.langevin_steps, "steps at each level of annealed_langevin");
  c.add_option("--langevin-step", f.langevin_step, "their size at the lowest level");
  c.add_flag("--denoise", f.denoise, "end annealed_langevin with the denoiser");
}

diffusion::SamplerConfig sampler_config(const SamplerFlags& f, const diffusion::Process& process, bool learned_variance) {
  diffusion::SamplerConfig c = process.sampler;
  if (!f.method.empty()) c.method = diffusion::parse_method(f.method);
  if (f.order) {
    RZ_CONFIG_CHECK(*f.order == 1 || *f.order == 2, "order {}; valid: 1, 2 (and --method midpoint or rk4)", *f.order);
    RZ_CONFIG_CHECK(f.method.empty(), "give either --order or --method");
    c.method = *f.order == 1 ? diffusion::Method::euler : diffusion::Method::heun;
  } else if (f.method.empty() && (f.eta || !f.variance.empty()) && !diffusion::is_deterministic(c.method)) {
    c.method = diffusion::Method::euler;  // the step that has an eta
  }
  if (c.method != process.sampler.method) {
    // What belongs to the preset's own method does not go along with another.
    c.eta = c.method == diffusion::Method::euler && process.sampler.method == diffusion::Method::euler ? c.eta : 0;
    c.variance = diffusion::Variance::fixed_small;
    if (c.method != diffusion::Method::euler_maruyama && c.method != diffusion::Method::reverse_diffusion) c.corrector.steps = 0;
    if (c.method != diffusion::Method::annealed_langevin) c.start_low = c.start_high = 0;
  }
  if (!learned_variance && c.variance == diffusion::Variance::learned) c.variance = diffusion::Variance::fixed_small;
  if (!f.variance.empty()) c.variance = diffusion::parse_variance(f.variance);
  if (f.eta)
    c.eta = *f.eta;
  else if (c.variance == diffusion::Variance::fixed_large)
    c.eta = 1;
  if (!f.coordinates.empty()) c.coordinates = diffusion::parse_coordinates(f.coordinates);
  c.churn.amount = f.churn.value_or(c.churn.amount);
  c.churn.low = f.churn_low.value_or(c.churn.low);
  c.churn.high = f.churn_high.value_or(c.churn.high);
  c.churn.noise = f.churn_noise.value_or(c.churn.noise);
  c.corrector.steps = f.corrector_steps.value_or(c.corrector.steps);
  c.corrector.snr = f.snr.value_or(c.corrector.snr);
  c.langevin.steps = f.langevin_steps.value_or(c.langevin.steps);
  c.langevin.step = f.langevin_step.value_or(c.langevin.step);
  c.langevin.denoise = f.denoise;
  return c;
}

diffusion::GridSpec grid_spec(const SamplerFlags& f, const diffusion::Process& process) {
  return f.times.empty() ? process.grid : diffusion::parse_grid(f.times);
}

}  // namespace rz::tools
