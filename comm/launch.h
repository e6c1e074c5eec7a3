// run_ranks: turns one program into ranks, and is the one place where their errors come out.
//
// Under mpirun each process is a rank over MPI; elsewhere ranks are threads of this process. Exceptions are caught here:
// one line per rank on stderr, every rank ends with a non-zero code, and nobody is left waiting for a rank that failed.
#pragma once

#include <cstddef>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "comm/communicator.h"
#include "comm/link_model.h"
#include "comm/shared_memory.h"

namespace rz::comm {

class ThreadHub;

enum class TransportKind { automatic, threads, mpi };
// "auto", "threads", "mpi"; ConfigError listing the choices for anything else.
TransportKind parse_transport(std::string_view text);

struct LaunchOptions {
  TransportKind transport = TransportKind::automatic;  // automatic: mpi under mpirun, else threads
  int ranks = 0;                                       // threads: how many (0 = 1); mpi: 0, or a number that mpirun's must equal
  double deadline_s = 0;           // longest wait without progress; 0 = RZ_COMM_DEADLINE_S from the environment, else 60
  IntraNode intra_node = IntraNode::automatic;  // automatic: $RZ_INTRA_NODE, if set; see comm/shared_memory.h. Messages over emulated links.
  size_t segment_bytes = 0;        // pipelining unit, the same on all ranks, at least least_segment_bytes(); 0 = default. Never changes results.
  size_t message_limit_bytes = 0;  // mpi: longest single message; 0 = 64 MiB
  bool handle_sigterm = true;      // mpi: SIGTERM prints what this rank waits for and who no longer answers, then exits 143
  uint64_t fuzz_seed = 0;          // above 0: random delays at every hand-over between threads, for tests (comm/fuzz.h)
  std::optional<NetworkSpec> network = std::nullopt;  // slows messages down to these links; all ranks on one machine
};

// Is this process a rank started by mpirun?
bool under_mpirun();
// This process's rank as mpirun says it, before MPI is initialized; 0 elsewhere. For errors that all ranks meet alike before
// run_ranks (bad flags): rank 0 prints.
int launcher_rank();

// Runs `body` once per rank, each with a RankContext of its own bound to its thread, and returns the exit code of this
// process: 0, 2 if a ConfigError ended it, 1 for anything else. A rank that ends with an exception ends all others: they
// get a CommError naming it and its text. A ConfigError that all ranks throw alike is printed once, by rank 0.
// With MPI it can be called once per process; after a failure MPI is not finalized, so the caller should return soon.
int run_ranks(const LaunchOptions& options, const std::function<void(Communicator&)>& body);

// The same for N ranks as threads without printing: the exception that ended each rank, null where it ended well.
// `hub` lets a test stop a rank (ThreadHub::freeze).
std::vector<std::exception_ptr> run_thread_ranks(int ranks, const LaunchOptions& options, const std::function<void(Communicator&)>& body,
                                                 std::shared_ptr<ThreadHub> hub = nullptr);

}  // namespace rz::comm
