#include "runtime/autograd/recompute.h"

#include <map>

#include "runtime/autograd/engine.h"
#include "runtime/autograd/grad_mode.h"

namespace rz::autograd {

namespace {

// Gradients of the stand-in inputs stay here; those of parameters go to the sink of the outer walk. Readiness is the outer
// walk's business: it counts this node's own use of each parameter.
class InnerSink final : public GradientSink {
 public:
  explicit InnerSink(GradientSink& outer) : outer_(outer) {}
  void capture(const AutogradMeta* stand_in) { captured_[stand_in]; }
  Tensor captured(const AutogradMeta* stand_in) const { return captured_.at(stand_in); }

  GradientTarget target(AutogradMeta& leaf) override {
    const auto own = captured_.find(&leaf);
    if (own == captured_.end()) return outer_.target(leaf);
    const bool first = !own->second.defined();
    if (first) own->second = Tensor::empty(leaf.shape, leaf.dtype, Category::activation_gradient, "gradient of a recomputed input");
    return {own->second, !first};
  }
  void ready(AutogradMeta&) override {}

 private:
  GradientSink& outer_;
  std::map<const AutogradMeta*, Tensor> captured_;
};

}  // namespace

Tensor recompute(const std::function<Tensor(const std::vector<Tensor>&)>& forward, const std::vector<Tensor>& inputs,
                 const std::vector<Tensor>& parameters) {
  std::vector<Tensor> all = inputs;
  all.insert(all.end(), parameters.begin(), parameters.end());
  if (!needs_grad(all)) return forward(inputs);
  Tensor output;
  {
    NoGrad no_grad;
    output = forward(inputs).view_alias();
  }
  std::vector<Saved> saved;
  for (const Tensor& input : inputs) saved.emplace_back(input);
  return record("recompute", output, std::move(all), [forward, saved](const Tensor& grad, InputGradients& in) {
    InnerSink sink(in.sink());
    std::vector<Tensor> stand_ins;
    for (size_t i = 0; i < saved.size(); ++i) {
      stand_ins.push_back(detach(saved[i].get()));
      if (!in.wants(i)) continue;
      set_requires_grad(stand_ins.back(), true);
      sink.capture(find_meta(stand_ins.back()));
    }
    Tensor again;
    {
      GradMode recording(true);
      CategoryScope category(Category::activation);
      again = forward(stand_ins);
    }
    BackwardOptions options;
    options.grad = grad;
    options.sink = &sink;
    backward(again, options);
    for (size_t i = 0; i < saved.size(); ++i)
      if (in.wants(i))
        if (const Tensor g = sink.captured(find_meta(stand_ins[i])); g.defined()) in.add(i, g);
  });
}

}  // namespace rz::autograd
