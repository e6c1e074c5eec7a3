// The tape (decision D3): what each op leaves behind for backward.
//
// 1. A tensor made by a recorded op has an AutogradMeta with the op's Node; a leaf has one without a Node.
// 2. Nodes carry a creation number; creation order is a topological order of the graph.
// 3. A node holds handles of its inputs' metas and, in its backward function, saved tensors without autograd state: the graph
//    has no cycles, and dropping its last tensor frees it without recursion.
// One thread builds and walks a graph.
#pragma once

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <vector>

#include "runtime/core/tensor.h"

namespace rz::autograd {

struct Node;
class GradientSink;
class InputGradients;

// Receives the complete gradient of the op's output and gives its inputs theirs.
using BackwardFunction = std::function<void(const Tensor& grad, InputGradients& inputs)>;
// Sees a tensor's complete gradient; what it returns replaces it (return the argument to keep it).
using GradientHook = std::function<Tensor(const Tensor& grad)>;

struct AutogradMeta final : AutogradMetaBase {
  bool requires_grad = false;
  std::shared_ptr<Node> node;  // null: a leaf
  std::vector<GradientHook> hooks;
  Tensor grad;                 // leaves, when the plain sink is used
  Shape shape;
  DType dtype = DType::f32;
  int64_t leaf_index = -1;     // a sink's own number for a leaf; -1 = none
  int pending_uses = 0;        // the engine's count of uses still to come in this walk
  bool contributed = false;    // a gradient was given in this walk
};

struct Node {
  uint64_t sequence = 0;
  const char* name = "";
  std::vector<std::shared_ptr<AutogradMeta>> inputs;  // null where an input needs no gradient
  std::weak_ptr<AutogradMeta> output;                 // for its hooks
  Shape shape;
  DType dtype = DType::f32;
  BackwardFunction backward;  // empty once consumed

  // The engine's scratch.
  Tensor grad;
  bool grad_is_owned = false;  // nobody else holds `grad`: it may be added to in place
  bool visited = false;
  bool needed = true;

  Node() = default;
  Node(const Node&) = delete;
  Node& operator=(const Node&) = delete;
  ~Node();
};

// A tensor kept for backward. get() throws rz::Error if the tensor was changed in place since, naming the op and the owner.
class Saved {
 public:
  Saved() = default;
  explicit Saved(const Tensor& t) : tensor_(t.view_alias()), version_(t.version()) {}
  const Tensor& get() const;

 private:
  Tensor tensor_;
  uint32_t version_ = 0;
};

// What a backward function writes its results to.
class InputGradients {
 public:
  // False: input i needs no gradient; skip its work.
  bool wants(size_t i) const { return inputs_[i] != nullptr && wanted_[i]; }
  // Adds `grad` (of input i's shape and type) to input i's gradient. The tensor may be shared with others: it is never changed.
  void add(size_t i, const Tensor& grad);
  // Lets `kernel(out, accumulate)` write input i's gradient where it is wanted, in place: accumulate says add to `out`, else
  // overwrite it. `out` is contiguous, of input i's shape and type.
  void into(size_t i, const std::function<void(Tensor& out, bool accumulate)>& kernel);

  // Where this walk sends the gradients of leaves: for a backward within a backward.
  GradientSink& sink() const;

 private:
  friend class Engine;
  std::vector<std::shared_ptr<AutogradMeta>> inputs_;
  std::vector<char> wanted_;
  class Engine* engine_ = nullptr;
};

// The meta of a tensor, made on first use.
AutogradMeta& meta_of(Tensor& t);
// Null when the tensor has none.
AutogradMeta* find_meta(const Tensor& t);

// True when gradients are being recorded and one of `inputs` needs one: only then does an op have to save anything.
bool needs_grad(std::initializer_list<Tensor> inputs);
bool needs_grad(const std::vector<Tensor>& inputs);

// Records an op: `output` was computed from `inputs` and `backward` turns its gradient into theirs. Undefined inputs are
// allowed (an absent bias). Returns `output`. `name` must be a string literal.
Tensor record(const char* name, Tensor output, std::vector<Tensor> inputs, BackwardFunction backward);

}  // namespace rz::autograd
