// What ranks tell each other beside payload: fingerprints of operations, and control messages.
//
// Both are plain bytes of fixed size, sent between builds of the same program on the same architecture (checked by
// `magic`). A Fingerprint rides ahead of every collective to the right neighbour. Control messages go from any rank to any
// other, at any time, and are answered by the progress thread even while its main thread computes.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <type_traits>

#include "comm/types.h"
#include "runtime/core/dtype.h"

namespace rz::comm {

struct Fingerprint {
  static constexpr uint32_t kMagic = 0x525a4631;  // "RZF1"
  static constexpr size_t kNameBytes = 64;

  uint32_t magic = kMagic;
  uint32_t group = 0;
  uint64_t sequence = 0;  // counts the operations of its group from 1
  uint64_t count = 0;
  uint64_t name_hash = 0;      // of the whole name; `text` may be cut
  uint64_t segment_bytes = 0;  // a setting that must agree, or messages would not match
  int32_t root = -1;           // broadcast only
  CollectiveKind kind = CollectiveKind::barrier;
  DType dtype = DType::u8;
  ReduceOp op = ReduceOp::sum;
  Order order = Order::ring;
  char text[kNameBytes] = {};  // the name, cut to fit, zero-terminated

  void set_name(std::string_view name);
  std::string_view name() const;
  bool operator==(const Fingerprint& other) const;
  // Of what == compares. Fingerprints that differ in one field never share a digest, others hardly ever.
  uint64_t digest() const;
};
static_assert(std::is_trivially_copyable_v<Fingerprint>);

// "op#7 grad.3(all_reduce, f32, 1024)"; with the group where it is not the whole job.
std::string describe(const Fingerprint& f);
// "count 12, not 10; op max, not sum": how `theirs` differs from `ours`.
std::string difference(const Fingerprint& ours, const Fingerprint& theirs);

// Why a rank's main thread has left; `running` = it has not.
enum class LeaveReason : uint8_t { running, finished, config_error, failed };

struct ControlMessage {
  enum class Type : uint8_t {
    abort,      // the job has failed: `text` says why
    roll_call,  // who is there? asked while waiting for operation `sequence` of `group`
    present,    // the answer: `issued` operations of `group` so far; `running` if busy with `now`
    left,       // the sender's main thread is done: `reason`, `text`
  };
  static constexpr size_t kTextBytes = 1500;

  Type type = Type::abort;
  LeaveReason reason = LeaveReason::running;
  bool running = false;
  int32_t from = -1;  // world rank
  uint32_t group = 0;
  uint64_t sequence = 0;
  uint64_t issued = 0;
  Fingerprint now;
  char text[kTextBytes] = {};

  void set_text(std::string_view value);
  std::string_view get_text() const;
};
static_assert(std::is_trivially_copyable_v<ControlMessage>);

}  // namespace rz::comm
