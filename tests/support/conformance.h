// One conformance suite for every communicator: all collectives x sizes x types x operations x orders, on whatever ranks it
// is given. Inputs are small integers whose results are exact in any order and any type, so every comparison is equality.
#pragma once

#include <string>
#include <vector>

#include "comm/communicator.h"

namespace rz::test {

// Sizes that a communicator of n ranks with this segment size must get right: none, one, around n, a prime, segment edges.
std::vector<size_t> conformance_sizes(int ranks, size_t segment_bytes);

// Runs the suite; returns what was wrong on this rank (at most a few lines). COLLECTIVE.
std::vector<std::string> check_conformance(comm::Communicator& comm, size_t segment_bytes);

}  // namespace rz::test
