// Vocabulary
//   chunk     what one rank owns of the buffer (types.h); the ring moves N chunks round N ranks.
//   segment   a slice of a chunk. A chunk is sent as its segments, in order, so that a rank passes on the beginning of a
//             chunk while its end is still arriving. An empty chunk has no segments and no messages.
//   step      one hop of a chunk. In step s, rank r sends chunk first-s and receives chunk first-s-1 (mod N): what arrives in
//             one step leaves in the next.
// A reduce-scatter is N-1 steps from first = r-1, all of them combining, and ends with chunk r complete on rank r. An
// all-gather is N-1 copying steps from first = r. So an all-reduce is one pass of 2(N-1) steps from first = r-1, the first
// half combining, the second copying: a segment is passed on the moment its sum is complete.
// Chunk c starts on rank c+1 and is summed in the order c+1, c+2, ..., c, whatever the sizes of segments.
#include "comm/ring.h"

#include <algorithm>
#include <cstring>
#include <deque>
#include <vector>

#include "comm/reduce.h"

namespace rz::comm {

namespace {

class RingPass {
 public:
  RingPass(Wire& wire, const Scratch& scratch, std::byte* full, size_t count, const Reduction& reduction)
      : wire_(wire), scratch_(scratch), full_(full), count_(count), reduction_(reduction), element_(size_bytes(reduction.dtype)) {
    segment_ = segment_elements(scratch.segment_bytes, element_);
  }

  // Runs `combining` steps and then `copying` steps. The sum of this rank's chunk goes to `own` if given, else stays in full.
  void run(int first, int combining, int copying, std::byte* own) {
    first_ = first;
    combining_ = combining;
    steps_ = combining + copying;
    send_chunk(0);
    Place post = first_place();  // the next receive to post; never behind `here`
    for (Place here = first_place(); here.step < steps_; here = next(here)) {
      post_ahead(post);
      if (receives_.empty()) post_one(post);
      handle(here, own);
    }
    for (Sent& sent : sends_) wire_.wait(sent.posted);
    sends_.clear();
  }

 private:
  // A segment of the chunk received in a step.
  struct Place {
    int step = 0;
    size_t segment = 0;
  };
  struct Sent {
    Place place;
    Posted posted;
  };

  static bool before(Place a, Place b) { return a.step != b.step ? a.step < b.step : a.segment < b.segment; }

  Chunk chunk_sent(int step) const {
    const int n = wire_.size();
    return chunk_of(count_, ((first_ - step) % n + n) % n, n);
  }
  Chunk chunk_received(int step) const { return chunk_sent(step + 1); }
  size_t segments(Chunk c) const { return (c.length() + segment_ - 1) / segment_; }
  Chunk slice(Chunk c, size_t segment) const {
    const size_t begin = c.begin + segment * segment_;
    return {begin, std::min(begin + segment_, c.end)};
  }
  std::byte* at(size_t element) const { return full_ + element * element_; }

  Place first_place() const { return skip_empty({0, 0}); }
  Place next(Place p) const { return skip_empty({p.step, p.segment + 1}); }
  Place skip_empty(Place p) const {
    while (p.step < steps_ && p.segment >= segments(chunk_received(p.step))) p = {p.step + 1, 0};
    return p;
  }

  // Verb: send.
  void send_chunk(int step) {
    const Chunk c = chunk_sent(step);
    for (size_t j = 0; j < segments(c); ++j) {
      const Chunk s = slice(c, j);
      send_segment({step, j}, at(s.begin), s.length());
    }
  }
  void send_segment(Place place, const std::byte* from, size_t elements) {
    sends_.push_back({place, wire_.send(wire_.right(), from, elements * element_)});
  }

  void retire_sends() {
    while (!sends_.empty() && sends_.front().posted.test()) sends_.pop_front();
  }

  // An all-reduce receives, N-1 steps later, into memory that it sent from: is that send over?
  bool landing_is_free(Place p) {
    retire_sends();
    const Place sent{p.step - (wire_.size() - 1), p.segment};
    return sends_.empty() || before(sent, sends_.front().place);
  }

  void post_ahead(Place& post) {
    while (receives_.size() < kRingWindow && post.step < steps_ && landing_is_free(post)) post_one(post);
  }
  void post_one(Place& post) {
    while (!landing_is_free(post)) wire_.wait(sends_.front().posted);
    const Chunk s = slice(chunk_received(post.step), post.segment);
    // What is copied lands where it belongs; what is combined lands in scratch.
    std::byte* landing = post.step >= combining_ ? at(s.begin) : scratch_.data + (posted_++ % kRingWindow) * segment_ * element_;
    receives_.push_back(wire_.receive(wire_.left(), landing, s.length() * element_));
    post = next(post);
  }

