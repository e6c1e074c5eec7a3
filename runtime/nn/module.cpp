#include "runtime/nn/module.h"

#include "runtime/autograd/engine.h"
#include "runtime/autograd/recompute.h"
#include "runtime/core/random.h"
#include "runtime/kernels/backend.h"

namespace rz::nn {

namespace {
Tensor released_tensor(const std::string& name, const Shape& shape, DType dtype) {
  const int64_t bytes = checked_multiply(shape.numel(), static_cast<int64_t>(size_bytes(dtype)), "bytes of a parameter");
  return Tensor::over(Storage::make_released(static_cast<size_t>(bytes), Category::parameter, name), shape, dtype);
}
}  // namespace

void initial_values(const Parameter& parameter, uint64_t seed, int64_t begin, int64_t end, float* out) {
  RZ_CHECK(0 <= begin && begin <= end && end <= parameter.numel(), "elements [{}, {}) are outside '{}' {}", begin, end, parameter.name,
           parameter.shape().str());
  if (dry_run()) return;
  switch (parameter.init.kind) {
    case Init::Kind::zeros:
      std::fill(out, out + (end - begin), 0.0f);
      return;
    case Init::Kind::ones:
      std::fill(out, out + (end - begin), 1.0f);
      return;
    case Init::Kind::normal:
      break;
  }
  const Random random(seed, "init:" + parameter.name);
  const auto std = static_cast<float>(parameter.init.std);
  for (int64_t i = begin; i < end; ++i) out[i - begin] = std * random.normal(static_cast<uint64_t>(i));
}

void Module::visit(const std::function<void(Module&)>& f) {
  f(*this);
  for (const auto& child : children_) child.module->visit(f);
}

std::vector<Parameter*> Module::parameters() {
  std::vector<Parameter*> out;
  visit([&out](Module& m) {
    for (const auto& p : m.parameters_) out.push_back(p.get());
  });
  return out;
}

Parameter& Module::parameter(const std::string& name) {
  std::vector<std::string> names;
  for (Parameter* p : parameters()) {
    if (p->name == name) return *p;
    names.push_back(p->name);
  }
  throw Error(fmt::format("there is no parameter '{}'; there are {}", name, fmt::join(names, ", ")));
}

std::vector<Parameter*> Module::own_parameters() {
  std::vector<Parameter*> out;
  for (const auto& p : parameters_) out.push_back(p.get());
  return out;
}

int64_t Module::parameter_count() {
  int64_t count = 0;
  for (const Parameter* p : parameters()) count += p->numel();
  return count;
}

void Module::train(bool training) {
  visit([training](Module& m) { m.training_ = training; });
}

void Module::set_dtype(DType dtype) {
  for (Parameter* p : parameters()) {
    if (p->value.dtype() == dtype) continue;
    const bool wanted = autograd::requires_grad(p->value);
    p->value = released_tensor(p->name, p->shape(), dtype);
    autograd::set_requires_grad(p->value, wanted);
  }
}

void Module::materialize(uint64_t seed, DType dtype) {
  set_dtype(dtype);
  for (Parameter* p : parameters()) {
    Tensor initial = Tensor::empty(p->shape(), DType::f32, Category::parameter, p->name);
    initial_values(*p, seed, 0, p->numel(), initial.data<float>());
    if (dtype != DType::f32) {
      Tensor converted = Tensor::empty(p->shape(), dtype, Category::parameter, p->name);
      backend(initial.device()).elementwise->copy(initial, converted);
      initial = converted;
    }
    p->value.rebind_storage(initial.storage(), 0);
  }
}

Parameter& Module::register_parameter(std::string name, Shape shape, Init init, bool decay) {
  for (const auto& other : parameters_) RZ_CHECK(other->name != name, "parameter '{}' is registered twice", name);
  auto parameter = std::make_unique<Parameter>();
  parameter->value = released_tensor(name, shape, DType::f32);
  parameter->name = std::move(name);
  parameter->init = init;
  parameter->decay = decay;
  autograd::set_requires_grad(parameter->value, true);
  parameters_.push_back(std::move(parameter));
  return *parameters_.back();
}

void Module::register_module(std::string name, Module& child) {
  for (const auto& other : children_) RZ_CHECK(other.name != name, "module '{}' is registered twice", name);
  for (Parameter* p : child.parameters()) {
    p->name = fmt::format("{}.{}", name, p->name);
    p->value.storage()->set_owner(p->name);
  }
  children_.push_back({std::move(name), &child});
}

Tensor recomputed(Module& owner, const std::vector<Tensor>& inputs, const UnitForward& forward) {
  std::vector<Tensor> parameters;
  for (const Parameter* p : owner.parameters()) parameters.push_back(p->value);
  return autograd::recompute(forward, inputs, parameters);
}

Tensor run_unit(Module& unit, std::vector<Tensor> inputs, const UnitForward& forward) {
  if (auto* observer = unit.unit_observer()) return observer->run(unit, std::move(inputs), forward);
  return forward(inputs);
}

}  // namespace rz::nn
