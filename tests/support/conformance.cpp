#include "tests/support/conformance.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <thread>

#include "tests/support/watchdog.h"

namespace rz::test {

namespace {

using namespace rz::comm;

constexpr size_t kGuard = 16;  // elements after a buffer that nobody may touch
constexpr size_t kMostFailures = 5;

// Small enough that the sum over 7 ranks is exact in every type.
double input(int rank, size_t i) { return static_cast<double>((static_cast<size_t>(rank) * 5 + i * 3 + i / 7) % 6 + 1); }

double expected(ReduceOp op, int ranks, size_t i) {
  double out = input(0, i);
  for (int r = 1; r < ranks; ++r) {
    const double x = input(r, i);
    out = op == ReduceOp::max ? std::max(out, x) : op == ReduceOp::min ? std::min(out, x) : out + x;
  }
  return out;
}

class Suite {
 public:
  Suite(Communicator& comm, size_t segment_bytes) : comm_(comm), n_(comm.size()), rank_(comm.rank()), segment_bytes_(segment_bytes) {}

  std::vector<std::string> run() {
    for (const DType t : {DType::f32, DType::bf16, DType::f16, DType::f64, DType::i32, DType::i64, DType::u8}) {
      dispatch(t, [&]<class T>(TypeTag<T>) {
        for (const size_t count : conformance_sizes(n_, segment_bytes_)) all<T>(count);
      });
    }
    late_readers();
    comm_.barrier().wait();
    return std::move(failures_);
  }

 private:
  template <class T>
  void all(size_t count) {
    for (const ReduceOp op : {ReduceOp::sum, ReduceOp::mean, ReduceOp::max, ReduceOp::min}) {
      if (op == ReduceOp::mean && !is_floating(dtype_of<T>)) continue;
      for (const Order order : {Order::ring, Order::ordered}) reductions<T>(count, op, order);
    }
    gathers<T>(count);
    for (int root = 0; root < n_; ++root) broadcasts<T>(count, root);
  }

  // Buffers end in a guard of 9s.
  template <class T>
  std::vector<T> filled(size_t count, int rank) const {
    std::vector<T> out(count + kGuard, static_cast<T>(9.0f));
    for (size_t i = 0; i < count; ++i) out[i] = static_cast<T>(static_cast<float>(input(rank, i)));
    return out;
  }
  template <class T>
  std::vector<T> reduced(size_t count, ReduceOp op) const {
    std::vector<T> out(count + kGuard, static_cast<T>(9.0f));
    for (size_t i = 0; i < count; ++i) {
      using C = compute_t<T>;
      const C sum = static_cast<C>(expected(op, n_, i));
      out[i] = static_cast<T>(op == ReduceOp::mean ? sum / static_cast<C>(n_) : sum);
    }
    return out;
  }
  template <class T>
  std::vector<T> chunk_of_vector(const std::vector<T>& v, size_t count) const {
    const Chunk c = chunk_of(count, rank_, n_);
    std::vector<T> out(v.begin() + static_cast<long>(c.begin), v.begin() + static_cast<long>(c.end));
    out.resize(c.length() + kGuard, static_cast<T>(9.0f));
    return out;
  }

  template <class T>
  void reductions(size_t count, ReduceOp op, Order order) {
    // Sizes take turns, and ranks differ: who says that he waits at once is no part of the bargain.
    const CollectiveOptions options{.name = "conformance", .order = order, .at_once = (count + static_cast<size_t>(comm_.rank())) % 3 != 0};
    const auto want = reduced<T>(count, op);
    const auto want_own = chunk_of_vector(want, count);
    auto data = filled<T>(count, rank_);
    comm_.all_reduce(data.data(), count, dtype_of<T>, op, options).wait();
    compare("all_reduce", data, want, op, order);

    auto full = filled<T>(count, rank_);
    std::vector<T> own(want_own.size(), static_cast<T>(9.0f));
    comm_.reduce_scatter(full.data(), own.data(), count, dtype_of<T>, op, options).wait();
    compare("reduce_scatter", own, want_own, op, order);

    full = filled<T>(count, rank_);
    const Chunk c = chunk_of(count, rank_, n_);
    comm_.reduce_scatter(full.data(), full.data() + c.begin, count, dtype_of<T>, op, options).wait();
    auto in_place = chunk_of_vector(full, count);
    compare("reduce_scatter in place", in_place, want_own, op, order);
  }

