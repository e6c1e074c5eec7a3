#include "comm/transport.h"

namespace rz::comm {

void Transport::count(Channel channel, size_t bytes, bool sent) {
  if (!counts_) return;
  Counter& c = channel.header ? header_ : payload_[static_cast<size_t>(channel.kind)];
  add(sent ? c.sent_bytes : c.received_bytes, bytes);
  add(sent ? c.sent_messages : c.received_messages, 1);
}

WireStats Transport::stats() const {
  const auto read = [](const Counter& c) {
    return WireCount{c.sent_bytes.load(std::memory_order_relaxed), c.received_bytes.load(std::memory_order_relaxed),
                     c.sent_messages.load(std::memory_order_relaxed), c.received_messages.load(std::memory_order_relaxed)};
  };
  WireStats out;
  for (size_t i = 0; i < payload_.size(); ++i) out.payload[i] = read(payload_[i]);
  out.header = read(header_);
  out.control = read(control_);
  return out;
}

}  // namespace rz::comm
