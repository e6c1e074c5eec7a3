// EmulatedTransport: another transport, slowed down to the links of comm/link_model.h. Bytes and their order stay; a receive is
// done when its message would have arrived over such links, a send when its last byte would have left.
//
// 1. Ahead of each message, through the transport below, goes a stamp: the time at which its first byte reaches the receiver, on
//    the clock that all ranks of a machine share. The sender books its port when it posts, the receiver its own.
// 2. Waiting for a link sleeps: pause() ends at the next moment at which the request tested last can be done.
// 3. stats() counts what the transport above the emulation would: no stamps.
// 4. Ports of nodes are in memory that all ranks map, so all ranks must be on one machine (network namespaces are fine).
// The transport below must be faster than the links, or its own time shows.
#pragma once

#include <memory>

#include "comm/link_model.h"
#include "comm/transport.h"

namespace rz::comm {

// COLLECTIVE over the ranks of `inner`; called by the progress thread. Throws ConfigError, on all
// ranks alike and with `inner` closed, when the network does not fit the ranks or they are on several machines; CommError when a
// rank does not answer within `deadline_s`.
std::unique_ptr<Transport> make_emulated_transport(std::unique_ptr<Transport> inner, const NetworkSpec& network, double deadline_s);

}  // namespace rz::comm
