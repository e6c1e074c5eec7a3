#include "runtime/autograd/engine.h"

#include <algorithm>
#include <unordered_map>
#include <unordered_set>

#include "runtime/autograd/grad_mode.h"
#include "runtime/core/op_profile.h"
#include "runtime/kernels/backend.h"

namespace rz::autograd {

// The plain sink: each leaf keeps its own gradient.
class LeafGradSink final : public GradientSink {
 public:
  GradientTarget target(AutogradMeta& leaf) override {
    if (leaf.grad.defined()) return {leaf.grad, true};
    leaf.grad = Tensor::empty(leaf.shape, leaf.dtype, Category::gradient, "leaf.grad");
    made_.insert(&leaf);
    return {leaf.grad, false};
  }
  void ready(AutogradMeta&) override {}
  // What a walk that failed began and did not end is no gradient.
  void withdraw(AutogradMeta& leaf) {
    if (made_.contains(&leaf)) leaf.grad = Tensor();
  }

 private:
  std::unordered_set<const AutogradMeta*> made_;
};

namespace {

// Collects leaf gradients for grad(): leaves that were not asked for are never targets.
class CaptureSink final : public GradientSink {
 public:
  GradientTarget target(AutogradMeta& leaf) override {
    auto& slot = captured[&leaf];
    const bool first = !slot.defined();
    if (first) slot = Tensor::empty(leaf.shape, leaf.dtype, Category::gradient, "captured gradient");
    return {slot, !first};
  }
  void ready(AutogradMeta&) override {}
  std::unordered_map<const AutogradMeta*, Tensor> captured;
};

}  // namespace

class Engine {
 public:
  // `own`: the sink, where leaves keep their gradients themselves.
  Engine(GradientSink& sink, bool retain_graph, LeafGradSink* own = nullptr) : sink_(sink), own_(own), retain_graph_(retain_graph) {}

  // Restricts the walk to what leads to these metas; their gradients are left in `captured`.
  void restrict_to(const std::vector<AutogradMeta*>& targets) {
    restricted_ = true;
    targets_ = targets;
  }

  void run(const std::vector<std::pair<Tensor, Tensor>>& roots) {
    CategoryScope category(Category::activation_gradient);
    NoGrad no_grad;
    const OpProfile::Walk walk;
    try {
      collect(roots);
      mark_needed();
      for (const auto& [output, grad] : roots) {
        auto* meta = find_meta(output);
        if (meta->node != nullptr) give(*meta, grad);
        else if (is_wanted(*meta)) accumulate_leaf_root(*meta, grad);
      }
      for (const auto& node : order_) step(*node);
    } catch (...) {
      abandon();
      throw;
    }
    order_.clear();
  }

  GradientSink& sink() { return sink_; }

  void give(AutogradMeta& to, const Tensor& grad) {
    RZ_CHECK(grad.shape() == to.shape, "a gradient of shape {} does not fit a tensor of shape {}", grad.shape().str(), to.shape.str());
    if (to.node == nullptr) {
      auto target = sink_.target(to);
      elementwise(grad).add_into(grad, target.tensor, target.accumulate);
      to.contributed = true;
      return;
    }
    Node& node = *to.node;
    if (!node.grad.defined()) {
      node.grad = grad;
      node.grad_is_owned = false;
      return;
    }
    own(node);
    elementwise(grad).add_into(grad, node.grad, true);
  }

  void write(AutogradMeta& to, const std::function<void(Tensor&, bool)>& kernel) {
    if (to.node == nullptr) {
      auto target = sink_.target(to);
      if (target.tensor.dtype() == to.dtype) {
        kernel(target.tensor, target.accumulate);
      } else {
        // The sink keeps gradients in another precision than the weights: compute in theirs, add in the sink's.
        Tensor partial = Tensor::empty(to.shape, to.dtype, Category::workspace, "gradient contribution");
        kernel(partial, false);
        elementwise(partial).add_into(partial, target.tensor, target.accumulate);
      }
      to.contributed = true;
      return;
    }
    Node& node = *to.node;
    if (!node.grad.defined()) {
      node.grad = Tensor::empty(to.shape, to.dtype, Category::activation_gradient, node.name);
      node.grad_is_owned = true;
      kernel(node.grad, false);
      return;
    }
    own(node);
    kernel(node.grad, true);
  }

