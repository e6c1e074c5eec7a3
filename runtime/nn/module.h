// Modules: trees of named parameters with a forward of their own. Single-device code; distribution is added from outside.
//
// * Construction is registration: members register themselves with their parent, in order; that order is the order of names,
//   of flat buffers and of reductions.
// * Parameters start released, so that a module costs nothing until somebody materializes it.
// * units() says which parts of a model are gathered, reduced and recomputed together (decision D11); whoever distributes the
//   model installs a UnitObserver, which run_unit() calls.
// Modules are neither copied nor moved: children and observers hold pointers into them.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "runtime/nn/parameter.h"

namespace rz::nn {

class Module;

using UnitForward = std::function<Tensor(const std::vector<Tensor>& inputs)>;

// Sees every run of a unit: may gather its weights, put boundaries into the graph, recompute.
class UnitObserver {
 public:
  virtual ~UnitObserver() = default;
  virtual Tensor run(Module& unit, std::vector<Tensor> inputs, const UnitForward& forward) = 0;
  // `layer`, which announces its uses, is about to read its own parameters.
  virtual void uses(const Module& layer) = 0;
};

// A part of a model that is sharded, reduced and recomputed as one.
struct Unit {
  std::string name;
  Module* module = nullptr;
};

class Module {
 public:
  Module() = default;
  Module(const Module&) = delete;
  Module& operator=(const Module&) = delete;
  virtual ~Module() = default;

  // All parameters in registration order, each once.
  std::vector<Parameter*> parameters();
  // The one called so; rz::Error listing the names when there is none.
  Parameter& parameter(const std::string& name);
  int64_t parameter_count();

  // This module and all below it, parents first.
  void visit(const std::function<void(Module&)>& f);
  // Registered here, not below.
  std::vector<Parameter*> own_parameters();

  // In forward order. Parameters in none of them form the outermost unit.
  virtual std::vector<Unit> units() { return {}; }
  // Every forward calls use() before it reads a parameter of its own: weights need be there then, not when its unit begins.
  virtual bool announces_uses() const { return false; }
  void set_unit_observer(UnitObserver* observer) { observer_ = observer; }
  UnitObserver* unit_observer() const { return observer_; }

  // Training or evaluation mode, for this module and all below it.
  void train(bool training);
  bool training() const { return training_; }

  // Makes `dtype` the element type of every parameter. Their tensors are new and released afterwards: call it before anything
  // gives them memory or holds them.
  void set_dtype(DType dtype);

  // Gives every parameter memory of its own (Category::parameter), of type `dtype`, and its initial values: for use on one
  // device without sharding. float64 is for gradient checks.
  void materialize(uint64_t seed, DType dtype = DType::f32);

 protected:
  // The returned reference lives as long as the module.
  Parameter& register_parameter(std::string name, Shape shape, Init init, bool decay);
  // `child` must be complete: its parameters' names get "`name`." in front.
  void register_module(std::string name, Module& child);
  void use() const {
    if (observer_ != nullptr) observer_->uses(*this);
  }

 private:
  std::vector<std::unique_ptr<Parameter>> parameters_;
  struct Child {
    std::string name;
    Module* module = nullptr;
  };
  std::vector<Child> children_;
  UnitObserver* observer_ = nullptr;
  bool training_ = true;
};

// `forward`, a part of `owner` that uses no parameters but owner's, keeping only its inputs for backward (autograd/recompute.h).
// Parameters that `forward` does not use may be among owner's.
Tensor recomputed(Module& owner, const std::vector<Tensor>& inputs, const UnitForward& forward);

// Runs a unit's forward, through its observer when it has one.
Tensor run_unit(Module& unit, std::vector<Tensor> inputs, const UnitForward& forward);

}  // namespace rz::nn
