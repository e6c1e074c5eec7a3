// What one rank put on the wire and took off it, counted by the transport where the bytes pass.
#pragma once

#include <array>
#include <cstdint>

#include "comm/types.h"

namespace rz::comm {

struct WireCount {
  uint64_t sent_bytes = 0;
  uint64_t received_bytes = 0;
  uint64_t sent_messages = 0;
  uint64_t received_messages = 0;

  WireCount operator-(const WireCount& o) const {
    return {sent_bytes - o.sent_bytes, received_bytes - o.received_bytes, sent_messages - o.sent_messages,
            received_messages - o.received_messages};
  }
  WireCount& operator+=(const WireCount& o) {
    sent_bytes += o.sent_bytes;
    received_bytes += o.received_bytes;
    sent_messages += o.sent_messages;
    received_messages += o.received_messages;
    return *this;
  }
  bool operator==(const WireCount&) const = default;
};

struct WireStats {
  std::array<WireCount, kCollectiveKinds> payload;  // by CollectiveKind; elements only
  WireCount header;                                 // fingerprints, one per collective
  WireCount control;                                // aborts, roll calls, leave-taking

  const WireCount& of(CollectiveKind kind) const { return payload[static_cast<size_t>(kind)]; }
};

}  // namespace rz::comm
