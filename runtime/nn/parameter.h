// A named weight of a module: its shape, how it starts, and how it is trained. Its tensor starts released: whoever owns the
// memory (Module::materialize, or the sharding layer's flat buffers) gives it bytes and initial values.
#pragma once

#include <cstdint>
#include <string>

#include "runtime/core/tensor.h"

namespace rz::nn {

// Initial values: a pure function of (seed, parameter name, element), so that any part of a weight can be made anywhere.
struct Init {
  enum class Kind : uint8_t { zeros, ones, normal };
  Kind kind = Kind::zeros;
  double std = 0;  // normal: mean 0

  static Init zeros() { return {Kind::zeros, 0}; }
  static Init ones() { return {Kind::ones, 0}; }
  static Init normal(double std) { return {Kind::normal, std}; }
};

struct Parameter {
  std::string name;  // full, dots between modules: "blocks.3.mlp.up.weight"
  Tensor value;      // a leaf that requires a gradient when trainable
  Init init;
  bool decay = true;      // weight decay applies (not to biases, norms, embeddings)
  bool trainable = true;  // false: frozen, never reduced nor updated

  int64_t numel() const { return value.numel(); }
  const Shape& shape() const { return value.shape(); }
};

// Writes the initial values of flat elements [begin, end) of `parameter` to `out` (float32, end - begin elements).
void initial_values(const Parameter& parameter, uint64_t seed, int64_t begin, int64_t end, float* out);

}  // namespace rz::nn
