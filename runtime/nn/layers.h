// Layers: modules that hold parameters and call the free functions of ops/ with them; they compute the same bits.
#pragma once

#include <cstdint>

#include "runtime/nn/module.h"

namespace rz::nn {

// y = x weight^T + bias; weight [out, in], bias [out] or none.
class Linear final : public Module {
 public:
  Linear(int64_t in, int64_t out, bool bias, Init weight_init);
  Tensor forward(const Tensor& x) const;  // [.., in] -> [.., out]
  bool announces_uses() const override { return true; }
  const Tensor& weight() const {
    use();
    return weight_.value;
  }

 private:
  Parameter& weight_;
  Parameter* bias_ = nullptr;
};

// Rows of a table; weight [symbols, width]. No weight decay by default.
class Embedding final : public Module {
 public:
  Embedding(int64_t symbols, int64_t width, Init init);
  Tensor forward(const Tensor& ids) const;  // [..] of i32 or i64 -> [.., width]
  bool announces_uses() const override { return true; }
  const Tensor& weight() const {
    use();
    return weight_.value;
  }

 private:
  Parameter& weight_;
};

enum class NormKind : uint8_t { layer_norm, rms_norm };

// Layer norm (weight and, with `bias`, bias) or RMS norm (weight) over the last dimension.
class Norm final : public Module {
 public:
  Norm(NormKind kind, int64_t width, bool bias, double epsilon);
  Tensor forward(const Tensor& x) const;
  bool announces_uses() const override { return true; }

 private:
  NormKind kind_;
  double epsilon_;
  Parameter& weight_;
  Parameter* bias_ = nullptr;
};

}  // namespace rz::nn
