#include "models/diffusion/reflow.h"

#include "models/diffusion/state.h"
#include "runtime/autograd/grad_mode.h"
#include "runtime/ops/ops.h"

namespace rz::models::diffusion {

void check_path_of_pairs(const Path& path) {
  const Coef start = path.at(1);
  RZ_CONFIG_CHECK(start.a == 0 && start.s == 1, "reflow pairs noise at t = 1 with samples, and path {} begins at t = 1 with a = {}, s = {}; use a flow",
                  path.name(), start.a, start.s);
}

ReflowPairs reflow_pairs(const Denoiser& denoiser, const Process& process, const Grid& grid, const Shape& shape,
                         const Conditioning& conditioning, const SampleRows& rows) {
  check_path_of_pairs(*process.path);
  RZ_CONFIG_CHECK(grid.front() == 1, "reflow pairs noise at t = 1 with samples, and this grid begins at t = {}", grid.front());
  RZ_CONFIG_CHECK(is_deterministic(process.sampler.method) && process.sampler.eta == 0 && process.sampler.churn.amount == 0,
                  "reflow pairs need a deterministic sampler, not {} with eta {} and churn {}", name(process.sampler.method),
                  process.sampler.eta, process.sampler.churn.amount);
  const Tensor noise = start_state(process.sampler, *process.path, grid, shape, rows);
  return {noise, sample(denoiser, *process.path, grid, process.sampler, noise, conditioning, rows)};
}

Process one_step_distillation(Process process) {
  process.times = std::make_shared<FixedTime>(1);
  process.vlb.reset();
  process.steps = 1;
  process.grid = {.kind = GridKind::trailing};
  process.sampler.method = Method::euler;
  return process;
}

std::vector<double> straightness(const Denoiser& denoiser, const Path& path, const Grid& grid, const Tensor& noise,
                                 const Conditioning& conditioning) {
  RZ_CHECK(grid.size() >= 2 && grid.front() == 1, "straightness is measured from t = 1 along a grid of at least two times");
  const autograd::NoGrad no_grad;
  Tensor x = noise;
  std::vector<Tensor> velocities;
  for (size_t i = 0; i + 1 < grid.size(); ++i) {
    const Coef c = path.at(grid[i]);
    const Tensor x0 = denoiser.predict(x, grid[i], conditioning).x0;
    const Tensor eps = combine(1 / c.s, x, -c.a / c.s, x0);
    velocities.push_back(combine(c.da, x0, c.ds, eps));
    x = combine(1, x, grid[i + 1] - grid[i], velocities.back());
  }
  const Tensor chord = scaled(1 / (grid.front() - grid.back()), ops::sub(noise, x));
  std::vector<double> out(static_cast<size_t>(noise.size(0)), 0.0);
  for (size_t i = 0; i < velocities.size(); ++i) {
    const auto squares = mean_per_sample(ops::square(ops::sub(chord, velocities[i]))).to_vector<double>();
    for (size_t b = 0; b < out.size(); ++b) out[b] += (grid[i] - grid[i + 1]) * squares[b];
  }
  return out;
}

}  // namespace rz::models::diffusion
