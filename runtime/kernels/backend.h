// A backend is a table of kernel families; one per device type. Numbers in, numbers out: kernels see tensors, never the tape.
//
// Common rules of all kernels:
// * Outputs are allocated by the caller, contiguous unless said otherwise; kernels throw rz::Error on shapes that do not fit.
// * `accumulate`: add to the output instead of overwriting it.
// * 16-bit floats are computed in float32 (f64 in double).
// * Deterministic: the same bits for the same inputs and thread count; where a header says so, for any thread count.
#pragma once

#include "runtime/core/tensor.h"
#include "runtime/kernels/attention.h"
#include "runtime/kernels/conv.h"
#include "runtime/kernels/elementwise.h"
#include "runtime/kernels/embedding.h"
#include "runtime/kernels/fixed_point.h"
#include "runtime/kernels/group_norm.h"
#include "runtime/kernels/image.h"
#include "runtime/kernels/loss.h"
#include "runtime/kernels/matmul.h"
#include "runtime/kernels/norm.h"
#include "runtime/kernels/optimizer.h"
#include "runtime/kernels/random.h"
#include "runtime/kernels/reduction.h"

namespace rz {

struct Backend {
  const char* name = "";
  ElementwiseKernels* elementwise = nullptr;
  ReductionKernels* reduction = nullptr;
  MatmulKernels* matmul = nullptr;
  LossKernels* loss = nullptr;
  NormKernels* norm = nullptr;
  EmbeddingKernels* embedding = nullptr;
  AttentionKernels* attention = nullptr;
  RandomKernels* random = nullptr;
  OptimizerKernels* optimizer = nullptr;
  FixedPointKernels* fixed_point = nullptr;
  ConvKernels* conv = nullptr;
  GroupNormKernels* group_norm = nullptr;
  ImageKernels* image = nullptr;
};

// The backend of a device; rz::Error when this program has none for it.
const Backend& backend(Device device);

// Each family's CPU implementation (kernels/cpu/<family>.cpp).
namespace cpu {
ElementwiseKernels& elementwise_kernels();
ReductionKernels& reduction_kernels();
MatmulKernels& matmul_kernels();
LossKernels& loss_kernels();
NormKernels& norm_kernels();
EmbeddingKernels& embedding_kernels();
AttentionKernels& attention_kernels();
RandomKernels& random_kernels();
OptimizerKernels& optimizer_kernels();
FixedPointKernels& fixed_point_kernels();
ConvKernels& conv_kernels();
GroupNormKernels& group_norm_kernels();
ImageKernels& image_kernels();
}  // namespace cpu

}  // namespace rz
