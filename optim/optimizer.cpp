#include "optim/optimizer.h"

#include <cmath>

#include "runtime/kernels/backend.h"

namespace rz::optim {

namespace {

void check_fraction(const char* what, double value) {
  RZ_CONFIG_CHECK(value >= 0 && value < 1, "{} must be in [0, 1), not {}", what, value);
}

class Adam final : public Optimizer {
 public:
  explicit Adam(const AdamConfig& config) : config_(config) {
    check_fraction("beta1", config.beta1);
    check_fraction("beta2", config.beta2);
    RZ_CONFIG_CHECK(config.epsilon > 0, "epsilon must be positive, not {}", config.epsilon);
    RZ_CONFIG_CHECK(config.weight_decay >= 0, "weight decay must not be negative: {}", config.weight_decay);
  }
  const char* name() const override { return config_.decoupled ? "adamw" : "adam"; }
  std::vector<std::string> state_names() const override { return {"first_moment", "second_moment"}; }
  void update(const UpdateArguments& a, Tensor& weight, const Tensor& gradient, std::vector<Tensor>& state) const override {
    AdamStep step;
    step.learning_rate = static_cast<float>(a.learning_rate);
    step.beta1 = static_cast<float>(config_.beta1);
    step.beta2 = static_cast<float>(config_.beta2);
    step.epsilon = static_cast<float>(config_.epsilon);
    step.weight_decay = a.decay ? static_cast<float>(config_.weight_decay) : 0.0f;
    step.decoupled = config_.decoupled;
    step.bias_correction1 = static_cast<float>(1.0 - std::pow(config_.beta1, static_cast<double>(a.step)));
    step.bias_correction2 = static_cast<float>(1.0 - std::pow(config_.beta2, static_cast<double>(a.step)));
    step.gradient_scale = static_cast<float>(a.gradient_scale);
    backend(weight.device()).optimizer->adam(step, weight, gradient, state.at(0), state.at(1), a.rounded);
  }

 private:
  AdamConfig config_;
};

class Sgd final : public Optimizer {
 public:
  explicit Sgd(const SgdConfig& config) : config_(config) {
    check_fraction("momentum", config.momentum);
    RZ_CONFIG_CHECK(config.weight_decay >= 0, "weight decay must not be negative: {}", config.weight_decay);
    RZ_CONFIG_CHECK(!config.nesterov || config.momentum > 0, "Nesterov's momentum needs a momentum above 0");
  }
  const char* name() const override { return "sgd"; }
  std::vector<std::string> state_names() const override {
    return config_.momentum > 0 ? std::vector<std::string>{"momentum"} : std::vector<std::string>{};
  }
  void update(const UpdateArguments& a, Tensor& weight, const Tensor& gradient, std::vector<Tensor>& state) const override {
    SgdStep step;
    step.learning_rate = static_cast<float>(a.learning_rate);
    step.momentum = static_cast<float>(config_.momentum);
    step.weight_decay = a.decay ? static_cast<float>(config_.weight_decay) : 0.0f;
    step.nesterov = config_.nesterov;
    step.gradient_scale = static_cast<float>(a.gradient_scale);
    Tensor none;
    backend(weight.device()).optimizer->sgd(step, weight, gradient, state.empty() ? none : state.at(0), a.rounded);
  }

 private:
  SgdConfig config_;
};

}  // namespace

std::unique_ptr<Optimizer> make_adam(const AdamConfig& config) { return std::make_unique<Adam>(config); }
std::unique_ptr<Optimizer> make_sgd(const SgdConfig& config) { return std::make_unique<Sgd>(config); }

}  // namespace rz::optim
