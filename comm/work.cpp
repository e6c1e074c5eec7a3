#include "comm/work.h"

#include <chrono>

#include "comm/control.h"
#include "comm/error.h"
#include "comm/progress.h"
#include "comm/wire.h"
#include "comm/work_state.h"
#include "runtime/core/device.h"

namespace rz::comm {

std::string Work::State::what() const { return pulse->who + " " + describe(print); }

void Work::State::note(const Group& group) {
  trace::Recorder* recorder = trace::current();
  if (recorder == nullptr || !recorder->recording()) return;
  record.name = recorder->intern(print.name());
  record.kind = static_cast<uint8_t>(print.kind);
  record.order = static_cast<uint8_t>(print.order);
  record.group = group.id;
  record.sequence = print.sequence;
  record.bytes = print.count * size_bytes(print.dtype);
  record.number = recorder->issue(group.id, group.members);
  log = recorder->log();
}

void Work::State::start() {
  std::lock_guard lock(mutex);
  times.started_ns = steady_now_ns();
}

void Work::State::take_up() {
  std::lock_guard lock(mutex);
  if (log) record.cpu_ns = -thread_cpu_ns();
  is_taken_up = true;
}

void Work::State::finish(const Moved& moved, std::string failure) {
  {
    std::lock_guard lock(mutex);
    times.first_byte_ns = moved.first_byte_ns;
    times.done_ns = moved.done_ns != 0 ? moved.done_ns : steady_now_ns();
    if (log) {
      record.queued_ns = times.queued_ns;
      record.started_ns = times.started_ns;
      record.first_byte_ns = moved.first_byte_ns;
      record.last_byte_ns = moved.last_byte_ns;
      record.done_ns = times.done_ns;
      if (is_taken_up) record.cpu_ns += thread_cpu_ns();
      record.sent_bytes = moved.sent_bytes;
      log->push(record);
    }
    error = std::move(failure);
    is_done.store(true, std::memory_order_release);
  }
  ended.notify_all();
}

void Work::wait() const {
  if (!state_) return;
  trace::Recorder* recorder = state_->record.number >= 0 ? trace::current() : nullptr;
  if (recorder == nullptr) return state_->wait();
  const int64_t begin_ns = steady_now_ns();
  const bool waits = !state_->has_ended();  // who need not wait need not read another clock
  const int64_t cpu_ns = waits ? thread_cpu_ns() : 0;
  state_->wait();
  const int64_t end_ns = steady_now_ns();
  recorder->wait(state_->record.number, begin_ns, end_ns, waits ? thread_cpu_ns() - cpu_ns : 0);
}

void Work::State::wait() {
  if (!has_ended()) {
    if (const auto progress = runner.lock()) progress->help(*this);
  }
  PulseWatch watch(*pulse);
  while (!has_ended()) {
    std::unique_lock lock(mutex);
    if (ended.wait_for(lock, PulseWatch::kSlice, [&] { return has_ended(); })) break;
    if (watch.sees_a_hang()) throw CommError(fmt::format("{}: this rank's progress thread has not moved for {:.1f} s", what(), watch.silent_s()));
  }
  if (!error.empty()) throw CommError(error);
}

bool Work::done() const {
  if (!state_) return true;
  if (state_->has_ended()) return true;
  if (const auto progress = state_->runner.lock()) progress->hurry();
  return false;
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
