// What a denoiser says about x_t, for any kind of state that a sampler can move.
#pragma once

#include <optional>

namespace rz::models::diffusion {

template <class X>
struct Prediction {
  X x0;                       // D(x, t)
  std::optional<X> eps;       // unset: (x - a x0) / s. Set where x0 was clamped and the noise was not derived again from it
  std::optional<X> variance;  // output v of a learned range of variances, -1 .. 1 from smallest to largest (improved DDPM)
};

}  // namespace rz::models::diffusion
