// A diffusion process: path, what the network predicts, when and how strongly it is trained, and how it is sampled by default. The
// published methods are presets, that is rows of one table (docs/diffusion.md); any network goes with any of them.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "models/diffusion/sampler.h"
#include "models/diffusion/time_dist.h"

namespace rz::models::diffusion {

// What multiplies |D - x0|^2 in the loss.
enum class Weight : uint8_t {
  target,      // 1 / c_out^2: the plain squared error of what the network predicts
  snr,         // a^2 / s^2: that of eps, whatever is predicted
  x0,          // 1
  likelihood,  // g^2 a^2 / s^4 with the SDE's diffusion g: Song et al., "Maximum likelihood training of score-based diffusion models", 2021
};
const char* name(Weight weight);
Weight parse_weight(std::string_view text);

// The variational term of improved DDPM: the network also predicts variances, trained by `factor` times the bound's term at the
// drawn time in bits per dimension. Nichol & Dhariwal 2021, equations 15 and 16: factor T / 1000 is L_simple + 0.001 L_vlb.
struct VlbTerm {
  double factor = 1;
  bool alone = false;  // no simple loss: the bound trains the mean, too (L_vlb, with LossAwareTime)
};

struct Process {
  std::string preset;
  PathPtr path;
  Parametrization parametrization;
  std::shared_ptr<TimeDist> times;
  Weight weight = Weight::target;
  std::optional<VlbTerm> vlb;  // set: the network's output has twice the channels
  SamplerConfig sampler;
  GridSpec grid;
  int64_t steps = 1;  // of the sampler
};

// What a preset leaves open; unset: the published value.
struct PresetOptions {
  std::optional<int64_t> timesteps{};               // T of discrete paths (1000), noise levels of ncsn (10)
  std::optional<double> beta_first{}, beta_last{};  // ddpm, ddim (1e-4, 0.02); beta_min, beta_max of vp_sde, subvp_sde (0.1, 20)
  std::optional<double> sigma_min{}, sigma_max{};   // edm (0.002, 80), ve_sde (0.01, 50), ncsn (0.01, 1)
  std::optional<double> shift{};                    // sd3_flow (3)
  double sigma_data = 0.5;                          // standard deviation of the data: measure it (Fashion-MNIST in [-1, 1]: 0.706)
};

// ddpm, ddim, iddpm, ncsn, vp_sde, subvp_sde, ve_sde, edm, flow, rectified_flow, sd3_flow.
const std::vector<std::string>& preset_names();
// ConfigError listing the presets, or naming an option that the preset does not have.
Process make_preset(std::string_view preset, const PresetOptions& options = {});

}  // namespace rz::models::diffusion