  template <class T>
  void gathers(size_t count) {
    const auto want = filled<T>(count, 0);
    const auto own = chunk_of_vector(want, count);
    std::vector<T> full(want.size(), static_cast<T>(9.0f));
    comm_.all_gather(own.data(), full.data(), count, dtype_of<T>).wait();
    compare("all_gather", full, want, ReduceOp::sum, Order::ring);

    std::fill(full.begin(), full.end(), static_cast<T>(9.0f));
    const Chunk c = chunk_of(count, rank_, n_);
    std::copy_n(own.begin(), c.length(), full.begin() + static_cast<long>(c.begin));
    comm_.all_gather(full.data() + c.begin, full.data(), count, dtype_of<T>).wait();
    compare("all_gather in place", full, want, ReduceOp::sum, Order::ring);
  }

  template <class T>
  void broadcasts(size_t count, int root) {
    auto data = filled<T>(count, rank_);
    comm_.broadcast(data.data(), count, dtype_of<T>, root).wait();
    compare("broadcast", data, filled<T>(count, root), ReduceOp::sum, Order::ring);
  }

  // A rank that has told its part and then computes reads what others told when they exchange messages already, which must leave it be.
  void late_readers() {
    constexpr size_t kCount = 20;  // more than a cache line tells, less than a mailbox of the smallest segments holds
    for (int late = 0; late < n_; ++late) {
      std::vector<float> data(kCount + kGuard, 9.0f);
      std::fill_n(data.begin(), kCount, static_cast<float>(rank_ + 1));
      Work work = comm_.all_reduce(data.data(), kCount, DType::f32, ReduceOp::sum);
      if (rank_ == late) std::this_thread::sleep_for(std::chrono::milliseconds(10));
      work.wait();
      comm_.probe();  // fills the whole scratch
      std::vector<float> want(kCount + kGuard, 9.0f);
      std::fill_n(want.begin(), kCount, static_cast<float>(n_ * (n_ + 1) / 2));
      compare("all_reduce beside a late rank", data, want, ReduceOp::sum, Order::ring);
    }
  }

  template <class T>
  void compare(const char* what, const std::vector<T>& got, const std::vector<T>& want, ReduceOp op, Order order) {
    if (std::memcmp(got.data(), want.data(), got.size() * sizeof(T)) == 0 || failures_.size() >= kMostFailures) return;
    size_t i = 0;
    while (std::memcmp(&got[i], &want[i], sizeof(T)) == 0) ++i;
    failures_.push_back(fmt::format("{}({}, {}, {}, {} elements) on rank {}/{}: element {}{} is {}, not {}", what, name(dtype_of<T>),
                                    name(op), name(order), got.size() - kGuard, rank_, n_, i,
                                    i >= got.size() - kGuard ? " (beyond the end)" : "", static_cast<double>(got[i]),
                                    static_cast<double>(want[i])));
  }

  Communicator& comm_;
  int n_;
  int rank_;
  size_t segment_bytes_;
  std::vector<std::string> failures_;
};

}  // namespace

std::vector<size_t> conformance_sizes(int ranks, size_t segment_bytes) {
  const size_t n = static_cast<size_t>(ranks);
  const size_t edge = n * segment_bytes / 4;  // one segment of float32 per chunk
  std::vector<size_t> out{0, 1, n - 1, n, n + 1, 2 * n - 1, 1009, edge - 1, edge, edge + 1, 3 * edge + n};
  std::sort(out.begin(), out.end());
  out.erase(std::unique(out.begin(), out.end()), out.end());
  return out;
}

std::vector<std::string> check_conformance(Communicator& comm, size_t segment_bytes) { return Suite(comm, segment_bytes).run(); }

}  // namespace rz::test
