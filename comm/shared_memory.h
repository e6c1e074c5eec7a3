// SharedMemory: the ranks of one machine see each other's memory. Who they are, what is mapped where, and the flags through which
// they tell each other about operations (comm/shared_operation.h).
//
// 1. A rank's piece of memory holds its staging window (the collectives' scratch), two mailboxes, and its board: for every peer a
//    cell, which the rank alone writes and that peer alone reads. All are in cache lines of their own.
// 2. Ranks of one process use each other's pointers. A process reaches what another has in its shared range
//    (runtime/core/allocator.h): that is mapped through /proc/PID/fd/FILE and has no name in any file system.
// 3. A rank that gives up closes: afterwards nobody touches its buffers. Whoever does so visits, never waits meanwhile, and looks for
//    closed boards first.
// Progress thread, or whoever runs in its place (comm/progress.h).
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "comm/control.h"
#include "comm/ring.h"
#include "runtime/core/storage.h"

namespace rz::comm {

// How ranks of one machine exchange data.
enum class IntraNode : uint8_t {
  automatic,  // shared, or messages where the system does not let them share, which is said on stderr
  shared,     // an error where they cannot
  messages,
};
// "auto", "shared", "messages"; ConfigError listing the choices for anything else.
IntraNode parse_intra_node(std::string_view text);
const char* name(IntraNode value);

// One operation, as a rank tells it to one peer: one cache line, for moving one takes a good part of a short operation's time.
struct alignas(64) Call {
  static constexpr size_t kPayloadBytes = 40;
  static constexpr uint64_t kOutOfReach = ~uint64_t{0};

  std::atomic<uint64_t> number{0};  // of the calls from this rank to this peer, from 1; written last
  uint64_t digest = 0;              // of its fingerprint
  uint64_t address = 0;             // of what peers read, as the caller sees it, or kOutOfReach
  std::byte payload[kPayloadBytes];  // very short data, of any type
};
static_assert(sizeof(Call) == 64);

// What a rank tells one peer. A call is overwritten by the next but one, and nobody is that far ahead of a peer.
struct Cell {
  Call calls[2];
  Fingerprint prints[2];                       // of the calls; read where digests differ
  alignas(64) std::atomic<uint64_t> steps{0};  // ends of steps so far, over all operations
};

struct Board {
  uint64_t token = 0;                // proves that a mapping is what it should be
  std::atomic<uint32_t> closed{0};
  alignas(64) std::atomic<uint64_t> visits{0};  // odd: touching peers' buffers
};

static_assert(sizeof(Cell) == 448 && sizeof(Board) == 128);

// Scratch, mailboxes and board of a rank of `size`; what a collective's progress thread holds from start to end.
size_t collective_memory_bytes(size_t segment_bytes, int size);

struct Unmap {
  size_t bytes = 0;
  void operator()(std::byte* range) const;
};

class SharedMemory {
 public:
  static constexpr int kMostRanks = 64;  // of one machine that share

  // `memory` has collective_memory_bytes(). COLLECTIVE over the whole job. Throws CommError, on all ranks alike, when ranks chose
  // differently, or sharing was demanded and is impossible.
  SharedMemory(Wire& wire, IntraNode choice, size_t segment_bytes, std::shared_ptr<Storage> memory);
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;

  // Do all members of the group, at least two, share memory? The same on all of them.
  bool reaches(const Group& group) const;
  // Why ranks of this machine that could share do not, on the first of them; empty elsewhere.
  const std::string& refusal() const { return refusal_; }

  // No peer touches this rank's buffers after this. Waits for those that do at this moment.
  void close() noexcept;

 private:
  friend class SharedOperation;

  // Lets threads of this process find the memory, until its end.
  struct Registration {
    uint64_t token = 0;
    ~Registration();
  };

  struct Peer {
    bool is_near = false;  // shares memory
    int cell = 0;          // its place among the machine's ranks, and its cell on this rank's board
    std::shared_ptr<Storage> keep;  // of a rank of this process
    std::unique_ptr<std::byte, Unmap> mapped;  // of another process: its shared range
    uint64_t range_begin = 0;
    std::byte* memory = nullptr;
    uint64_t calls = 0;  // told, and, between operations, heard
    uint64_t heard = 0;
    uint64_t steps = 0;  // told, and, between operations, made by the peer or about to be
  };
  struct Offer;

  std::byte* translate(const Peer& peer, uint64_t address) const {
    return peer.mapped == nullptr ? reinterpret_cast<std::byte*>(address) : peer.mapped.get() + (address - peer.range_begin);
  }
  Board& board_of(std::byte* memory) const { return *reinterpret_cast<Board*>(memory + board_offset_); }
  Cell& cell_of(std::byte* memory, int index) const {
    return reinterpret_cast<Cell*>(memory + board_offset_ + sizeof(Board))[index];
  }
  Cell& to(const Peer& peer) { return cell_of(memory_->data(), peer.cell); }
  Cell& from(const Peer& peer) { return cell_of(peer.memory, here_); }
  bool can_be_reached(const void* data, size_t bytes) const;

  // False, and no visit: some member has closed.
  bool begin_visit(const Group& group);
  void end_visit();
  struct VisitEnd {
    SharedMemory& memory;
    ~VisitEnd() { memory.end_visit(); }
  };

  std::string map(Peer& peer, const Offer& offer);  // what went wrong

  std::shared_ptr<Storage> memory_;
  Registration registration_;
  size_t board_offset_ = 0;
  size_t mail_bytes_ = 0;    // of a mailbox; two lie behind the scratch, before the board
  size_t window_bytes_ = 0;  // of the staging window, which is the scratch
  int rank_ = 0;
  int here_ = 0;             // this rank's place among the machine's
  bool is_process_ = false;  // all near ranks are threads of this process
  std::vector<Peer> peers_;  // by world rank
  std::string refusal_;

  // What peers may still read of each mailbox.
  struct Owed {
    int peer;
    uint64_t number, steps;
  };
  std::vector<Owed> owed_[2];
  uint64_t mails_ = 0;
};

}  // namespace rz::comm
