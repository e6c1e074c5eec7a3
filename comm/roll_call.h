// RollCall: who is there? Asked by a progress thread that has waited for long; turns the answers, and what is known of ranks
// that left, into the sentence of an error. Holds no transport and no lock: Progress feeds it. Progress thread only.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "comm/control.h"
#include "comm/wire.h"

namespace rz::comm {

// "rank 3", "ranks 0, 2, 5", "ranks 0, 1, 2, 3, 4, 5, 6, 7 and 12 more".
std::string rank_list(const std::vector<int>& ranks);

// What the main thread of a rank said when it left.
struct Departure {
  LeaveReason reason = LeaveReason::running;
  std::string text;
};

class RollCall {
 public:
  void begin(int world_size, int64_t now_ns);
  void end() { asked_ns_ = 0; }
  bool is_open() const { return asked_ns_ != 0; }
  int64_t asked_ns() const { return asked_ns_; }
  void answer(const ControlMessage& present);
  bool answered(int world_rank) const { return answers_[static_cast<size_t>(world_rank)].from >= 0; }

  // Has a member of the group left without ever calling operation `mine`? Then waiting is pointless. Says so when all who left
  // have answered, or had time to.
  bool someone_left_without(const Fingerprint& mine, const Group& group, const std::vector<Departure>& departures, int64_t now_ns) const;

  // "no answer from rank 2: dead or stopped; rank 1 answers but has not called op#7 (has called 6); rank 0 waits in op#7 too".
  std::string sentence(const Fingerprint& mine, const Group& group, const std::vector<Departure>& departures) const;
  // "no answer from rank 2", or "all ranks answer".
  std::string missing(int self) const;

 private:
  int64_t asked_ns_ = 0;
  std::vector<ControlMessage> answers_;  // from = -1: none yet
};

}  // namespace rz::comm
