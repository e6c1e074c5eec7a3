// In which element types a model is trained (docs/precision.md).
//
// | type of          | float32 | bf16 or f16 ("mixed")                                      |
// | weights          |   f32   | 16 bit: rounded copies of the master weights               |
// | activations      |   f32   | 16 bit; sums inside a kernel in f32                        |
// | gradients        |   f32   | 16 bit: every contribution, and what is kept between steps |
// | reduction        |   f32   | `reduce`: f32, or the 16-bit type                          |
// | optimizer state  |   f32   | f32, and the master weights with it                        |
//
// Micikevicius et al. 2018, "Mixed precision training" (arXiv 1710.03740).
#pragma once

#include "runtime/core/dtype.h"

namespace rz::optim {

struct Precision {
  DType weights = DType::f32;  // of weights, activations and gradients: f32, bf16 or f16
  DType reduce = DType::f32;   // in which gradients of several ranks are summed: f32 or `weights`

  bool mixed() const { return weights != DType::f32; }
  void check() const {
    RZ_CONFIG_CHECK(weights == DType::f32 || weights == DType::bf16 || weights == DType::f16,
                    "training in {} is not possible; valid: f32, bf16, f16", name(weights));
    RZ_CONFIG_CHECK(reduce == DType::f32 || reduce == weights, "gradients of {} cannot be reduced in {}; valid: f32, {}", name(weights),
                    name(reduce), name(weights));
  }
  bool operator==(const Precision&) const = default;
};

}  // namespace rz::optim
