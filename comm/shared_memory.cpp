#include "comm/shared_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <fstream>
#include <map>
#include <mutex>
#include <new>
#include <thread>

#include "comm/error.h"
#include "comm/work.h"
#include "runtime/core/allocator.h"
#include "runtime/core/host.h"
#include "runtime/core/random.h"

namespace rz::comm {

namespace {

constexpr size_t kLine = 64;
// A mailbox is at most this and an eighth of the scratch.
constexpr size_t kMailBytes = 64 * 1024;
// How long a closing process waits for a visitor, which may be dead.
constexpr int64_t kLongestVisitNs = 200'000'000;

constexpr size_t round_up(size_t value) { return (value + kLine - 1) / kLine * kLine; }

size_t scratch_bytes_of(size_t segment_bytes) { return round_up(kRingWindow * segment_bytes); }
size_t mail_bytes_of(size_t segment_bytes) { return std::min(kMailBytes, scratch_bytes_of(segment_bytes) / 8 / kLine * kLine); }
// Behind the scratch, and not in it: an operation by messages, which may use all of that, does not wait for those who have yet to read.
size_t board_offset_of(size_t segment_bytes) { return scratch_bytes_of(segment_bytes) + 2 * mail_bytes_of(segment_bytes); }

// Ranks that agree on it may try to map each other's memory: one kernel, one start of it, one host (or container) name.
uint64_t machine_identity() {
  std::string boot;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> boot;
  return stable_hash(boot + " " + host_name());
}

// The memory of this process's ranks, by token.
struct Registry {
  std::mutex mutex;
  std::map<uint64_t, std::weak_ptr<Storage>> ranks;