  // Verbs: receive-combine-send, receive-combine(-send), receive-copy-send, receive-copy.
  void handle(Place here, std::byte* own) {
    const Chunk chunk = chunk_received(here.step);
    const Chunk s = slice(chunk, here.segment);
    std::byte* place = at(s.begin);
    const std::byte* in = wire_.wait_bytes(receives_.front());
    if (here.step < combining_) {
      const bool complete = here.step == combining_ - 1;
      std::byte* out = complete && own != nullptr ? own + (s.begin - chunk.begin) * element_ : place;
      combine(reduction_.dtype, reduction_.op, out, in, place, s.length());
      if (complete && reduction_.op == ReduceOp::mean) divide(reduction_.dtype, out, s.length(), wire_.size());
    } else if (in != place) {
      std::memcpy(place, in, s.length() * element_);
    }
    receives_.pop_front();
    if (here.step + 1 < steps_) send_segment({here.step + 1, here.segment}, place, s.length());
    retire_sends();
  }

  Wire& wire_;
  const Scratch& scratch_;
  std::byte* full_;
  size_t count_;
  Reduction reduction_;
  size_t element_;
  size_t segment_;
  int first_ = 0;
  int combining_ = 0;
  int steps_ = 0;
  size_t posted_ = 0;
  std::deque<Sent> sends_;
  std::deque<Posted> receives_;  // after sends_: see Posted
};

// Every chunk goes straight to its owner, which adds the N pieces of a segment in rank order.
void ordered_reduce_scatter(Wire& wire, const Scratch& scratch, std::byte* full, std::byte* own, size_t count, const Reduction& r) {
  const int n = wire.size();
  const size_t element = size_bytes(r.dtype);
  const size_t peers = static_cast<size_t>(n - 1);
  const size_t segment = ordered_segment_elements(scratch.segment_bytes, scratch.bytes, element, peers);
  const Chunk mine = chunk_of(count, wire.rank(), n);
  const auto segments = [segment](Chunk c) { return (c.length() + segment - 1) / segment; };

  constexpr size_t kAhead = 2;  // segments sent before the peers' are waited for
  std::deque<Posted> sends;
  size_t sent = 0;
  const auto send_through = [&](size_t last) {
    for (; sent <= last && sent < segments(chunk_of(count, 0, n)); ++sent) {
      for (int d = 1; d < n; ++d) {
        const Chunk c = chunk_of(count, wire.right(d), n);
        if (sent >= segments(c)) continue;
        const size_t begin = c.begin + sent * segment;
        sends.push_back(wire.send(wire.right(d), full + begin * element, std::min(segment, c.end - begin) * element));
      }
    }
    while (!sends.empty() && sends.front().test()) sends.pop_front();
  };

  std::vector<Posted> receives(static_cast<size_t>(n));
  std::vector<const std::byte*> inputs(static_cast<size_t>(n));
  for (size_t j = 0; j < segments(mine); ++j) {
    send_through(j + kAhead);
    const size_t begin = mine.begin + j * segment;
    const size_t length = std::min(segment, mine.end - begin);
    for (int d = 1; d < n; ++d) {
      std::byte* landing = scratch.data + static_cast<size_t>(d - 1) * segment * element;
      receives[static_cast<size_t>(wire.left(d))] = wire.receive(wire.left(d), landing, length * element);
    }
    for (int d = 1; d < n; ++d) {
      const auto from = static_cast<size_t>(wire.left(d));
      inputs[from] = wire.wait_bytes(receives[from]);
    }
    inputs[static_cast<size_t>(wire.rank())] = full + begin * element;
    combine_in_order(r.dtype, r.op, own + j * segment * element, inputs, length);
    for (Posted& p : receives) p.release();
  }
  send_through(segments(chunk_of(count, 0, n)));
  for (Posted& p : sends) wire.wait(p);
}

// The all-gather of Bruck et al. 1997 ("Efficient algorithms for all-to-all communications in multiport message-passing systems"): every
// turn doubles what a rank holds. Then all chunks' sums.
void gathered_all_reduce(Wire& wire, const Scratch& scratch, std::byte* data, size_t count, const Reduction& r) {
  const int n = wire.size();
  const size_t bytes = count * size_bytes(r.dtype);
  std::byte* gathered = scratch.data;  // of this rank, its left neighbour, the next one, ...
  std::memcpy(gathered, data, bytes);
  for (int held = 1; held < n; held *= 2) {
    const size_t length = static_cast<size_t>(std::min(held, n - held)) * bytes;
    std::byte* landing = gathered + static_cast<size_t>(held) * bytes;
    Posted out = wire.send(wire.right(held), gathered, length);
    Posted in = wire.receive(wire.left(held), landing, length);
    copy_unless_same(landing, wire.wait_bytes(in), length);
    in.release();
    wire.wait(out);
  }
  std::vector<const std::byte*> inputs(static_cast<size_t>(n));
  for (int c = 0; c < n; ++c) {
    const Chunk chunk = chunk_of(count, c, n);
    if (chunk.length() == 0) break;
    const size_t begin = chunk.begin * size_bytes(r.dtype);
    for (int k = 0; k < n; ++k) {
      const int from = r.order == Order::ordered ? k : (c + 1 + k) % n;
      const int places = (wire.rank() - from + n) % n;
      inputs[static_cast<size_t>(k)] = gathered + static_cast<size_t>(places) * bytes + begin;
    }
    std::byte* sum = data + begin;
    combine_all(r.dtype, r.op, r.order, {&sum, 1}, inputs, chunk.length());
  }
}

}  // namespace

void reduce_scatter(Wire& wire, const Scratch& scratch, std::byte* full, std::byte* own, size_t count, const Reduction& r) {
  const int n = wire.size();
  const size_t element = size_bytes(r.dtype);
  const Chunk mine = chunk_of(count, wire.rank(), n);
  if (n == 1) return copy_unless_same(own, full, count * element);
  if (r.order == Order::ordered) return ordered_reduce_scatter(wire, scratch, full, own, count, r);
  RingPass(wire, scratch, full, count, r).run(wire.left(), n - 1, 0, own == full + mine.begin * element ? nullptr : own);
}

void all_gather(Wire& wire, const Scratch& scratch, const std::byte* own, std::byte* full, size_t count, DType dtype) {
  const int n = wire.size();
  const Chunk mine = chunk_of(count, wire.rank(), n);
  copy_unless_same(full + mine.begin * size_bytes(dtype), own, mine.length() * size_bytes(dtype));
  if (n == 1) return;
  RingPass(wire, scratch, full, count, {dtype, ReduceOp::sum, Order::ring}).run(wire.rank(), 0, n - 1, nullptr);
}

void all_reduce(Wire& wire, const Scratch& scratch, std::byte* data, size_t count, const Reduction& r) {
  const int n = wire.size();
  if (n == 1) return;
  if (is_gathered(count * size_bytes(r.dtype), n, scratch.bytes)) return gathered_all_reduce(wire, scratch, data, count, r);
  if (r.order == Order::ordered) {
    std::byte* own = data + chunk_of(count, wire.rank(), n).begin * size_bytes(r.dtype);
    ordered_reduce_scatter(wire, scratch, data, own, count, r);
    return all_gather(wire, scratch, own, data, count, r.dtype);
  }
  RingPass(wire, scratch, data, count, r).run(wire.left(), n - 1, n - 1, nullptr);
}

void broadcast(Wire& wire, const Scratch& scratch, std::byte* data, size_t count, DType dtype, int root) {
  const size_t bytes = count * size_bytes(dtype);
  const bool is_root = wire.rank() == root;
  const bool is_last = wire.right() == root;
  std::deque<Posted> sends;
  std::deque<Posted> receives;
  size_t posted = 0;
  for (size_t begin = 0; begin < bytes; begin += scratch.segment_bytes) {
    const size_t length = std::min(scratch.segment_bytes, bytes - begin);
    if (!is_root) {
      for (; posted < bytes && receives.size() < kRingWindow; posted += scratch.segment_bytes) {
        receives.push_back(wire.receive(wire.left(), data + posted, std::min(scratch.segment_bytes, bytes - posted)));
      }
      copy_unless_same(data + begin, wire.wait_bytes(receives.front()), length);
      receives.pop_front();
    }
    if (!is_last) sends.push_back(wire.send(wire.right(), data + begin, length));
    while (!sends.empty() && sends.front().test()) sends.pop_front();
  }
  for (Posted& p : sends) wire.wait(p);
}

// Dissemination: after round k everybody has heard, at one or more removes, from the 2^(k+1)-1 ranks to its left.
void barrier(Wire& wire) {
  for (int distance = 1; distance < wire.size(); distance *= 2) {
    Posted out = wire.send(wire.right(distance), nullptr, 0);
    Posted in = wire.receive(wire.left(distance), nullptr, 0);
    wire.wait(in);
    in.release();
    wire.wait(out);
  }
}

}  // namespace rz::comm
