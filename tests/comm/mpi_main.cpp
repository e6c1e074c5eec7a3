// test_comm_mpi: the communicator over MPI. Started by mpirun, once per case, since a job that failed cannot go on:
//   test_comm_mpi conformance RANKS [SEGMENT_BYTES [MESSAGE_LIMIT_BYTES]]   the suite of conformance.h; any failure on any
//                                                                          rank fails every rank; RANKS must be right
//   test_comm_mpi bits RANKS      sums through shared memory against their definition
//   test_comm_mpi FAULT RANKS     misbehaves as the name says; the caller (mpi_faults.sh) checks what is printed
// $RZ_TEST_LINK, if set, are emulated links (comm/link_model.h).
// Faults: count, kind, missing, extra, exception, exception_large, hung_threads, config, config_one, silent_exit, and steady, hung, idle,
// paused, which write their process ids to $RZ_PID_DIR/RANK and wait to be killed or stopped.
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>

#include "comm/launch.h"
#include "runtime/core/storage.h"
#include "tests/support/conformance.h"
#include "tests/support/order.h"

namespace {

using namespace rz;
using namespace rz::comm;

void conformance(Communicator& comm, int ranks, size_t segment_bytes) {
  auto failures = test::check_conformance(comm, segment_bytes);
  if (comm.size() != ranks) failures.push_back(fmt::format("runs on {} ranks, not {}", comm.size(), ranks));
  for (const std::string& f : failures) std::fprintf(stderr, "FAILED %s\n", f.c_str());
  int64_t count = static_cast<int64_t>(failures.size());
  comm.all_reduce(&count, 1, DType::i64, ReduceOp::sum, {.name = "verdict"}).wait();
  if (count != 0) throw Error(fmt::format("conformance failed: {} failures over all ranks", count));
  if (comm.rank() == 0) std::printf("PASSED on %d ranks over MPI\n", comm.size());
}

// Bits against the definition of both orders, from buffers that peers reach, from such that they do not, and from some of each.
void bits(Communicator& comm, size_t count, bool here) {
  const auto storage = Storage::make(count * sizeof(float), Category::communication, "buffer");
  std::vector<float> own_memory(count);
  float* data = here ? reinterpret_cast<float*>(storage->data()) : own_memory.data();
  const auto input = test::wild<float>(comm.rank(), count);
  const Chunk c = chunk_of(count, comm.rank(), comm.size());
  const auto check = [&](const char* what, bool right) {
    if (!right) throw Error(fmt::format("{} of {} elements, {}: wrong bits", what, count, here ? "shared" : "private"));
  };
  for (const Order order : {Order::ring, Order::ordered}) {
    const auto want = order == Order::ring ? test::ring_sum<float>(comm.size(), count, ReduceOp::mean)
                                           : test::ordered_sum<float>(comm.size(), count, ReduceOp::mean);
    std::copy(input.begin(), input.end(), data);
    comm.all_reduce(data, count, DType::f32, ReduceOp::mean, {.order = order}).wait();
    check("all_reduce", std::equal(want.begin(), want.end(), data));
    std::copy(input.begin(), input.end(), data);
    comm.reduce_scatter(data, data + c.begin, count, DType::f32, ReduceOp::mean, {.order = order}).wait();
    check("reduce_scatter", std::equal(want.begin() + static_cast<long>(c.begin), want.begin() + static_cast<long>(c.end), data + c.begin));
    comm.all_gather(data + c.begin, data, count, DType::f32).wait();
    check("all_gather", std::equal(want.begin(), want.end(), data));
    for (int root = 0; root < comm.size(); ++root) {
      std::fill_n(data, count, static_cast<float>(comm.rank()));
      comm.broadcast(data, count, DType::f32, root).wait();
      check("broadcast", std::count(data, data + count, static_cast<float>(root)) == static_cast<long>(count));
    }
  }
}

void all_bits(Communicator& comm) {
  for (const size_t count : {size_t{3}, size_t{1009}, size_t{70'001}, size_t{1'500'007}}) {
    for (const int here : {0, 1, 2}) bits(comm, count, here == 2 ? comm.rank() % 2 == 0 : here == 1);
  }
  if (!comm.shares_memory()) throw Error("ranks of one machine do not share memory");
  if (comm.rank() == 0) std::printf("PASSED bits on %d ranks over MPI\n", comm.size());
}

void reduce(Communicator& comm, size_t count, const char* name) {
  static std::vector<float> data(200'000, 1.0f);
  comm.all_reduce(data.data(), count, DType::f32, ReduceOp::max, {.name = name}).wait();
}

// Tells the script that this rank is on its way.
void write_pid(const Communicator& comm) {
  const char* dir = std::getenv("RZ_PID_DIR");
  if (dir == nullptr) throw Error("RZ_PID_DIR is not set");
  const std::string path = fmt::format("{}/{}", dir, comm.rank());
  std::ofstream(path + ".tmp") << getpid() << "\n";
  std::rename((path + ".tmp").c_str(), path.c_str());
}

// As if the MPI library hung: all threads of this process but the caller sleep in a signal handler for ever.
void freeze_other_threads() {
  struct sigaction action = {};
  action.sa_handler = [](int) {
    for (;;) pause();
  };
  sigaction(SIGUSR1, &action, nullptr);
  const auto own = static_cast<int>(syscall(SYS_gettid));
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/task")) {
    const int thread = std::atoi(entry.path().filename().c_str());
    if (thread != own) syscall(SYS_tgkill, getpid(), thread, SIGUSR1);
  }
}

void fault(Communicator& comm, const std::string& what) {
  const int odd = comm.size() - 1;
  const bool is_odd = comm.rank() == odd;
  reduce(comm, 1000, "warm-up");
  if (what == "count") {
    reduce(comm, is_odd ? 150'000 : 100'000, "gradient");
  } else if (what == "kind") {
    if (is_odd)
      comm.barrier({.name = "end"}).wait();
    else
      reduce(comm, 100'000, "gradient");
  } else if (what == "missing") {
    if (!is_odd) reduce(comm, 100'000, "gradient");
    reduce(comm, 10, "next");
  } else if (what == "extra") {
    if (is_odd) reduce(comm, 100'000, "gradient");
  } else if (what == "exception") {
    if (is_odd) throw Error("the dog ate the shard");
    reduce(comm, 100'000, "gradient");
  } else if (what == "config") {
    throw ConfigError("width 65 is not divisible by 4 heads");
  } else if (what == "config_one") {
    if (is_odd) throw ConfigError("cannot read weights.bin");
    reduce(comm, 100'000, "gradient");
  } else if (what == "silent_exit") {
    if (is_odd) std::_Exit(0);
    reduce(comm, 100'000, "gradient");
  } else if (what == "exception_large") {  // hundreds of segments are on their way
    static std::vector<float> data(size_t{32} << 20, 1.0F);
    if (is_odd) throw Error("the dog ate the shard");
    comm.all_reduce(data.data(), data.size(), DType::f32, ReduceOp::max, {.name = "gradient"}).wait();
  } else if (what == "hung_threads") {
    freeze_other_threads();
    reduce(comm, 200'000, "gradient");
  } else if (what == "paused") {  // computes for a second of its own time
    write_pid(comm);
    for (int i = 0; is_odd && i < 10; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(100));
    reduce(comm, 100'000, "gradient");
    if (comm.rank() == 0) std::printf("PASSED paused on %d ranks\n", comm.size());
  } else if (what == "steady") {
    write_pid(comm);
    for (;;) reduce(comm, 200'000, "gradient");
  } else if (what == "hung") {  // the odd rank computes for ever
    write_pid(comm);
    if (!is_odd) reduce(comm, 100'000, "gradient");
    for (;;) std::this_thread::sleep_for(std::chrono::seconds(1));
  } else if (what == "idle") {  // all compute
    write_pid(comm);
    for (;;) std::this_thread::sleep_for(std::chrono::seconds(1));
  } else {
    throw ConfigError("unknown case '" + what + "'");
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: test_comm_mpi CASE RANKS [SEGMENT_BYTES [MESSAGE_LIMIT_BYTES]]\n");
    return 2;
  }
  const std::string what = argv[1];
  const int ranks = std::atoi(argv[2]);
  LaunchOptions options;
  options.transport = TransportKind::mpi;
  options.ranks = ranks;
  options.segment_bytes = argc > 3 ? std::strtoull(argv[3], nullptr, 10) : 0;
  options.message_limit_bytes = argc > 4 ? std::strtoull(argv[4], nullptr, 10) : 0;
  if (const char* link = std::getenv("RZ_TEST_LINK"); link != nullptr) options.network = parse_network(link);
  return run_ranks(options, [&](Communicator& comm) {
    if (what == "bits") return all_bits(comm);
    if (what == "conformance")
      conformance(comm, ranks, options.segment_bytes == 0 ? 256 * 1024 : options.segment_bytes);
    else
      fault(comm, what);
  });
}