  static Registry& get() {
    static Registry* instance = new Registry;
    return *instance;
  }
  uint64_t add(const std::shared_ptr<Storage>& memory) {
    static uint64_t made = 0;
    std::lock_guard lock(mutex);
    const uint64_t token = stable_hash(fmt::format("{} {} {}", ::getpid(), ++made, steady_now_ns()));
    ranks[token] = memory;
    return token;
  }
  std::shared_ptr<Storage> find(uint64_t token) {
    std::lock_guard lock(mutex);
    const auto found = ranks.find(token);
    return found == ranks.end() ? nullptr : found->second.lock();
  }
  void remove(uint64_t token) {
    std::lock_guard lock(mutex);
    ranks.erase(token);
  }
};

}  // namespace

IntraNode parse_intra_node(std::string_view text) {
  for (const IntraNode value : {IntraNode::automatic, IntraNode::shared, IntraNode::messages}) {
    if (text == name(value)) return value;
  }
  throw ConfigError(fmt::format("unknown way between ranks of a machine '{}': choose auto, shared, messages", text));
}

const char* name(IntraNode value) {
  return value == IntraNode::automatic ? "auto" : value == IntraNode::shared ? "shared" : "messages";
}

size_t collective_memory_bytes(size_t segment_bytes, int size) {
  const auto cells = static_cast<size_t>(std::min(size, SharedMemory::kMostRanks));
  return size == 1 ? scratch_bytes_of(segment_bytes) : board_offset_of(segment_bytes) + sizeof(Board) + cells * sizeof(Cell);
}

// What a rank tells all others about itself.
struct SharedMemory::Offer {
  uint64_t machine = 0;
  uint64_t token = 0;
  uint64_t memory = 0;  // address of the scratch and the board
  uint64_t segment_bytes = 0;
  uint64_t range_begin = 0;
  uint64_t range_bytes = 0;
  int32_t process = 0;
  int32_t file = -1;
  IntraNode choice = IntraNode::automatic;
};

SharedMemory::SharedMemory(Wire& wire, IntraNode choice, size_t segment_bytes, std::shared_ptr<Storage> memory)
    : memory_(std::move(memory)),
      board_offset_(board_offset_of(segment_bytes)),
      mail_bytes_(mail_bytes_of(segment_bytes)),
      window_bytes_(scratch_bytes_of(segment_bytes)),
      rank_(wire.rank()) {
  const auto n = static_cast<size_t>(wire.size());
  Board& board = *new (memory_->data() + board_offset_) Board;
  for (int i = 0; i < std::min(wire.size(), kMostRanks); ++i) new (&cell_of(memory_->data(), i)) Cell;
  board.token = registration_.token = Registry::get().add(memory_);

  const allocator::SharedRange range = allocator::shared_range();
  std::vector<Offer> offers(n);
  offers[static_cast<size_t>(rank_)] = {machine_identity(), board.token, reinterpret_cast<uint64_t>(memory_->data()), segment_bytes,
                                        range.begin, range.bytes, ::getpid(), range.file, choice};
  const Scratch no_scratch{nullptr, 0, size_t{1} << 20};  // a gather needs none
  const auto gather = [&](auto& all) {
    const size_t one = sizeof all[0];
    auto* bytes = reinterpret_cast<std::byte*>(all.data());
    all_gather(wire, no_scratch, bytes + static_cast<size_t>(rank_) * one, bytes, n * one, DType::u8);
  };
  gather(offers);

  peers_ = std::vector<Peer>(n);
  const Offer& mine = offers[static_cast<size_t>(rank_)];
  int places = 0;
  std::string refusal;
  for (size_t r = 0; r < n; ++r) {
    if (offers[r].choice != choice) {
      throw CommError(fmt::format("rank {} was started with --intra-node {}, rank {} with {}", rank_, name(choice), r, name(offers[r].choice)));
    }
    if (offers[r].machine != mine.machine) continue;
    if (static_cast<int>(r) == rank_) here_ = places;
    peers_[r].cell = places++;
    if (static_cast<int>(r) == rank_ || choice == IntraNode::messages || !refusal.empty()) continue;
    // Segments that differ are for the fingerprints of messages to tell.
    refusal = offers[r].segment_bytes != segment_bytes ? fmt::format("rank {} has segments of {} bytes, not {}", r, offers[r].segment_bytes, segment_bytes)
                                                       : map(peers_[r], offers[r]);
  }
  if (places > kMostRanks) refusal = fmt::format("{} ranks on one machine; at most {} can share memory", places, kMostRanks);

  // All ranks of a machine decide alike.
  std::vector<uint8_t> refused(n);
  refused[static_cast<size_t>(rank_)] = refusal.empty() ? 0 : 1;
  gather(refused);
  size_t who = n;
  for (size_t r = n; r-- > 0;) {
    if (refused[r] != 0 && (choice == IntraNode::shared || offers[r].machine == mine.machine)) who = r;
  }
  if (who < n) {
    if (refusal.empty()) refusal = fmt::format("rank {} cannot reach all ranks of its machine", who);
    if (choice == IntraNode::shared) throw CommError(fmt::format("--intra-node shared is impossible: {}", refusal));
    if (here_ == 0) refusal_ = refusal;
  }
  for (size_t r = 0; r < n; ++r) {
    peers_[r].is_near = who == n && choice != IntraNode::messages && offers[r].machine == mine.machine;
    if (peers_[r].is_near && static_cast<int>(r) != rank_) is_process_ = peers_[r].mapped == nullptr;
  }
}

SharedMemory::Registration::~Registration() { Registry::get().remove(token); }

void Unmap::operator()(std::byte* range) const { ::munmap(range, bytes); }

std::string SharedMemory::map(Peer& peer, const Offer& offer) {
  if (offer.process == ::getpid()) {
    peer.keep = Registry::get().find(offer.token);
    if (peer.keep != nullptr) {
      peer.memory = peer.keep->data();
      return {};
    }
  }
  const std::string path = fmt::format("/proc/{}/fd/{}", offer.process, offer.file);
  if (offer.file < 0) return fmt::format("process {} has no memory that can be shared", offer.process);
  const int file = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
  if (file < 0) return fmt::format("cannot open {}: {}", path, std::strerror(errno));
  void* mapped = ::mmap(nullptr, offer.range_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, file, 0);
  const int error = errno;
  const off_t length = ::lseek(file, 0, SEEK_END);
  ::close(file);
  if (mapped == MAP_FAILED) return fmt::format("cannot map {}: {}", path, std::strerror(error));
  ::madvise(mapped, offer.range_bytes, MADV_DONTDUMP);
  peer.mapped = {static_cast<std::byte*>(mapped), Unmap{offer.range_bytes}};
  peer.range_begin = offer.range_begin;
  const bool fits = static_cast<uint64_t>(length) >= offer.range_bytes && offer.memory >= offer.range_begin &&
                    offer.memory - offer.range_begin + board_offset_ + sizeof(Board) <= offer.range_bytes;
  if (fits) peer.memory = translate(peer, offer.memory);
  // In another name space of processes, the same number is another process.
  if (!fits || board_of(peer.memory).token != offer.token) return fmt::format("{} is not the memory of that rank", path);
  return {};
}

bool SharedMemory::reaches(const Group& group) const {
  if (group.size() < 2 || window_bytes_ < 8 * static_cast<size_t>(group.size())) return false;
  return std::all_of(group.members.begin(), group.members.end(), [&](int r) { return peers_[static_cast<size_t>(r)].is_near; });
}

bool SharedMemory::can_be_reached(const void* data, size_t bytes) const {
  if (is_process_) return true;
  const allocator::SharedRange range = allocator::shared_range();
  const auto address = reinterpret_cast<uintptr_t>(data);
  return range.file >= 0 && address >= range.begin && bytes <= range.bytes && address - range.begin <= range.bytes - bytes;
}

bool SharedMemory::begin_visit(const Group& group) {
  board_of(memory_->data()).visits.fetch_add(1);
  for (const int r : group.members) {
    if (r == rank_ || board_of(peers_[static_cast<size_t>(r)].memory).closed.load() == 0) continue;
    end_visit();
    return false;
  }
  return true;
}

void SharedMemory::end_visit() { board_of(memory_->data()).visits.fetch_add(1); }

void SharedMemory::close() noexcept {
  if (board_of(memory_->data()).closed.exchange(1) != 0) return;
  for (size_t r = 0; r < peers_.size(); ++r) {
    const Peer& peer = peers_[r];
    if (!peer.is_near || static_cast<int>(r) == rank_) continue;
    const std::atomic<uint64_t>& visits = board_of(peer.memory).visits;
    const uint64_t seen = visits.load();
    const int64_t begun = steady_now_ns();
    while (seen % 2 == 1 && visits.load() == seen) {
      if (peer.mapped != nullptr && steady_now_ns() - begun > kLongestVisitNs) break;
      // A real-time thread that only yields would keep a visitor without that right from its core.
      std::this_thread::sleep_for(std::chrono::microseconds(20));
    }
  }
}

}  // namespace rz::comm
