#include "runtime/core/op_profile.h"

#include "runtime/core/trace.h"

namespace rz {

namespace {
thread_local OpProfile* attached = nullptr;
}  // namespace

void OpProfile::restart() {
  entries_.clear();
  flops_ = 0;
  last_ns_ = steady_now_ns();
}

void OpProfile::ended(const char* name, Phase phase) {
  const int64_t now = steady_now_ns();
  Entry& entry = entries_[{name, phase}];
  ++entry.calls;
  entry.ns += now - last_ns_;
  entry.flops += flops_;
  flops_ = 0;
  last_ns_ = now;
}

OpProfile::Walk::Walk() : profile_(current()) {
  if (profile_ != nullptr) ++profile_->walks_;
}
OpProfile::Walk::~Walk() {
  if (profile_ != nullptr) --profile_->walks_;
}

OpProfile* OpProfile::current() { return attached; }

OpProfile::Attach::Attach(OpProfile* profile) : previous_(attached) { attached = profile; }
OpProfile::Attach::~Attach() { attached = previous_; }

const char* name(OpProfile::Phase phase) {
  switch (phase) {
    case OpProfile::Phase::forward: return "forward";
    case OpProfile::Phase::recompute: return "recompute";
    case OpProfile::Phase::backward: return "backward";
    case OpProfile::Phase::other: break;
  }
  return "other";
}

}  // namespace rz
