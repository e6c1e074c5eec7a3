#include "comm/work.h"

#include <chrono>

#include "comm/error.h"
#include "comm/work_state.h"
#include "runtime/core/device.h"

namespace rz::comm {

int64_t steady_now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

void Work::State::start() {
  std::lock_guard lock(mutex);
  times.started_ns = steady_now_ns();
}

void Work::State::finish(int64_t first_byte_ns, std::string failure) {
  {
    std::lock_guard lock(mutex);
    times.first_byte_ns = first_byte_ns;
    times.done_ns = steady_now_ns();
    error = std::move(failure);
    is_done = true;
  }
  ended.notify_all();
}

void Work::wait() const {
  if (!state_) return;
  constexpr std::chrono::milliseconds kSlice{100};
  std::unique_lock lock(state_->mutex);
  // The progress thread ends every operation within its deadline. Should it hang itself (inside the MPI library, say), its
  // beats stop: that is counted in slices that this thread has lived through, so that a stopped process is not blamed.
  uint64_t beats = state_->pulse->beats.load(std::memory_order_relaxed);
  double silent_s = 0;
  while (!state_->ended.wait_for(lock, kSlice, [&] { return state_->is_done; })) {
    const uint64_t now = state_->pulse->beats.load(std::memory_order_relaxed);
    silent_s = now == beats ? silent_s + 0.1 : 0;
    beats = now;
    if (silent_s > state_->pulse->deadline_s + 2) {
      throw CommError(fmt::format("{}: this rank's progress thread has not moved for {:.1f} s", state_->what, silent_s));
    }
  }
  if (!state_->error.empty()) throw CommError(state_->error);
}

bool Work::done() const {
  if (!state_) return true;
  std::lock_guard lock(state_->mutex);
  return state_->is_done;
}

// CPU streams only so far: whoever uses the result next is this thread.
void Work::join(Stream& stream) const {
  RZ_CHECK(stream.device().type == DeviceType::cpu, "Work::join: no communication backend for this stream's device");
  wait();
}

WorkTimes Work::times() const {
  if (!state_) return {};
  std::lock_guard lock(state_->mutex);
  return state_->times;
}

}  // namespace rz::comm
