// What a network predicts, and how that becomes a denoiser: D(x, t) = c_skip x + c_out F(c_in x, c_noise).
//
// Every target in use is a fixed mixture F = p x0 + q eps of data and noise. Together with x = a x0 + s eps that is two equations in
// two unknowns, so one formula serves all of them:  c_skip = q / (a q - s p),  c_out = -s / (a q - s p).
//
//   target  p                        q                        c_skip                          c_out
//   x0      1                        0                        0                               1
//   eps     0                        1                        1/a                             -s/a
//   v       -s                       a                        a/(a^2+s^2)                     -s/(a^2+s^2)       Salimans & Ho 2022
//   flow    da/dt                    ds/dt                    s'/(a s' - s a')                -s/(a s' - s a')
//   score   0                        -1/s                     1/a                             s^2/a
//   edm     s/(sd r)                 -a sd/r                  a sd^2/r^2                      s sd/r             r^2 = s^2 + a^2 sd^2
// (edm: Karras et al. 2022, table 1, with sigma = s/a and the input x/a; sd = sigma_data.) Pure functions of doubles.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "models/diffusion/path.h"

namespace rz::models::diffusion {

enum class Target : uint8_t { x0, eps, v, flow, score, edm };
const char* name(Target target);
// ConfigError listing the choices for anything else; so the other parse functions.
Target parse_target(std::string_view text);

// What the network is told about the noise level; part of a trained network, kept with it.
enum class NoiseInput : uint8_t {
  index,              // k of the discrete time (k + 1) / T: Ho et al.
  time,               // t
  time_999,           // 999 t: score SDE (VP), rectified flow
  time_1000,          // 1000 t: SD3
  quarter_log_sigma,  // ln(sigma) / 4: EDM
  log_half_sigma,     // ln(sigma / 2): EDM's VE
  sigma,              // sigma: score SDE (VE), NCSN
};
const char* name(NoiseInput input);
NoiseInput parse_noise_input(std::string_view text);
// ConfigError for `index` on a continuous path.
double noise_input(NoiseInput input, const Path& path, double t);

// F = x0_factor x0 + eps_factor eps.
struct Mixture {
  double x0_factor = 0;
  double eps_factor = 0;
};
Mixture mixture(Target target, const Coef& c, double sigma_data = 0.5);

struct Precond {
  double c_skip = 0;
  double c_out = 1;
  double c_in = 1;
  double c_noise = 0;
};

// How a network is used; everything but its weights. Saved with them.
struct Parametrization {
  Target target = Target::eps;
  NoiseInput noise = NoiseInput::time;
  double sigma_data = 0.5;   // standard deviation of the data; edm and scale_input read it
  bool scale_input = false;  // c_in = 1 / sqrt(a^2 sigma_data^2 + s^2), so that the input has unit variance; always so for edm
};

// ConfigError naming target, path and t where the target does not determine x0 (eps or score where a = 0).
Precond precond(const Parametrization& p, const Path& path, double t);

}  // namespace rz::models::diffusion
