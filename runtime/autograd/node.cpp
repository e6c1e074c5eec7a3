#include "runtime/autograd/node.h"

#include "runtime/autograd/grad_mode.h"
#include "runtime/core/op_profile.h"

namespace rz::autograd {

namespace {
thread_local uint64_t t_next_sequence = 1;
// Nodes whose last owner went away wait here, so that a long chain is freed by a loop and not by recursion.
thread_local std::vector<std::shared_ptr<AutogradMeta>>* t_doomed = nullptr;
}  // namespace

Node::~Node() {
  if (t_doomed != nullptr) {
    for (auto& input : inputs)
      if (input) t_doomed->push_back(std::move(input));
    return;
  }
  std::vector<std::shared_ptr<AutogradMeta>> doomed(std::make_move_iterator(inputs.begin()), std::make_move_iterator(inputs.end()));
  t_doomed = &doomed;
  while (!doomed.empty()) {
    const auto meta = std::move(doomed.back());
    doomed.pop_back();
    // `meta` is destroyed here; if it held the last handle of its node, that node's inputs join `doomed`.
  }
  t_doomed = nullptr;
}

const Tensor& Saved::get() const {
  RZ_CHECK(tensor_.version() == version_,
           "a tensor saved for backward was changed in place since (version {} when saved, {} now): {} of '{}'", version_, tensor_.version(),
           tensor_.str(), tensor_.storage()->owner());
  return tensor_;
}

AutogradMeta* find_meta(const Tensor& t) { return t.defined() ? static_cast<AutogradMeta*>(t.autograd().get()) : nullptr; }

AutogradMeta& meta_of(Tensor& t) {
  if (auto* meta = find_meta(t)) return *meta;
  auto meta = std::make_shared<AutogradMeta>();
  meta->shape = t.shape();
  meta->dtype = t.dtype();
  t.set_autograd(meta);
  return *meta;
}

namespace {
template <class Range>
bool any_needs_grad(const Range& inputs) {
  if (!grad_enabled()) return false;
  for (const Tensor& t : inputs)
    if (const auto* meta = find_meta(t); meta != nullptr && meta->requires_grad) return true;
  return false;
}
}  // namespace

bool needs_grad(std::initializer_list<Tensor> inputs) { return any_needs_grad(inputs); }
bool needs_grad(const std::vector<Tensor>& inputs) { return any_needs_grad(inputs); }

Tensor record(const char* name, Tensor output, std::vector<Tensor> inputs, BackwardFunction backward) {
  if (OpProfile* profile = OpProfile::current()) profile->op_ended(name);
  if (!needs_grad(inputs)) return output;
  RZ_CHECK(find_meta(output) == nullptr, "{}: its output already belongs to the graph", name);
  auto node = std::make_shared<Node>();
  node->sequence = t_next_sequence++;
  node->name = name;
  node->shape = output.shape();
  node->dtype = output.dtype();
  node->backward = std::move(backward);
  node->inputs.reserve(inputs.size());
  for (const Tensor& input : inputs) {
    const auto* meta = find_meta(input);
    const bool wanted = meta != nullptr && meta->requires_grad;
    node->inputs.push_back(wanted ? std::static_pointer_cast<AutogradMeta>(input.autograd()) : nullptr);
  }
  auto& meta = meta_of(output);
  meta.requires_grad = true;
  node->output = std::static_pointer_cast<AutogradMeta>(output.autograd());
  meta.node = std::move(node);
  return output;
}

}  // namespace rz::autograd
