// Samplers against exact mathematics: closed-form worlds, step identities, written-out recursions, convergence orders, and the same
// samples for any split of a batch.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "models/diffusion/moments.h"
#include "models/diffusion/process.h"
#include "models/diffusion/state.h"
#include "models/diffusion/unet.h"
#include "runtime/core/random.h"
#include "runtime/ops/ops.h"
#include "tests/ops/compare.h"
#include "tests/support/config_error.h"

namespace rz::models::diffusion {
namespace {

using ::testing::HasSubstr;

using test::config_error;
using test::largest_difference;

constexpr GaussianWorld kWorld{0.25, 0.6};

Moments output(const Process& p, const Grid& grid, const SamplerConfig& sampler, const GaussianWorld& world = kWorld) {
  return sampler_moments(world, *p.path, grid, sampler).back();
}
Moments output(const Process& p, const GaussianWorld& world = kWorld) {
  return output(p, make_grid(p.grid, *p.path, p.steps), p.sampler, world);
}

Process preset(const char* name, int64_t steps) {
  Process p = make_preset(name);
  p.steps = steps;
  return p;
}

TEST(DiffusionWorld, PublishedTable) {
  const struct {
    Process process;
    double mean, std;
  } rows[] = {{preset("ddpm", 1000), .249996367659, .596016668383},
              {preset("ddim", 10), .248083124647, .466418123118},
              {preset("edm", 18), .248026995782, .631361349758},
              {preset("rectified_flow", 10), .25, .521798979306}};
  for (const auto& row : rows) {
    const Moments m = output(row.process);
    EXPECT_NEAR(m.mean, row.mean, 1e-12) << row.process.preset;
    EXPECT_NEAR(m.std, row.std, 1e-12) << row.process.preset;
  }
}

// The moments are those of the tensors that the same sampler makes of the same world: every preset, with few steps.
TEST(DiffusionWorld, MomentsAreThoseOfSamples) {
  const Shape shape{8, 3000};
  for (const std::string& name : preset_names()) {
    Process p = make_preset(name);
    if (name != "ncsn") p.steps = 12;
    p.sampler.langevin.steps = 10;
    if (p.sampler.variance == Variance::learned) p.sampler.variance = Variance::fixed_large;
    const Grid grid = make_grid(p.grid, *p.path, p.steps);
    const Moments exact = output(p, grid, p.sampler);
    const GaussianDenoiser denoiser(p.path, kWorld.mean, kWorld.std);
    const SampleRows rows{3, 0};
    const auto x =
        sample(denoiser, *p.path, grid, p.sampler, start_state(p.sampler, *p.path, grid, shape, rows), {}, rows).to_vector<double>();
    double mean = 0, square = 0;
    for (const double v : x) mean += v / static_cast<double>(x.size());
    for (const double v : x) square += (v - mean) * (v - mean) / static_cast<double>(x.size());
    const double n = static_cast<double>(x.size());
    EXPECT_NEAR(mean, exact.mean, 5 * exact.std / std::sqrt(n)) << name;
    EXPECT_NEAR(std::sqrt(square), exact.std, 5 * exact.std / std::sqrt(2 * n)) << name;
  }
}

// A mixture of seven Gaussians in three dimensions.
std::vector<Component> seven_gaussians() {
  const Random random(5, "mixture");
  std::vector<Component> components;
  for (uint64_t k = 0; k < 7; ++k) {
    Component c;
    c.weight = 0.2 + random.uniform64(8 * k);
    c.std = 0.1 + 0.3 * random.uniform64(8 * k + 1);
    for (uint64_t i = 0; i < 3; ++i) c.mean.push_back(2 * random.uniform64(8 * k + 2 + i) - 1);
    components.push_back(c);
  }
  return components;
}

// Where a mixture's sampler starts at sigma 20: x = a y on each path.
TEST(DiffusionStep, OneStepOnEveryPath) {
  const auto components = seven_gaussians();
  const std::vector<double> sigmas = {20, 7, 3, 1.4, 0.7, 0.3, 0.1, 0.03, 0};
  const Tensor y = scaled(20, keyed_normal({64, 3}, {1, 0}, "y", 0, DType::f64));
  std::vector<Tensor> ends;
  const std::vector<PathPtr> paths = {std::make_shared<EdmIdentity>(),
                                      std::make_shared<VpLinear>(),
                                      std::make_shared<RectFlow>(),
                                      std::make_shared<Trig>(),
                                      std::make_shared<DiscreteBetas>("cosine", cosine_betas(1000)),
                                      std::make_shared<VpLinear>(0.1, 20, true)};
  for (const PathPtr& path : paths) {
    Grid grid;
    for (const double sigma : sigmas) grid.push_back(path->t_of_sigma(sigma));
    const MixtureDenoiser denoiser(path, components);
    ends.push_back(sample(denoiser, *path, grid, {}, scaled(path->at(grid[0]).a, y), {}, {}));
    EXPECT_LT(largest_difference(ends.front(), ends.back()), 1e-11) << path->name();
  }
  // Euler as EDM writes it, and as a rectified flow does.
  const EdmIdentity edm;
  const RectFlow flow;
  const MixtureDenoiser on_edm(paths[0], components), on_flow(paths[2], components);
  Tensor x = y, z = scaled(1.0 / 21, y);
  for (size_t i = 0; i + 1 < sigmas.size(); ++i) {
    const double s = sigmas[i], next = sigmas[i + 1];
    const Tensor slope = scaled(1 / s, ops::sub(x, on_edm.predict(x, edm.t_of_sigma(s), {}).x0));
    x = combine(1, x, next - s, slope);
    const double t = s / (1 + s), t_next = next / (1 + next);
    const Tensor velocity = scaled(1 / t, ops::sub(z, on_flow.predict(z, t, {}).x0));
    z = combine(1, z, t_next - t, velocity);
  }
  EXPECT_LT(largest_difference(ends.front(), x), 1e-11);
  EXPECT_LT(largest_difference(ends.front(), z), 1e-11);
}

// eta 1 is DDPM's ancestral sampling, 999 steps of it, written out with betas; on a path that explodes it is the ancestral sampling of
// Song et al. 2021, appendix F.
TEST(DiffusionStep, EtaOneIsAncestralSampling) {
  const auto components = seven_gaussians();
  const auto path = std::make_shared<DiscreteBetas>("linear", linear_betas(1000));
  const MixtureDenoiser denoiser(path, components);
  const Grid grid = make_grid({.kind = GridKind::leading}, *path, 1000);
  const SampleRows rows{9, 0};
  SamplerConfig config;
  config.eta = 1;
  const Tensor start = start_state(config, *path, grid, {16, 3}, rows, DType::f64);
  const Tensor end = sample(denoiser, *path, grid, config, start, {}, rows);
  Tensor x = start;
  for (int64_t k = 999; k >= 0; --k) {
    const double beta = path->betas()[static_cast<size_t>(k)], ab = path->alpha_bar(k), before = k > 0 ? path->alpha_bar(k - 1) : 1;
    const Tensor x0 = denoiser.predict(x, path->time(k), {}).x0;
    const Tensor mean = combine(std::sqrt(before) * beta / (1 - ab), x0, std::sqrt(1 - beta) * (1 - before) / (1 - ab), x);
    const Tensor z = keyed_normal(x.shape(), rows, "diffusion:sampler", static_cast<uint64_t>(999 - k) << 20, DType::f64);
    x = k > 0 ? combine(1, mean, std::sqrt(beta * (1 - before) / (1 - ab)), z) : mean;
  }
  EXPECT_LT(largest_difference(end, x), 1e-10);
  // Large variances change the noise and nothing else.
  config.variance = Variance::fixed_large;
  const Grid one = {path->time(500), path->time(499)};
  const Tensor large = sample(denoiser, *path, one, config, start, {}, rows);
  config.variance = Variance::fixed_small;
  const Tensor small = sample(denoiser, *path, one, config, start, {}, rows);
  const double ratio = std::sqrt((1 - path->alpha_bar(500)) / (1 - path->alpha_bar(499)));
  const Tensor z = keyed_normal(start.shape(), rows, "diffusion:sampler", 0, DType::f64);
  EXPECT_LT(largest_difference(large, combine(1, small, (1 - 1 / ratio) * std::sqrt(path->betas()[500]), z)), 1e-13);

  const VeGeometric ve(0.01, 50);
  const double from = ve.at(0.6).s, to = ve.at(0.5).s;
  const Posterior q = posterior(ve.at(0.6), ve.at(0.5));
  EXPECT_NEAR(q.variance, to * to * (from * from - to * to) / (from * from), 1e-12);
  EXPECT_NEAR(q.x0_factor, (from * from - to * to) / (from * from), 1e-14);
}

// The gap between a sampler and the exact probability flow shrinks with the step as its order says. The flow moves a Gaussian along
// straight quantiles: mean and standard deviation go as those of x_t.
TEST(DiffusionOrder, MethodsConvergeAtTheirOrder) {
  const struct {
    Method method;
    double order;
  } methods[] = {{Method::euler, 1}, {Method::heun, 2}, {Method::midpoint, 2}, {Method::rk4, 4}};
  const struct {
    PathPtr path;
    Coordinates coordinates;
    double from, to;
  } setups[] = {{std::make_shared<VpLinear>(), Coordinates::time, 0.9, 0.2},
                {std::make_shared<RectFlow>(), Coordinates::time, 0.95, 0.2},
                {std::make_shared<RectFlow>(), Coordinates::sigma, 0.6, 0.3},
                {std::make_shared<EdmIdentity>(0.002, 2), Coordinates::sigma, 1, 0.2}};
  for (const auto& [path, coordinates, from, to] : setups) {
    for (const auto& [method, order] : methods) {
      const auto error = [&, &path = path, from = from, to = to](int N) {
        Grid grid;
        for (int i = 0; i <= N; ++i) grid.push_back(from + (to - from) * i / N);
        SamplerConfig config;
        config.method = method;
        config.coordinates = coordinates;
        const Moments m = sampler_moments(kWorld, *path, grid, config).back();
        const auto std_at = [&](double t) { return std::hypot(path->at(t).a * kWorld.std, path->at(t).s); };
        return std::abs(m.std - path->prior_std(from) * std_at(to) / std_at(from));
      };
      const double measured = std::log2(error(40) / error(80));
      EXPECT_GE(measured, order - 0.2) << name(method) << " on " << path->name();
      EXPECT_LE(measured, order + 1.2) << name(method) << " on " << path->name();
    }
  }
}

// The stochastic methods, written out for one coordinate of a Gaussian world with mean 0.
TEST(DiffusionMethods, WrittenOut) {
  const double v = kWorld.std * kWorld.std;
  const auto run = [&](const Path& path, const Grid& grid, const SamplerConfig& config, double start_variance,
                       const std::function<double(double variance, double t, double next)>& step) {
    double variance = start_variance;
    for (size_t i = 0; i + 1 < grid.size(); ++i) variance = step(variance, grid[i], grid[i + 1]);
    const Moments m = sampler_moments({0, kWorld.std}, path, grid, config).back();
    EXPECT_NEAR(m.std, std::sqrt(variance), 1e-11) << name(config.method) << " on " << path.name();
    EXPECT_EQ(m.mean, 0);
  };
  const VpLinear vp;
  const VeGeometric ve(0.01, 50);
  const Grid grid = make_grid({.kind = GridKind::linspace}, vp, 40);
  SamplerConfig config;
  config.method = Method::euler_maruyama;
  // dx = [f x - g^2 score] dt + g dw with f = -beta/2, g^2 = beta, score = -x / (a^2 v + s^2)
  run(vp, grid, config, 1, [&](double variance, double t, double next) {
    const double beta = 0.1 + 19.9 * t, dt = t - next, total = std::pow(vp.at(t).a, 2) * v + std::pow(vp.at(t).s, 2);
    const double factor = 1 + 0.5 * beta * dt - beta * dt / total;
    return factor * factor * variance + (next > 0 ? beta * dt : 0);
  });
  config.method = Method::reverse_diffusion;
  // x' = (2 - sqrt(1 - b)) x + b score + sqrt(b) z: Song et al. 2021, equation 45
  run(vp, grid, config, 1, [&](double variance, double t, double next) {
    const double b = 1 - std::pow(vp.at(t).a / vp.at(next).a, 2), total = std::pow(vp.at(t).a, 2) * v + std::pow(vp.at(t).s, 2);
    const double factor = 2 - std::sqrt(1 - b) - b / total;
    return factor * factor * variance + (next > 0 ? b : 0);
  });
  config.corrector = {2, 0.16};
  // Langevin steps with 2 (snr |z| / |score|)^2, |score| = |x| / total; then x' = x + (s^2 - s'^2) (score + ..)
  const Grid ve_grid = make_grid({.kind = GridKind::linspace}, ve, 40);
  run(ve, ve_grid, config, 2500, [&](double variance, double t, double next) {
    const double s2 = std::pow(ve.at(t).s, 2), total = v + s2;
    for (int k = 0; k < 2; ++k) {
      const double size = 2 * 0.16 * 0.16 / (variance / (total * total));
      variance = std::pow(1 - size / total, 2) * variance + 2 * size;
    }
    const double b = s2 - std::pow(ve.at(next).s, 2);
    return std::pow(1 - b / total, 2) * variance + (next > 0 ? b : 0);
  });
  const VeGeometric ncsn(0.01, 1, 10);
  SamplerConfig langevin;
  langevin.method = Method::annealed_langevin;
  run(ncsn, make_grid({.kind = GridKind::linspace}, ncsn, 10), langevin, 1, [&](double variance, double t, double) {
    const double s2 = std::pow(ncsn.at(t).s, 2), size = 2e-5 * s2 / 1e-4;
    for (int k = 0; k < 100; ++k) variance = std::pow(1 - size / (v + s2), 2) * variance + 2 * size;
    return variance;
  });
  // Churn: sigma' = sigma (1 + gamma), then Heun; Karras et al. 2022, algorithm 2.
  const EdmIdentity edm;
  const Grid karras = make_grid({.kind = GridKind::karras}, edm, 24);
  SamplerConfig churn;
  churn.method = Method::heun;
  churn.churn = {40, 0.05, 50, 1.003};
  run(edm, karras, churn, 6400, [&](double variance, double t, double next) {
    double s = edm.at(t).s;
    const double s_next = edm.at(next).s;
    if (s >= 0.05 && s <= 50) {
      const double raised = s * (1 + std::min(40.0 / 24, std::sqrt(2.0) - 1));
      variance += (raised * raised - s * s) * 1.003 * 1.003;
      s = raised;
    }
    const double h = s_next - s, first = s / (v + s * s), euler = 1 + h * first;
    const double factor = s_next == 0 ? euler : 1 + h / 2 * (first + s_next / (v + s_next * s_next) * euler);
    return factor * factor * variance;
  });
}

TEST(DiffusionMethods, EvaluationsAreCounted) {
  const auto count = [](const char* name, int64_t steps) {
    const Process p = make_preset(name);
    return evaluations(p.sampler, *p.path, make_grid(p.grid, *p.path, steps));
  };
  EXPECT_EQ(count("edm", 18), 35);
  EXPECT_EQ(count("ddim", 50), 50);
  EXPECT_EQ(count("ve_sde", 100), 200);
  EXPECT_EQ(count("ncsn", 10), 1000);
}

TEST(DiffusionMethods, HooksSeeEveryStep) {
  const Process p = preset("flow", 5);
  const Grid grid = make_grid(p.grid, *p.path, p.steps);
  const GaussianDenoiser denoiser(p.path, 0.25, 0.6);
  std::vector<double> times;
  const Tensor start = start_state(p.sampler, *p.path, grid, {2, 4}, {});
  Tensor seen;
  const Tensor end = sample(denoiser, *p.path, grid, p.sampler, start, {}, {}, [&](const StepView<Tensor>& view) {
    times.push_back(view.t);
    EXPECT_EQ(view.steps, 5);
    seen = view.x;
    // At t = 1 the best guess is the mean.
    if (view.step == 0) {
      EXPECT_EQ(view.x0.to_vector<float>(), std::vector<float>(8, 0.25f));
    }
  });
  EXPECT_EQ(times, std::vector<double>(grid.begin() + 1, grid.end()));
  EXPECT_EQ(seen.to_vector<float>(), end.to_vector<float>());
}

// What fits no path or no method is refused, with what would fit.
TEST(DiffusionMethods, ImpossiblePairsAreNamed) {
  const auto check = [](const char* preset_name, const std::function<void(SamplerConfig&)>& change) {
    const Process p = make_preset(preset_name);
    SamplerConfig config = p.sampler;
    change(config);
    return config_error([&] { check_sampler(config, *p.path, make_grid(p.grid, *p.path, 10)); });
  };
  EXPECT_THAT(check("flow", [](auto& c) { c.method = Method::euler_maruyama; }), HasSubstr("path rect_flow has none at t = 1"));
  EXPECT_THAT(check("flow", [](auto& c) { c.method = Method::reverse_diffusion; }),
              HasSubstr("method reverse_diffusion follows a diffusion equation"));
  EXPECT_THAT(check("flow", [](auto& c) { c.method = Method::annealed_langevin; }), HasSubstr("path rect_flow has a = 0 at t = 1"));
  EXPECT_THAT(check("ddpm", [](auto& c) { c.eta = 0, c.method = Method::annealed_langevin; }),
              HasSubstr("annealed Langevin keeps the scale"));
  EXPECT_THAT(check("flow", [](auto& c) { c.method = Method::heun, c.coordinates = Coordinates::sigma; }),
              HasSubstr("use coordinates time"));
  EXPECT_THAT(check("edm", [](auto& c) { c.eta = 1; }), HasSubstr("method heun takes no eta"));
  EXPECT_THAT(check("ddim", [](auto& c) { c.variance = Variance::fixed_large; }),
              HasSubstr("variance fixed_large belongs to ancestral sampling"));
  EXPECT_THAT(check("ddim", [](auto& c) { c.eta = 5; }), HasSubstr("eta 5 asks for more noise than the step"));
  EXPECT_THAT(check("ddim", [](auto& c) { c.eta = -1; }), HasSubstr("eta -1 must not be negative"));
  EXPECT_THAT(check("ddpm", [](auto& c) { c.churn.amount = 1; }), HasSubstr("churn belongs to deterministic steps"));
  EXPECT_THAT(check("ddim", [](auto& c) { c.corrector.steps = 1; }), HasSubstr("a corrector belongs to"));
  EXPECT_THAT(config_error([] { check_sampler({}, RectFlow(), {0.5, 0.7, 0}); }), HasSubstr("times descend"));
  EXPECT_THAT(config_error([] { check_sampler({}, RectFlow(), {1}); }), HasSubstr("at least two times"));
  const Process iddpm = make_preset("iddpm");
  EXPECT_THAT(config_error([&] { output(iddpm); }), HasSubstr("use fixed_small or fixed_large"));
  EXPECT_THAT(config_error([] { output(make_preset("ddim"), {0, -1}); }), HasSubstr("standard deviation of at least 0"));
}

// A sample depends on its number alone: any split over ranks and batches gives the same bits, with every method, for a network, too.
TEST(DiffusionRanks, SamplesDependOnTheirNumberAlone) {
  UNetConfig config;
  config.image = {8, 8, 1};
  config.width = 8;
  config.multipliers = {1};
  config.blocks = 1;
  config.classes = 3;
  UNet net(config);
  net.materialize(1);
  for (nn::Parameter* p : net.parameters()) {  // outputs begin as zeros: make them matter
    float* values = p->value.data<float>();
    const Random random(2, p->name);
    for (int64_t i = 0; i < p->numel(); ++i) values[i] += 0.1f * random.normal(static_cast<uint64_t>(i));
  }
  net.train(false);
  const Network network = [&](const Tensor& x, const Tensor& noise, const Conditioning& c) { return net.forward(x, noise, c); };
  for (const std::string& name : preset_names()) {
    Process p = make_preset(name);
    p.vlb.reset();
    p.sampler.langevin.steps = 2;
    if (p.sampler.variance == Variance::learned) p.sampler.variance = Variance::fixed_large;
    const Grid grid = make_grid(p.grid, *p.path, 3);
    DenoiserPtr denoiser = std::make_shared<NetworkDenoiser>(network, p.path, p.parametrization);
    denoiser = std::make_shared<GuidedDenoiser>(denoiser, 1.5, 3);
    denoiser = std::make_shared<ClampedDenoiser>(denoiser, p.path);
    const auto run = [&](const std::vector<int64_t>& parts) {
      std::vector<float> all;
      int64_t first = 0;
      for (const int64_t count : parts) {
        const SampleRows rows{11, static_cast<uint64_t>(first)};
        std::vector<int32_t> labels;
        for (int64_t b = 0; b < count; ++b) labels.push_back(static_cast<int32_t>((first + b) % 3));
        const Tensor x = start_state(p.sampler, *p.path, grid, {count, 8, 8, 1}, rows);
        const auto out = sample(*denoiser, *p.path, grid, p.sampler, x, {Tensor::of<int32_t>({count}, labels)}, rows).to_vector<float>();
        all.insert(all.end(), out.begin(), out.end());
        first += count;
      }
      return all;
    };
    const auto whole = run({5});
    EXPECT_EQ(run({3, 2}), whole) << name;
    EXPECT_EQ(run({1, 1, 2, 1}), whole) << name;
    float spread = 0;
    for (size_t i = 0; i < 64; ++i) spread = std::max(spread, std::abs(whole[i] - whole[64 + i]));
    EXPECT_GT(spread, 0.01f) << name;  // and two samples differ
  }
}

TEST(DiffusionRanks, NoiseIsAFunctionOfSampleAndElement) {
  const auto all = keyed_normal({5, 3, 3}, {7, 100}, "noise", 2).to_vector<float>();
  for (uint64_t b = 0; b < 5; ++b)
    for (uint64_t i = 0; i < 9; ++i) EXPECT_EQ(all[9 * b + i], Random(7, "noise", 2, 100 + b).normal(i));
  const auto big = [](int threads) {
    RankContextScope scope(RankContext::make(0, threads));
    return keyed_normal({3, 5001}, {7, 0}, "noise", 0).to_vector<float>();
  };
  EXPECT_EQ(big(3), big(1));
}

TEST(DiffusionRanks, InterpolatedStartsKeepTheirNorm) {
  const Tensor x = keyed_normal({2, 500}, {1, 0}, "x", 0), y = keyed_normal({2, 500}, {1, 0}, "y", 0);
  EXPECT_LT(largest_difference(interpolate_starts(x, y, 0), x), 1e-6);
  EXPECT_LT(largest_difference(interpolate_starts(x, y, 1), y), 1e-6);
  for (const double square : mean_per_sample(ops::square(interpolate_starts(x, y, 0.5))).to_vector<double>()) EXPECT_NEAR(square, 1, 0.2);
  EXPECT_LT(largest_difference(interpolate_starts(x, x, 0.3), x), 1e-6);
}

}  // namespace
}  // namespace rz::models::diffusion
