// Vocabulary
//   call      what a rank tells its peers at the beginning; short data are in it, or in a mailbox that it points to.
//   window    elements [begin, begin + window) of every chunk: all of them, or as many as staging windows hold.
//   step      what ranks do between two points at which each waits for all: filling staging windows (where any rank must), working.
#include "comm/shared_operation.h"

#include <algorithm>
#include <cstring>

#include "comm/reduce.h"
#include "comm/work.h"

namespace rz::comm {

namespace {

// Between two looks at control messages.
constexpr size_t kPieceBytes = 512 * 1024;

// How many of the `most` elements from `begin` on a chunk of this length has.
size_t inside(size_t length, size_t begin, size_t most) { return length <= begin ? 0 : std::min(most, length - begin); }

}  // namespace

SharedOperation::SharedOperation(SharedMemory& memory, const Group& group, const Fingerprint& print, std::byte* data, std::byte* own)
    : memory_(memory), group_(group), print_(print), digest_(print.digest()), data_(data), own_(own), n_(group.size()), me_(group.rank),
      element_(size_bytes(print.dtype)) {
  is_short_ = is_short(memory, print, n_);
}

bool SharedOperation::is_short(const SharedMemory& memory, const Fingerprint& print, int ranks) {
  const size_t elements = print.kind == CollectiveKind::all_gather ? chunk_of(print.count, 0, ranks).length() : print.count;
  return elements <= std::max(memory.mail_bytes_, Call::kPayloadBytes) / size_bytes(print.dtype);
}

size_t SharedOperation::payload_bytes(int member) const {
  switch (print_.kind) {
    case CollectiveKind::all_gather: return chunk(member).length() * element_;
    case CollectiveKind::broadcast: return member == print_.root ? print_.count * element_ : 0;
    default: return print_.count * element_;
  }
}

const std::byte* SharedOperation::payload() const { return print_.kind == CollectiveKind::all_gather ? own_ : data_; }

SharedOperation::Outcome SharedOperation::advance() {
  switch (stage_) {
    case Stage::tell:
      if (!tell()) return Outcome::blocked;
      stage_ = Stage::hear;
      [[fallthrough]];
    case Stage::hear:
      return hear();
    case Stage::fill:
      fill_window();
      end_step();
      stage_ = Stage::filled;
      return Outcome::moved;
    case Stage::filled:
      if (!all_stepped()) return Outcome::blocked;
      stage_ = Stage::work;
      return Outcome::moved;
    case Stage::work:
      if (!memory_.begin_visit(group_)) return Outcome::blocked;
      {
        const SharedMemory::VisitEnd end{memory_};
        work_piece();
      }
      if (done_ < std::min(window_, length_ - begin_)) return Outcome::moved;
      end_step();
      stage_ = Stage::worked;
      return Outcome::moved;
    case Stage::worked:
      if (!all_stepped()) return Outcome::blocked;
      if (print_.kind == CollectiveKind::all_reduce) {
        mark_bytes();  // what the others wrote
        if (is_staged(me_)) empty_window();
      }
      begin_ += window_;
      if (begin_ >= length_) return Outcome::done;
      done_ = 0;
      stage_ = any_staged_ ? Stage::fill : Stage::work;
      return Outcome::moved;
  }
  return Outcome::done;
}

bool SharedOperation::tell() {
  const size_t bytes = payload_bytes(me_);
  const bool by_mail = is_short_ && bytes > Call::kPayloadBytes;
  uint64_t address = reinterpret_cast<uint64_t>(payload());
  auto& owed = memory_.owed_[memory_.mails_ % 2];
  if (by_mail) {
    for (const auto& o : owed) {
      Peer& reader = memory_.peers_[static_cast<size_t>(o.peer)];
      // Who has called again, or ended that operation, has read it.
      if (reader.heard <= o.number && memory_.from(reader).steps.load(std::memory_order_acquire) < o.steps) return false;
    }
    owed.clear();
    std::byte* box = memory_.memory_->data() + memory_.window_bytes_ + memory_.mails_ % 2 * memory_.mail_bytes_;
    ++memory_.mails_;
    std::memcpy(box, payload(), bytes);
    address = reinterpret_cast<uint64_t>(box);
  }
  const bool is_reachable = is_short_ || bytes == 0 || memory_.can_be_reached(payload(), bytes);
  is_reachable_[static_cast<size_t>(me_)] = is_reachable;
  base_[static_cast<size_t>(me_)] = const_cast<std::byte*>(payload());
  for (int i = 0; i < n_; ++i) {
    if (i == me_) continue;
    Peer& p = peer(i);
    const uint64_t number = ++p.calls;
    Cell& cell = memory_.to(p);
    cell.prints[number % 2] = print_;
    Call& call = cell.calls[number % 2];
    call.digest = digest_;
    call.address = is_reachable ? address : Call::kOutOfReach;
    if (is_short_ && !by_mail && bytes > 0) std::memcpy(call.payload, payload(), bytes);
    call.number.store(number, std::memory_order_release);
    if (by_mail) owed.push_back({group_.members[static_cast<size_t>(i)], number, p.steps + 1});
  }
  return true;
}

SharedOperation::Outcome SharedOperation::hear() {
  const int before = heard_;
  for (; heard_ < n_; ++heard_) {
    if (heard_ == me_) continue;
    Peer& p = peer(heard_);
    Cell& cell = memory_.from(p);
    Call& call = cell.calls[p.calls % 2];
    if (call.number.load(std::memory_order_acquire) != p.calls) return heard_ > before ? Outcome::moved : Outcome::blocked;
    if (call.digest != digest_) throw Disagreement{group_.members[static_cast<size_t>(heard_)], cell.prints[p.calls % 2]};
    p.heard = p.calls;
    const auto i = static_cast<size_t>(heard_);
    const bool is_inside = is_short_ && payload_bytes(heard_) <= Call::kPayloadBytes;
    base_[i] = is_inside ? call.payload : memory_.translate(p, call.address);
    is_reachable_[i] = call.address != Call::kOutOfReach;
  }
  if (is_short_) {
    finish_short();
    return Outcome::done;
  }
  begin_windows();
  stage_ = any_staged_ ? Stage::fill : Stage::work;
  return Outcome::moved;
}

// The result, from what every rank gave; nobody waits for anybody after this.
void SharedOperation::finish_short() {
  if (print_.count > 0 && print_.kind != CollectiveKind::barrier) mark_bytes();
  if (reduces()) {
    std::array<const std::byte*, SharedMemory::kMostRanks> inputs;
    const std::span given(inputs.data(), static_cast<size_t>(n_));
    const bool all = print_.kind == CollectiveKind::all_reduce;
    // In rank order all chunks are alike.
    const bool at_once = all && print_.order == Order::ordered;
    for (int c = all ? 0 : me_; c < (all && !at_once ? n_ : (all ? 1 : me_ + 1)); ++c) {
      const Chunk piece = at_once ? Chunk{0, print_.count} : chunk(c);
      if (piece.length() == 0) continue;
      for (int k = 0; k < n_; ++k) {
        const int from = print_.order == Order::ring ? (c + 1 + k) % n_ : k;
        inputs[static_cast<size_t>(k)] = base_[static_cast<size_t>(from)] + piece.begin * element_;
      }
      std::byte* out = all ? data_ + piece.begin * element_ : own_;
      combine_all(print_.dtype, print_.op, print_.order, std::span<std::byte* const>(&out, 1), given, piece.length());
    }
  } else if (print_.kind == CollectiveKind::all_gather) {
    for (int i = 0; i < n_; ++i) copy_unless_same(data_ + chunk(i).begin * element_, base_[static_cast<size_t>(i)], payload_bytes(i));
  } else if (print_.kind == CollectiveKind::broadcast && me_ != print_.root) {
    copy_unless_same(data_, base_[static_cast<size_t>(print_.root)], print_.count * element_);
  }
  end_step();
}

void SharedOperation::begin_windows() {
  any_staged_ = std::any_of(is_reachable_.begin(), is_reachable_.begin() + n_, [](uint8_t reachable) { return reachable == 0; });
  length_ = print_.kind == CollectiveKind::broadcast ? print_.count : chunk(0).length();
  const size_t chunks = reduces() ? static_cast<size_t>(n_) : 1;
  window_ = any_staged_ ? std::min(length_, memory_.window_bytes_ / element_ / chunks) : length_;
}

std::byte* SharedOperation::place(int member, int c, size_t from) const {
  if (member != me_ && is_staged(member)) {
    const size_t slot = reduces() ? static_cast<size_t>(c) * window_ : 0;
    return peer(member).memory + (slot + from - begin_) * element_;
  }
  return base_[static_cast<size_t>(member)] + (from + (reduces() ? chunk(c).begin : 0)) * element_;
}

void SharedOperation::fill_window() {
  if (!is_staged(me_)) return;
  std::byte* staging = memory_.memory_->data();
  if (reduces()) {
    for (int c = 0; c < n_; ++c) {
      if (c == me_) continue;  // that chunk this rank adds itself
      const size_t length = inside(chunk(c).length(), begin_, window_);
      copy_unless_same(staging + static_cast<size_t>(c) * window_ * element_, place(me_, c, begin_), length * element_);
    }
    return;
  }
  const size_t given = payload_bytes(me_) / element_;
  copy_unless_same(staging, place(me_, me_, begin_), inside(given, begin_, window_) * element_);
}

void SharedOperation::empty_window() {
  const std::byte* staging = memory_.memory_->data();
  for (int c = 0; c < n_; ++c) {
    if (c == me_) continue;
    const size_t length = inside(chunk(c).length(), begin_, window_);
    copy_unless_same(place(me_, c, begin_), staging + static_cast<size_t>(c) * window_ * element_, length * element_);
  }
}

void SharedOperation::work_piece() {
  const size_t from = begin_ + done_;
  const size_t most = std::min(std::max<size_t>(1, kPieceBytes / element_), window_ - done_);
  done_ += most;
  if (reduces()) {
    const size_t length = inside(chunk(me_).length(), from, most);
    if (length > 0) {
      std::vector<const std::byte*> inputs;
      std::vector<std::byte*> outputs;
      const bool all = print_.kind == CollectiveKind::all_reduce;
      outputs.push_back(all ? place(me_, me_, from) : own_ + from * element_);
      for (int k = 0; k < n_; ++k) {
        const int member = print_.order == Order::ring ? (me_ + 1 + k) % n_ : k;
        std::byte* where = place(member, me_, from);
        inputs.push_back(where);
        if (all && member != me_) outputs.push_back(where);
      }
      combine_all(print_.dtype, print_.op, print_.order, outputs, inputs, length);
    }
  } else if (print_.kind == CollectiveKind::all_gather) {
    for (int k = 0; k < n_; ++k) {
      const int member = (me_ + k) % n_;  // ranks begin at different ones
      const size_t length = inside(chunk(member).length(), from, most);
      copy_unless_same(data_ + (chunk(member).begin + from) * element_, place(member, member, from), length * element_);
    }
  } else if (me_ != print_.root) {
    copy_unless_same(data_ + from * element_, place(print_.root, print_.root, from), inside(print_.count, from, most) * element_);
  }
  mark_bytes();
}

void SharedOperation::end_step() {
  stepped_ = 0;
  for (int i = 0; i < n_; ++i) {
    if (i == me_) continue;
    Peer& p = peer(i);
    memory_.to(p).steps.store(++p.steps, std::memory_order_release);
  }
}

// Peers make the same steps, so they count alike.
bool SharedOperation::all_stepped() {
  for (; stepped_ < n_; ++stepped_) {
    if (stepped_ == me_) continue;
    Peer& p = peer(stepped_);
    if (memory_.from(p).steps.load(std::memory_order_acquire) < p.steps) return false;
  }
  return true;
}

void SharedOperation::mark_bytes() {
  last_byte_ns_ = steady_now_ns();
  if (first_byte_ns_ == 0) first_byte_ns_ = last_byte_ns_;
}

}  // namespace rz::comm
