// Grids: the times at which a sampler evaluates, as plain vectors. N steps are N + 1 times, descending; the last is 0 (data) unless the
// caller makes a grid of his own.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "models/diffusion/path.h"

namespace rz::models::diffusion {

using Grid = std::vector<double>;

// `leading`, `trailing`, `linspace` after Lin et al., "Common diffusion noise schedules and sample steps are flawed", 2024, table 2:
// which of the T discrete times N steps visit.
enum class GridKind : uint8_t {
  leading,   // indices 0, r, 2r, .. with r = T / N rounded down: DDIM's uniform grid; begins below the noisiest time
  trailing,  // T, T - T/N, .. rounded, minus 1; on a continuous path 1, 1 - 1/N, .., 0
  linspace,  // 0 .. T-1 in N even steps, rounded; on a continuous path evenly from 1 down to t_min, then 0
  quad,      // squares of linspace(0, sqrt(0.8 T), N): DDIM's quadratic grid
  karras,    // (smax^(1/rho) + i/(N-1) (smin^(1/rho) - smax^(1/rho)))^rho in sigma: Karras et al. 2022, equation 5
  shifted,   // k u / (1 + (k - 1) u) with u = 1, 1 - 1/N, .., 0: Esser et al. 2024, equation 23; u is the time before shifting
};

struct GridSpec {
  GridKind kind = GridKind::linspace;
  double shift = 3;      // shifted
  double sigma_min = 0;  // karras; 0: the path's at its smallest time
  double sigma_max = 0;  // karras; 0: the path's at t = 1, or 80 where that is infinite
  double rho = 7;        // karras
};

// "leading", ..., "karras", "karras:SMIN,SMAX,RHO", "shifted:K"; ConfigError listing the choices for anything else.
GridSpec parse_grid(std::string_view text);
std::string name(const GridSpec& spec);

// ConfigError naming the values where path and grid do not fit (leading on a continuous path, more steps than times, ...).
Grid make_grid(const GridSpec& spec, const Path& path, int64_t steps);

// Sigmas of the cosine schedule in EDM's rendering: u_M = 0, u_{j-1} = sqrt((u_j^2 + 1) / max(ab_{j-1} / ab_j, C1) - 1) with
// ab_j = sin^2(pi/2 j / (M (C2 + 1))). M + 1 numbers, descending. Karras et al. 2022, appendix C.3.
std::vector<double> cosine_sigmas(int64_t M, double C1 = 0.001, double C2 = 0.008);

}  // namespace rz::models::diffusion
