// Whether this thread records operations for backward.
#pragma once

namespace rz::autograd {

bool grad_enabled();

// Sets the mode for a scope: GradMode no_grad(false).
class GradMode {
 public:
  explicit GradMode(bool enabled);
  ~GradMode();
  GradMode(const GradMode&) = delete;
  GradMode& operator=(const GradMode&) = delete;

 private:
  bool previous_;
};

// Nothing is recorded while one lives.
struct NoGrad : GradMode {
  NoGrad() : GradMode(false) {}
};

}  // namespace rz::autograd
