// Activation recomputation (Chen et al. 2016, arXiv 1604.06174): a stretch of the graph keeps only its inputs; backward runs its
// forward again, this time recording, and differentiates that. The same bits as without: forward functions are deterministic,
// and contributions to every gradient are added in the same order.
#pragma once

#include <functional>
#include <vector>

#include "runtime/core/tensor.h"

namespace rz::autograd {

// forward(inputs), recorded as one node. `parameters` are the leaves that `forward` uses besides its inputs: all of them must be
// named, since their gradients are counted as complete by this node. `forward` must be a pure function of inputs and parameters;
// what it captures by reference must live until backward.
Tensor recompute(const std::function<Tensor(const std::vector<Tensor>&)>& forward, const std::vector<Tensor>& inputs,
                 const std::vector<Tensor>& parameters);

}  // namespace rz::autograd