 private:
  static ElementwiseKernels& elementwise(const Tensor& t) { return *backend(t.device()).elementwise; }

  bool is_wanted(const AutogradMeta& meta) const {
    if (!restricted_) return true;
    if (meta.node != nullptr && meta.node->needed) return true;
    return std::ranges::find(targets_, &meta) != targets_.end();
  }

  void accumulate_leaf_root(AutogradMeta& leaf, const Tensor& grad) {
    give(leaf, grad);
    ++leaf.pending_uses;
    used(leaf);
  }

  // Another holder sees the present gradient: continue in a copy of our own.
  static void own(Node& node) {
    if (node.grad_is_owned) return;
    Tensor copy = Tensor::empty(node.shape, node.dtype, Category::activation_gradient, node.name);
    backend(copy.device()).elementwise->copy(node.grad, copy);
    node.grad = copy;
    node.grad_is_owned = true;
  }

  void collect(const std::vector<std::pair<Tensor, Tensor>>& roots) {
    std::vector<std::shared_ptr<Node>> stack;
    const auto visit = [&](const std::shared_ptr<Node>& node) {
      if (node->visited) return;
      node->visited = true;
      order_.push_back(node);
      stack.push_back(node);
    };
    for (const auto& [output, grad] : roots)
      if (const auto* meta = find_meta(output); meta->node) visit(meta->node);
    while (!stack.empty()) {
      const auto node = std::move(stack.back());
      stack.pop_back();
      RZ_CHECK(node->backward, "backward through '{}' a second time: its saved tensors are gone (ask for retain_graph)", node->name);
      for (const auto& input : node->inputs) {
        if (!input) continue;
        if (input->node) visit(input->node);
        else if (!restricted_) ++input->pending_uses;
      }
    }
    std::ranges::sort(order_, [](const auto& a, const auto& b) { return a->sequence > b->sequence; });
  }

  void mark_needed() {
    if (!restricted_) return;
    for (auto it = order_.rbegin(); it != order_.rend(); ++it) (*it)->needed = false;
    for (auto it = order_.rbegin(); it != order_.rend(); ++it) {
      Node& node = **it;
      for (const auto& input : node.inputs) {
        if (!input || !is_wanted(*input)) continue;
        node.needed = true;
        if (!input->node) ++input->pending_uses;
      }
    }
  }

  void step(Node& node) {
    node.visited = false;
    Tensor grad = std::move(node.grad);
    node.grad = Tensor();
    const bool run_it = node.needed && grad.defined();
    node.needed = true;
    if (grad.defined()) {
      if (const auto output = node.output.lock()) {
        for (const auto& hook : output->hooks) grad = hook(grad);
        if (restricted_ && std::ranges::find(targets_, output.get()) != targets_.end()) captured_nodes[output.get()] = grad;
      }
    }
    if (run_it) {
      InputGradients inputs;
      inputs.engine_ = this;
      inputs.inputs_ = node.inputs;
      for (const auto& input : node.inputs) inputs.wanted_.push_back(input && is_wanted(*input) ? 1 : 0);
      node.backward(grad, inputs);
      if (OpProfile* profile = OpProfile::current()) profile->ended(node.name, OpProfile::Phase::backward);
    }
    // Counted per edge, not per contribution: a node that got no gradient, or gave none, still counts towards ready().
    for (const auto& input : node.inputs)
      if (input && !input->node && is_wanted(*input)) used(*input);
    if (!retain_graph_) {
      node.backward = nullptr;
      node.inputs.clear();
    }
  }

  void used(AutogradMeta& leaf) {
    if (--leaf.pending_uses > 0) return;
    if (leaf.contributed)
      for (const auto& hook : leaf.hooks) hook(sink_.target(leaf).tensor);
    leaf.contributed = false;
    sink_.ready(leaf);
  }

  // After an exception half-way: nodes and leaves must not keep this walk's scratch.
  void abandon() noexcept {
    for (const auto& node : order_) {
      node->visited = false;
      node->needed = true;
      node->grad = Tensor();
      for (const auto& input : node->inputs) {
        if (!input || input->node) continue;
        if (own_ != nullptr) own_->withdraw(*input);
        input->pending_uses = 0, input->contributed = false;
      }
    }
    order_.clear();
  }

