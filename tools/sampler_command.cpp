#include "tools/sampler_command.h"

#include <charconv>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "models/diffusion/moments.h"
#include "models/diffusion/objective.h"
#include "tools/console.h"
#include "tools/sampler_flags.h"
#include "tools/sampler_replay.h"

namespace rz::tools {

namespace {

namespace diffusion = models::diffusion;

struct ReplayFlags {
  std::string world, replay, replay_case;
  std::string preset = "ddpm";
  diffusion::PresetOptions options;
  SamplerFlags sampler;
  bool trajectory = false;
};

double number(std::string_view text, std::string_view whole) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  RZ_CONFIG_CHECK(error == std::errc() && end == text.data() + text.size(), "world '{}': '{}' is not a number", whole, text);
  return value;
}

// "gaussian:mean=M,std=C"
diffusion::GaussianWorld parse_world(std::string_view text) {
  constexpr std::string_view kKind = "gaussian";
  RZ_CONFIG_CHECK(text.substr(0, text.find(':')) == kKind, "unknown world '{}'; valid: gaussian:mean=M,std=C", text);
  diffusion::GaussianWorld world;
  std::string_view rest = text.size() > kKind.size() ? text.substr(kKind.size() + 1) : std::string_view();
  while (!rest.empty()) {
    const std::string_view item = rest.substr(0, rest.find(','));
    rest = item.size() < rest.size() ? rest.substr(item.size() + 1) : std::string_view();
    const auto equals = item.find('=');
    const std::string_view key = item.substr(0, equals);
    RZ_CONFIG_CHECK(equals != std::string_view::npos && (key == "mean" || key == "std"), "world '{}': '{}' is neither mean=M nor std=C",
                    text, item);
    (key == "mean" ? world.mean : world.std) = number(item.substr(equals + 1), text);
  }
  return world;
}

nlohmann::ordered_json world_moments(const ReplayFlags& f) {
  const diffusion::GaussianWorld world = parse_world(f.world);
  const diffusion::Process process = diffusion::make_preset(f.preset, f.options);
  const diffusion::SamplerConfig config = sampler_config(f.sampler, process, false);  // a world has no network to learn variances from
  const diffusion::GridSpec spec = grid_spec(f.sampler, process);
  const int64_t steps = f.sampler.steps.value_or(process.steps);
  const diffusion::Grid grid = diffusion::make_grid(spec, *process.path, steps);
  const auto moments = diffusion::sampler_moments(world, *process.path, grid, config);
  nlohmann::ordered_json json;
  json["mean"] = moments.back().mean;
  json["std"] = moments.back().std;
  json["world"] = f.world;
  json["preset"] = f.preset;
  json["path"] = process.path->name();
  json["method"] = diffusion::name(config.method);
  json["steps"] = steps;
  json["grid"] = diffusion::name(spec);
  json["eta"] = config.eta;
  json["variance"] = diffusion::name(config.variance);
  json["evaluations"] = diffusion::evaluations(config, *process.path, grid);
  json["bayes_loss"] = diffusion::bayes_loss(process, world.std);
  if (f.trajectory) {
    json["trajectory"] = nlohmann::ordered_json::array();
    for (size_t i = 0; i < moments.size(); ++i) {
      const diffusion::Coef at = process.path->at(grid[i + 1]);
      json["trajectory"].push_back({{"t", grid[i + 1]}, {"a", at.a}, {"s", at.s}, {"mean", moments[i].mean}, {"std", moments[i].std}});
    }
  }
  return json;
}

nlohmann::ordered_json replay(const ReplayFlags& f) {
  RZ_CONFIG_CHECK(f.replay == "diffusers", "unknown replay '{}'; valid: diffusers", f.replay);
  return replay_json(f.replay_case);
}

}  // namespace

void add_sampler_command(CLI::App& app) {
  auto flags = std::make_shared<ReplayFlags>();
  ReplayFlags& f = *flags;
  auto* c =
      app.add_subcommand("sampler", "what a diffusion sampler makes of data N(mean, std^2): exact mean and standard deviation, as JSON");
  c->add_option("--world", f.world, "gaussian:mean=M,std=C: every coordinate of the data is N(M, C^2), the denoiser is exact");
  c->add_option("--preset", f.preset, fmt::format("process and default sampler: {}", fmt::join(diffusion::preset_names(), ", ")))
      ->capture_default_str();
  add_sampler_flags(*c, f.sampler, "--grid");
  c->add_option("--timesteps", f.options.timesteps, "T of ddpm, ddim and iddpm (1000); noise levels of ncsn (10)");
  c->add_option("--beta-first", f.options.beta_first, "first beta of ddpm and ddim (1e-4), beta_min of vp_sde and subvp_sde (0.1)");
  c->add_option("--beta-last", f.options.beta_last, "last beta of ddpm and ddim (0.02), beta_max of vp_sde and subvp_sde (20)");
  c->add_option("--sigma-min", f.options.sigma_min, "of edm (0.002), ve_sde (0.01), ncsn (0.01)");
  c->add_option("--sigma-max", f.options.sigma_max, "of edm (80), ve_sde (50), ncsn (1)");
  c->add_option("--shift", f.options.shift, "of sd3_flow's times (3)");
  c->add_option("--sigma-data", f.options.sigma_data, "that edm's loss assumes")->capture_default_str();
  c->add_flag("--trajectory", f.trajectory, "print the moments after every step");
  c->add_option("--replay", f.replay, "diffusers: run a case of that library's scheduler tests and print its sums");
  c->add_option("--case", f.replay_case, fmt::format("of the replay: {}", fmt::join(replay_cases(), ", ")));
  c->callback([flags] {
    RZ_CONFIG_CHECK(flags->world.empty() != flags->replay.empty(),
                    "give either --world gaussian:mean=M,std=C or --replay diffusers --case NAME");
    const auto json = flags->replay.empty() ? world_moments(*flags) : replay(*flags);
    if (is_speaker()) fmt::print("{}\n", json.dump(2));
  });
}

}  // namespace rz::tools
