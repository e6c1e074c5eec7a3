// Training: draw a time and noise for each sample, noise it, and weigh the squared error of what the network says.
//
//   x_t = a x0 + s eps,   F* = p x0 + q eps (target.h),   loss = mean over dimensions of w(t) c_out^2 |F(c_in x_t, c_noise) - F*|^2
//
// which is w(t) |D - x0|^2 without the cancellation. Times and noise are keyed by (seed, step, global sample index): the same for any
// number of ranks and any batch per rank. Single-device code: `scale` says what the loss of one sample counts in the global batch.
#pragma once

#include <vector>

#include "models/diffusion/conditioning.h"
#include "models/diffusion/process.h"

namespace rz::models::diffusion {

struct LossResult {
  Tensor loss;                        // scalar, recorded for backward: scale * sum over samples
  double sum = 0;                     // of the samples' losses (means over dimensions), not scaled; computed in sample order
  std::vector<double> times;          // t of each sample
  std::vector<double> sample_losses;  // of each sample before its importance weight: what LossAwareTime::update wants, from all ranks
};

class Objective {
 public:
  // `channel_dim`: where a network with a variational term has twice the channels (F, then v).
  explicit Objective(Process process, int channel_dim = -1);

  const Process& process() const { return process_; }

  // x0 [B, ..] f32 (or f64); the network gets and gives that type. B may be 0. `noise` (x0's shape) replaces the drawn one: pairs
  // for reflow. ConfigError where the target does not determine the data at a drawn time.
  LossResult loss(const Network& network, const Tensor& x0, const Conditioning& conditioning, const SampleKey& key, double scale,
                  const Tensor& noise = {}) const;

 private:
  Process process_;
  int channel_dim_;
};

// w(t) c_out^2: the weight of |F - F*|^2.
double loss_weight(const Process& process, double t);

// The smallest value that the expected loss (without the variational term) can take for data N(0, std^2): that of the exact denoiser.
double bayes_loss(const Process& process, double std);
// The expected loss of a network whose output is zero, for data of the given mean and standard deviation.
double initial_loss(const Process& process, double mean, double std);

}  // namespace rz::models::diffusion