  GradientSink& sink_;
  LeafGradSink* own_;
  bool retain_graph_;
  bool restricted_ = false;
  std::vector<AutogradMeta*> targets_;
  std::vector<std::shared_ptr<Node>> order_;

 public:
  std::unordered_map<const AutogradMeta*, Tensor> captured_nodes;
};

void InputGradients::add(size_t i, const Tensor& grad) {
  if (wants(i)) engine_->give(*inputs_[i], grad);
}

GradientSink& InputGradients::sink() const { return engine_->sink(); }

void InputGradients::into(size_t i, const std::function<void(Tensor&, bool)>& kernel) {
  if (wants(i)) engine_->write(*inputs_[i], kernel);
}

void set_requires_grad(Tensor& t, bool requires_grad) {
  auto& meta = meta_of(t);
  RZ_CHECK(meta.node == nullptr, "requires_grad can be set on leaves only; this tensor was made by '{}'", meta.node->name);
  RZ_CHECK(!requires_grad || is_floating(t.dtype()), "a tensor of {} cannot have a gradient", name(t.dtype()));
  meta.requires_grad = requires_grad;
}

bool requires_grad(const Tensor& t) {
  const auto* meta = find_meta(t);
  return meta != nullptr && meta->requires_grad;
}

Tensor detach(const Tensor& t) { return t.view_alias(); }

void register_hook(Tensor& t, GradientHook hook) {
  RZ_CHECK(requires_grad(t), "a gradient hook needs a tensor that requires a gradient");
  meta_of(t).hooks.push_back(std::move(hook));
}

Tensor grad_of(const Tensor& leaf) {
  const auto* meta = find_meta(leaf);
  return meta == nullptr ? Tensor() : meta->grad;
}

void clear_grad(Tensor& leaf) { meta_of(leaf).grad = Tensor(); }

namespace {
Tensor root_gradient(const Tensor& output, Tensor grad) {
  if (!grad.defined()) {
    RZ_CHECK(output.numel() == 1, "backward from {} needs a gradient of that shape (only a scalar has a default)", output.str());
    CategoryScope category(Category::activation_gradient);
    grad = Tensor::full(output.shape(), 1.0, output.dtype(), "root gradient");
  }
  RZ_CHECK(grad.shape() == output.shape(), "the gradient {} does not have the shape of the output {}", grad.str(), output.str());
  return grad;
}
}  // namespace

void backward(const Tensor& output, const BackwardOptions& options) {
  RZ_CHECK(requires_grad(output), "backward from a tensor that no recorded operation or leaf with gradient leads to ({})", output.str());
  LeafGradSink plain;
  Engine engine(options.sink != nullptr ? *options.sink : plain, options.retain_graph, &plain);
  engine.run({{output, root_gradient(output, options.grad)}});
}

std::vector<Tensor> grad(const std::vector<Tensor>& outputs, const std::vector<Tensor>& inputs, std::vector<Tensor> grad_outputs,
                         bool retain_graph) {
  RZ_CHECK(grad_outputs.empty() || grad_outputs.size() == outputs.size(), "{} output gradients for {} outputs", grad_outputs.size(),
           outputs.size());
  grad_outputs.resize(outputs.size());
  std::vector<std::pair<Tensor, Tensor>> roots;
  for (size_t i = 0; i < outputs.size(); ++i)
    if (requires_grad(outputs[i])) roots.emplace_back(outputs[i], root_gradient(outputs[i], grad_outputs[i]));
  std::vector<AutogradMeta*> targets;
  for (const Tensor& input : inputs) {
    RZ_CHECK(requires_grad(input), "a gradient with respect to {} was asked for, but it does not require one", input.str());
    targets.push_back(find_meta(input));
  }
  CaptureSink sink;
  Engine engine(sink, retain_graph);
  engine.restrict_to(targets);
  engine.run(roots);
  std::vector<Tensor> result;
  for (const Tensor& input : inputs) {
    const auto* meta = find_meta(input);
    auto& from = meta->node ? engine.captured_nodes : sink.captured;
    const auto found = from.find(meta);
    result.push_back(found != from.end() ? found->second : Tensor::zeros(input.shape(), input.dtype(), "zero gradient"));
  }
  return result;
}

}  // namespace rz::autograd
