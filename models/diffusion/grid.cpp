#include "models/diffusion/grid.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <numbers>

#include "models/diffusion/names.h"

namespace rz::models::diffusion {

namespace {

constexpr Names<GridKind, 6> kGrids = {{{GridKind::leading, "leading"},
                                        {GridKind::trailing, "trailing"},
                                        {GridKind::linspace, "linspace"},
                                        {GridKind::quad, "quad"},
                                        {GridKind::karras, "karras"},
                                        {GridKind::shifted, "shifted"}}};

// Commas between numbers.
std::vector<double> parse_numbers(std::string_view text, std::string_view whole) {
  std::vector<double> out;
  for (const char* at = text.data(); at < text.data() + text.size();) {
    double value = 0;
    const auto [end, error] = std::from_chars(at, text.data() + text.size(), value);
    const bool separated = end == text.data() + text.size() || *end == ',';
    RZ_CONFIG_CHECK(error == std::errc() && separated, "grid '{}': '{}' is not a list of numbers", whole, text);
    out.push_back(value);
    at = end + 1;
  }
  return out;
}

// Descending indices of a discrete path as times, then 0.
Grid of_indices(const std::vector<double>& descending, int64_t T) {
  Grid grid;
  for (const double index : descending) grid.push_back((index + 1) / static_cast<double>(T));
  grid.push_back(0);
  return grid;
}

Grid discrete_grid(const GridSpec& spec, const Path& path, int64_t N) {
  const int64_t T = path.steps();
  RZ_CONFIG_CHECK(N <= T, "{} steps on path {}, which has {} times; give at most {}", N, path.name(), T, T);
  const auto n = static_cast<double>(N), t = static_cast<double>(T);
  std::vector<double> indices;
  for (int64_t i = N - 1; i >= 0; --i) {
    const auto x = static_cast<double>(i);
    switch (spec.kind) {
      case GridKind::leading:
        indices.push_back(x * static_cast<double>(T / N));
        break;
      case GridKind::trailing:
        indices.push_back(std::nearbyint(t - static_cast<double>(N - 1 - i) * (t / n)) - 1);
        break;
      // One step: from noise, not from index 0.
      case GridKind::linspace:
        indices.push_back(N == 1 ? t - 1 : std::nearbyint(x * ((t - 1) / (n - 1))));
        break;
      default:
        indices.push_back(N == 1 ? std::floor(0.8 * t) : std::floor(std::pow(x * (std::sqrt(0.8 * t) / (n - 1)), 2)));
        break;
    }
  }
  return of_indices(indices, T);
}

Grid karras_grid(const GridSpec& spec, const Path& path, int64_t N) {
  const double most = path.at(1).sigma();
  const double largest = spec.sigma_max > 0 ? spec.sigma_max : std::isfinite(most) ? most : 80;
  const double at_t_min = path.t_min() > 0 ? path.at(path.t_min()).sigma() : 0.002;
  const double smallest = spec.sigma_min > 0 ? spec.sigma_min : at_t_min;
  RZ_CONFIG_CHECK(smallest < largest && spec.rho > 0, "grid karras: sigma from {} to {} with rho {}: sigmas must ascend, rho be positive",
                  smallest, largest, spec.rho);
  const double high = std::pow(largest, 1 / spec.rho), low = std::pow(smallest, 1 / spec.rho);
  Grid grid;
  for (int64_t i = 0; i < N; ++i) {
    const double part = N == 1 ? 0 : static_cast<double>(i) / static_cast<double>(N - 1);
    // The ends as given: a power of a root may leave the path by a rounding.
    const double sigma = i == 0 ? largest : i == N - 1 ? smallest : std::pow(high + part * (low - high), spec.rho);
    grid.push_back(path.t_of_sigma(sigma));
  }
  grid.push_back(0);
  return grid;
}

Grid continuous_grid(const GridSpec& spec, const Path& path, int64_t N) {
  const double shift = spec.kind == GridKind::shifted ? spec.shift : 1;
  const auto n = static_cast<double>(N);
  const bool stops_early = spec.kind == GridKind::linspace && path.t_min() > 0;
  Grid grid;
  for (int64_t i = 0; i < N; ++i) {
    const auto x = static_cast<double>(i);
    const double u = stops_early ? 1 + (N == 1 ? 0 : x / (n - 1)) * (path.t_min() - 1) : 1 - x / n;
    grid.push_back(shift * u / (1 + (shift - 1) * u));
  }
  grid.push_back(0);
  return grid;
}

}  // namespace

GridSpec parse_grid(std::string_view text) {
  const auto colon = text.find(':');
  GridSpec spec;
  spec.kind = parse_in(kGrids, "grid", text.substr(0, colon));
  if (colon == std::string_view::npos) return spec;
  const auto numbers = parse_numbers(text.substr(colon + 1), text);
  if (spec.kind == GridKind::shifted && numbers.size() == 1) {
    spec.shift = numbers[0];
  } else if (spec.kind == GridKind::karras && numbers.size() >= 2 && numbers.size() <= 3) {
    spec.sigma_min = numbers[0];
    spec.sigma_max = numbers[1];
    if (numbers.size() == 3) spec.rho = numbers[2];
  } else {
    throw ConfigError(fmt::format("grid '{}': numbers belong to shifted:K and karras:SMIN,SMAX,RHO only", text));
  }
  return spec;
}

std::string name(const GridSpec& spec) {
  const char* kind = name_in(kGrids, spec.kind);
  if (spec.kind == GridKind::shifted) return fmt::format("{}:{}", kind, spec.shift);
  if (spec.kind == GridKind::karras && spec.sigma_max > 0)
    return fmt::format("{}:{},{},{}", kind, spec.sigma_min, spec.sigma_max, spec.rho);
  return kind;
}

Grid make_grid(const GridSpec& spec, const Path& path, int64_t steps) {
  RZ_CONFIG_CHECK(steps >= 1, "a sampler needs at least one step, not {}", steps);
  RZ_CONFIG_CHECK(spec.kind != GridKind::shifted || (spec.shift > 0 && std::isfinite(spec.shift)),
                  "grid shifted:{}: the shift must be positive", spec.shift);
  Grid grid;
  const bool of_times =
      spec.kind == GridKind::leading || spec.kind == GridKind::trailing || spec.kind == GridKind::linspace || spec.kind == GridKind::quad;
  if (spec.kind == GridKind::karras) {
    grid = karras_grid(spec, path, steps);
  } else if (path.steps() > 0 && of_times) {
    grid = discrete_grid(spec, path, steps);
  } else {
    RZ_CONFIG_CHECK(spec.kind != GridKind::leading && spec.kind != GridKind::quad,
                    "grid {} counts discrete times, and path {} is continuous; use trailing, linspace, karras or shifted", name(spec),
                    path.name());
    grid = continuous_grid(spec, path, steps);
  }
  for (size_t i = 1; i < grid.size(); ++i)
    RZ_CONFIG_CHECK(grid[i] < grid[i - 1], "grid {} visits t = {} twice in {} steps on path {}; take fewer steps", name(spec), grid[i],
                    steps, path.name());
  return grid;
}

std::vector<double> cosine_sigmas(int64_t M, double C1, double C2) {
  RZ_CONFIG_CHECK(M >= 1, "a noise schedule needs at least one step, not {}", M);
  const auto alpha_bar = [&](int64_t j) {
    const double root = std::sin(std::numbers::pi / 2 * static_cast<double>(j) / (static_cast<double>(M) * (C2 + 1)));
    return root * root;
  };
  std::vector<double> u(static_cast<size_t>(M) + 1, 0.0);
  for (int64_t j = M; j > 0; --j) {
    const double next = u[static_cast<size_t>(j)];
    u[static_cast<size_t>(j - 1)] = std::sqrt((next * next + 1) / std::max(alpha_bar(j - 1) / alpha_bar(j), C1) - 1);
  }
  return u;
}

}  // namespace rz::models::diffusion
