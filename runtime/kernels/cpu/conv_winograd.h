// Convolutions with 3 x 3 weights and stride 1 by minimal filtering F(2 x 2, 3 x 3) (Winograd 1980, "Arithmetic complexity of
// computations"; Lavin and Gray 2015, "Fast algorithms for convolutional neural networks"): 16 instead of 36 multiply-adds for 2 x 2
// results. docs/adr/0005-convolution.md says when and what it costs in accuracy.
//
// Every sum is taken in an order that depends on the sizes alone; a sample's outputs and data gradients do not depend on the others.
// Thread-safe; scratch is workspace.
#pragma once

#include "runtime/kernels/cpu/conv_sizes.h"

namespace rz::cpu {

// Whether it is the faster way to a pass whose 2 x 2 tiles cover rows x columns pixels. Of one sample's sizes alone.
bool winograd_pays(const ConvSizes& s, int64_t rows, int64_t columns);

// As ConvKernels, of float, double, bf16 or f16. `bias`: padded with zeros to whole panels, or null.
template <class T>
void winograd_forward(const ConvSizes& s, const T* x, const T* weight, const compute_t<T>* bias, ConvActivation activation, T* y);
template <class T>
void winograd_data_gradient(const ConvSizes& s, const T* grad, const T* weight, T* dx, bool accumulate);
template <class T>
void winograd_weight_gradient(const ConvSizes& s, const T* grad, const T* x, T* dweight, bool accumulate);

}  // namespace rz::cpu
