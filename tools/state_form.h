// The closed form of a job's model states: bytes per parameter of weights, gradients and optimizer state that a rank keeps from step to
// step, by precision, optimizer, reduction and stage. Says nothing of activations, buffers in flight and scratch.
#pragma once

#include <string>

#include "proto/job.pb.h"

namespace rz::tools {

struct StateForm {
  double full = 0;     // on every rank
  double sharded = 0;  // divided by `shards`
  int shards = 1;      // the ranks, or those of a group

  // Of a rank, for so many parameters with their padding.
  double bytes(double parameters) const { return full * parameters + sharded * parameters / shards; }
  // "4 P + 12 P/N", with k for N where shards lie within groups.
  std::string text() const;
  bool grouped = false;
};

// Of the job on `ranks` ranks, whatever stage it names, in this one.
StateForm state_form(const ringzero::Job& job, int64_t stage, int ranks);

}  // namespace rz::tools
