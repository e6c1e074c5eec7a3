// Where a rank's main thread spends its steps, op by op: `ringzero bench` prints it.
//
// A partition, not samples: the clock is read at every boundary (an op noted on the tape, a node of the backward walk done, the activity
// changed, a collective waited for), and the time since the boundary before belongs to what just ended. So the parts sum to the whole,
// and what no op claims shows under its activity. Where no profile is attached to a thread, every call site tests one pointer.
#pragma once

#include <cstdint>
#include <map>
#include <string_view>
#include <utility>

namespace rz {

class OpProfile {
 public:
  enum class Phase : uint8_t { forward, recompute, backward, other };
  struct Entry {
    int64_t calls = 0;
    int64_t ns = 0;
    double flops = 0;  // of products: matrices, convolutions, attention; a fused multiply-add counts as 2
  };
  using Entries = std::map<std::pair<std::string_view, Phase>, Entry>;

  // Forgets everything; the first part begins now.
  void restart();
  // What ended now. `name`: a literal.
  void ended(const char* name, Phase phase);
  // An op of a forward pass; inside a backward walk it is recomputed.
  void op_ended(const char* name) { ended(name, walks_ > 0 ? Phase::recompute : Phase::forward); }
  void add_flops(double flops) { flops_ += flops; }
  const Entries& entries() const { return entries_; }

  // A backward walk, for a scope's life.
  class Walk {
   public:
    Walk();
    ~Walk();
    Walk(const Walk&) = delete;
    Walk& operator=(const Walk&) = delete;

   private:
    OpProfile* profile_;
  };

  // The profile attached to this thread; null = nothing is measured.
  static OpProfile* current();
  class Attach {
   public:
    explicit Attach(OpProfile* profile);
    ~Attach();
    Attach(const Attach&) = delete;
    Attach& operator=(const Attach&) = delete;

   private:
    OpProfile* previous_;
  };

 private:
  Entries entries_;
  int64_t last_ns_ = 0;
  double flops_ = 0;
  int walks_ = 0;
};

const char* name(OpProfile::Phase phase);

// For kernels that multiply.
inline void count_flops(double flops) {
  if (OpProfile* profile = OpProfile::current()) profile->add_flops(flops);
}

}  // namespace rz
