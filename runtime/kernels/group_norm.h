// Group norm of images, channels last, with scale and shift per sample and SiLU in the same pass; equations in ops/group_norm.h.
//
// x, y, grad and dx are contiguous [N, P, C] (P pixels) of one type; parameters are contiguous, of that type or of its compute type.
// A sample's numbers depend on nothing but the sample; sums over samples are taken in order: the same bits for any number of threads.
#pragma once

#include <cstdint>

#include "runtime/core/tensor.h"

namespace rz {

struct GroupNormCall {
  int64_t groups = 1;
  double epsilon = 1e-5;
  bool silu = false;
  Tensor weight, bias;  // [C] or undefined: 1 and 0
  Tensor scale, shift;  // [N, C] or undefined: 0
};

// Which parameter GroupNormKernels::parameter_gradient is asked for.
enum class GroupNormParameter : uint8_t { weight, bias, scale, shift };

class GroupNormKernels {
 public:
  virtual ~GroupNormKernels() = default;

  // mean, rstd: [N, groups] of the compute type, written.
  virtual void forward(const GroupNormCall& call, const Tensor& x, Tensor& y, Tensor& mean, Tensor& rstd) = 0;
  // dx may be undefined. sums [N, 2, C] of the compute type, overwritten: per channel the sums over pixels of the gradient before the
  // affine map (after SiLU's), and of that gradient times the normalized x.
  virtual void backward(const GroupNormCall& call, const Tensor& grad, const Tensor& x, const Tensor& mean, const Tensor& rstd, Tensor& dx,
                        bool accumulate, Tensor& sums) = 0;
  // out = or += the gradient of one parameter, from backward's sums.
  virtual void parameter_gradient(const GroupNormCall& call, const Tensor& sums, GroupNormParameter parameter, Tensor& out,
                                  bool accumulate) = 0;
};

}  // namespace rz
