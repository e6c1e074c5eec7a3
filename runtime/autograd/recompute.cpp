#include "runtime/autograd/recompute.h"

#include <map>

#include "runtime/autograd/engine.h"
#include "runtime/autograd/grad_mode.h"
#include "runtime/kernels/backend.h"

namespace rz::autograd {

namespace {

// Gradients of the stand-in inputs go where the outer walk sums those of the inputs, each contribution in its turn: added up here
// first, they would be other sums than without recomputation. Those of parameters go to the sink of the outer walk. Readiness is
// the outer walk's business: it counts this node's own use of each parameter.
class InnerSink final : public GradientSink {
 public:
  explicit InnerSink(GradientSink& outer) : outer_(outer) {}
  void place(const AutogradMeta* stand_in, const Tensor& out, bool accumulate) { places_[stand_in] = {out, accumulate}; }
  // A stand-in that nothing contributed to.
  void finish(const AutogradMeta* stand_in) {
    GradientTarget& place = places_.at(stand_in);
    if (!place.accumulate) backend(place.tensor.device()).elementwise->fill(place.tensor, 0);
  }

  GradientTarget target(AutogradMeta& leaf) override {
    const auto own = places_.find(&leaf);
    if (own == places_.end()) return outer_.target(leaf);
    const GradientTarget now = own->second;
    own->second.accumulate = true;
    return now;
  }
  void ready(AutogradMeta&) override {}

 private:
  GradientSink& outer_;
  std::map<const AutogradMeta*, GradientTarget> places_;
};

// For each input the first one that is the same tensor: itself, unless an input was given twice.
std::vector<size_t> first_of_equals(const std::vector<Tensor>& inputs) {
  std::vector<size_t> first;
  for (size_t i = 0; i < inputs.size(); ++i) {
    size_t same = 0;
    while (!inputs[same].same(inputs[i])) ++same;
    first.push_back(same);
  }
  return first;
}

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
  return record("recompute", output, std::move(all),
                [forward, saved, first = first_of_equals(inputs)](const Tensor& grad, InputGradients& in) {
                  InnerSink sink(in.sink());
                  std::vector<Tensor> stand_ins;
                  for (size_t i = 0; i < saved.size(); ++i) {
                    stand_ins.push_back(first[i] < i ? stand_ins[first[i]] : detach(saved[i].get()));
                    if (first[i] == i && in.wants(i)) set_requires_grad(stand_ins.back(), true);
                  }
                  Tensor again;
                  {
                    GradMode recording(true);
                    CategoryScope category(Category::activation);
                    again = forward(stand_ins);
                  }
                  // Places for the inputs from i on, then the walk, while all of them are open.
                  const std::function<void(size_t)> walk_from = [&](size_t i) {
                    if (i == saved.size()) {
                      BackwardOptions options;
                      options.grad = grad;
                      options.sink = &sink;
                      backward(again, options);
                      return;
                    }
                    if (first[i] < i || !in.wants(i)) return walk_from(i + 1);
                    in.into(i, [&](Tensor& out, bool accumulate) {
                      const AutogradMeta* stand_in = find_meta(stand_ins[i]);
                      sink.place(stand_in, out, accumulate);
                      walk_from(i + 1);
                      sink.finish(stand_in);
                    });
                  };
                  walk_from(0);
                });
}

}  // namespace rz::autograd
