// SharedOperation: one collective among ranks that share memory, as a machine that never waits: advance() does what can be done now.
//
// Every rank tells every other its fingerprint, and where its data is, and hears theirs: so ranks that disagree are found before any
// payload is used. Then, for short data, which came with the call or lies in the callers' mailboxes, each rank alone computes its
// result. For the rest:
//   reduce_scatter   a rank adds its own chunk straight from all ranks' buffers
//   all_reduce       and writes the sum to all of them
//   all_gather       a rank copies the chunks of the others; broadcast: the root's buffer
// with the additions of each element, and their roundings, in the order of the message path (comm/ring.h): bits do not differ.
// A buffer that peers cannot reach passes through its rank's staging window, a window at a time.
#pragma once

#include <array>

#include "comm/shared_memory.h"

namespace rz::comm {

class SharedOperation {
 public:
  // A peer that calls something else.
  struct Disagreement {
    int peer;  // world rank
    Fingerprint theirs;
  };
  enum class Outcome : uint8_t { blocked, moved, done };

  // Any collective but a probe. `group` and the buffers outlive it.
  SharedOperation(SharedMemory& memory, const Group& group, const Fingerprint& print, std::byte* data, std::byte* own);

  // Whether such an operation of `ranks` ranks is over for the others once this one has told them, however late it looks for itself.
  static bool is_short(const SharedMemory& memory, const Fingerprint& print, int ranks);

  // Tells the others, if that is possible at this moment; else an advance() does.
  void begin() {
    if (stage_ == Stage::tell && tell()) stage_ = Stage::hear;
  }
  // blocked: a peer must do something first. Throws Disagreement, again at every call.
  Outcome advance();

  // When payload of peers was first and last here; 0 = none.
  int64_t first_byte_ns() const { return first_byte_ns_; }
  int64_t last_byte_ns() const { return last_byte_ns_; }

 private:
  using Peer = SharedMemory::Peer;
  enum class Stage : uint8_t { tell, hear, fill, filled, work, worked };

  bool tell();
  Outcome hear();
  void finish_short();
  void begin_windows();
  void fill_window();
  void work_piece();
  void empty_window();
  void end_step();
  bool all_stepped();
  void mark_bytes();

  Peer& peer(int member) const { return memory_.peers_[static_cast<size_t>(group_.members[static_cast<size_t>(member)])]; }
  bool reduces() const { return print_.kind == CollectiveKind::all_reduce || print_.kind == CollectiveKind::reduce_scatter; }
  Chunk chunk(int member) const { return chunk_of(print_.count, member, n_); }
  size_t payload_bytes(int member) const;
  const std::byte* payload() const;
  // Where peers find elements [from, ...) of a chunk of `member`; for a gather or broadcast, of what that rank gives.
  std::byte* place(int member, int chunk, size_t from) const;
  bool is_staged(int member) const { return is_reachable_[static_cast<size_t>(member)] == 0; }

  SharedMemory& memory_;
  const Group& group_;
  const Fingerprint print_;
  const uint64_t digest_;
  std::byte* data_;
  std::byte* own_;
  int n_;
  int me_;
  size_t element_;
  bool is_short_;
  Stage stage_ = Stage::tell;
  int heard_ = 0;      // members, from the first
  int stepped_ = 0;    // the same of the current step
  bool any_staged_ = false;
  size_t length_ = 0;  // elements of the longest chunk, or of a broadcast
  size_t window_ = 0;  // elements of a chunk in a window
  size_t begin_ = 0;   // of the window, in the chunk
  size_t done_ = 0;    // of the window
  // By member. Arrays, since short operations take less time than allocating takes.
  std::array<std::byte*, SharedMemory::kMostRanks> base_;  // what it told
  std::array<uint8_t, SharedMemory::kMostRanks> is_reachable_;
  int64_t first_byte_ns_ = 0;
  int64_t last_byte_ns_ = 0;
};

}  // namespace rz::comm
