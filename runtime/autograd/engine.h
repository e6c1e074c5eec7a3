// Backward: walks the tape from the newest node to the oldest, iteratively, in the same order on every rank.
//
// * A node runs when all its consumers have run: descending creation numbers guarantee it.
// * Saved tensors are freed as the walk passes (unless retain_graph), so activations shrink while gradients grow.
// * The sum of several contributions is taken in walk order: gradients are the same bits run to run.
#pragma once

#include <vector>

#include "runtime/autograd/gradient_sink.h"
#include "runtime/autograd/node.h"

namespace rz::autograd {

// Makes a leaf whose gradient is wanted (or not). rz::Error on a tensor that an op made.
void set_requires_grad(Tensor& t, bool requires_grad);
bool requires_grad(const Tensor& t);

// The same elements, outside the graph.
Tensor detach(const Tensor& t);

// Called with the complete gradient of `t` during backward; what it returns replaces it. Leaves may only observe.
void register_hook(Tensor& t, GradientHook hook);

// The gradient that the plain sink accumulated in a leaf; undefined before the first backward.
Tensor grad_of(const Tensor& leaf);
void clear_grad(Tensor& leaf);

struct BackwardOptions {
  Tensor grad{};                 // of `output`'s shape; ones for a scalar when undefined
  GradientSink* sink = nullptr;  // null: accumulate into the leaves' own grad_of()
  bool retain_graph = false;     // keep saved tensors for another backward through the same graph
};

// Adds d output / d leaf, times options.grad, to every leaf reached. rz::Error when `output` is not part of a graph or the graph
// was consumed already.
void backward(const Tensor& output, const BackwardOptions& options = {});

// Gradients of sum(outputs * grad_outputs) with respect to `inputs` (leaves or not), without touching any leaf's own gradient.
// An input that no output depends on gets zeros. The graph is consumed unless retain_graph.
std::vector<Tensor> grad(const std::vector<Tensor>& outputs, const std::vector<Tensor>& inputs, std::vector<Tensor> grad_outputs = {},
                         bool retain_graph = false);

}  // namespace rz::autograd
