#include "runtime/nn/layers.h"

#include "runtime/ops/embedding.h"
#include "runtime/ops/matmul.h"
#include "runtime/ops/norm.h"

namespace rz::nn {

Linear::Linear(int64_t in, int64_t out, bool bias, Init weight_init) : weight_(register_parameter("weight", {out, in}, weight_init, true)) {
  if (bias) bias_ = &register_parameter("bias", {out}, Init::zeros(), false);
}

Tensor Linear::forward(const Tensor& x) const {
  use();
  return ops::linear(x, weight_.value, bias_ != nullptr ? bias_->value : Tensor());
}

Embedding::Embedding(int64_t symbols, int64_t width, Init init) : weight_(register_parameter("weight", {symbols, width}, init, false)) {}

Tensor Embedding::forward(const Tensor& ids) const {
  use();
  return ops::embedding(ids, weight_.value);
}

Norm::Norm(NormKind kind, int64_t width, bool bias, double epsilon)
    : kind_(kind), epsilon_(epsilon), weight_(register_parameter("weight", {width}, Init::ones(), false)) {
  if (bias && kind == NormKind::layer_norm) bias_ = &register_parameter("bias", {width}, Init::zeros(), false);
}

Tensor Norm::forward(const Tensor& x) const {
  use();
  if (kind_ == NormKind::rms_norm) return ops::rms_norm(x, weight_.value, epsilon_);
  return ops::layer_norm(x, weight_.value, bias_ != nullptr ? bias_->value : Tensor(), epsilon_);
}

}  // namespace rz::nn
