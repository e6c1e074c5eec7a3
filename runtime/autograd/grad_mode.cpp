#include "runtime/autograd/grad_mode.h"

namespace rz::autograd {

namespace {
thread_local bool t_enabled = true;
}

bool grad_enabled() { return t_enabled; }

GradMode::GradMode(bool enabled) : previous_(t_enabled) { t_enabled = enabled; }
GradMode::~GradMode() { t_enabled = previous_; }

}  // namespace rz::autograd
