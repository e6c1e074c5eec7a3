#include "comm/launch.h"

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>

#include "comm/emulated_transport.h"
#include "comm/mpi_transport.h"
#include "comm/progress.h"
#include "comm/thread_transport.h"
#include "runtime/core/allocator.h"
#include "runtime/core/rank_context.h"

namespace rz::comm {

namespace {

constexpr double kDefaultDeadline = 60;
constexpr size_t kDefaultMessageLimit = size_t{64} << 20;
// A failed rank stays this long, so that the others can hear of it and report before mpirun ends them.
constexpr double kGraceSeconds = 1.0;

// How one rank ended.
struct Ending {
  std::exception_ptr error;
  std::string line;  // what to print; empty: nothing
  int code = 0;
};

// A segment that moves makes no progress until all of it is there.
void check_links(const NetworkSpec& network, const ProgressOptions& progress) {
  const auto check = [&](const LinkSpec& link) {
    const double longest = link.longest_s(static_cast<double>(progress.segment_bytes));
    RZ_CONFIG_CHECK(longest < progress.deadline_s,
                    "link {}: a segment of {} bytes takes {:.3g} s, beyond the communication deadline of {} s", link.str(),
                    progress.segment_bytes, longest, progress.deadline_s);
  };
  check(network.inside);
  if (network.nodes > 1) check(network.between);
  for (const NetworkSpec::Exception& e : network.exceptions) check(e.link);
}

ProgressOptions progress_options(const LaunchOptions& options) {
  ProgressOptions out;
  out.deadline_s = options.deadline_s;
  if (out.deadline_s == 0) {
    const char* text = std::getenv("RZ_COMM_DEADLINE_S");
    char* end = nullptr;
    out.deadline_s = text == nullptr ? kDefaultDeadline : std::strtod(text, &end);
    RZ_CONFIG_CHECK(text == nullptr || (end != text && *end == '\0'), "RZ_COMM_DEADLINE_S is not a number of seconds: '{}'", text);
  }
  RZ_CONFIG_CHECK(out.deadline_s > 0 && out.deadline_s < 1e7, "the communication deadline must be positive seconds, not {}",
                  out.deadline_s);
  constexpr size_t kLongestSegment = size_t{1} << 40;
  RZ_CONFIG_CHECK(options.segment_bytes <= kLongestSegment, "segments of {} bytes; valid: at most {}", options.segment_bytes,
                  kLongestSegment);
  if (options.segment_bytes != 0) out.segment_bytes = options.segment_bytes;
  out.intra_node = options.intra_node;
  if (const char* text = std::getenv("RZ_INTRA_NODE"); text != nullptr && out.intra_node == IntraNode::automatic) {
    out.intra_node = parse_intra_node(text);
  }
  out.emulates_links = options.network.has_value();
  RZ_CONFIG_CHECK(!out.emulates_links || out.intra_node != IntraNode::shared,
                  "emulated links carry messages: they exclude shared memory between the ranks of a node");
  out.fuzz_seed = options.fuzz_seed;
  if (options.network.has_value()) check_links(*options.network, out);
  return out;
}

std::unique_ptr<Transport> over_links(std::unique_ptr<Transport> transport, const LaunchOptions& options, double deadline_s) {
  if (!options.network.has_value()) return transport;
  return make_emulated_transport(std::move(transport), *options.network, deadline_s);
}

std::string with_who(const std::string& who, const std::string& text) { return text.starts_with("rank ") ? text : who + ": " + text; }

// The edge: everything that a rank's body throws ends here, and the other ranks are told.
Ending run_rank(const std::shared_ptr<Progress>& progress, const std::function<void(Communicator&)>& body) {
  Ending ending;
  const auto failed = [&](const char* what) {
    ending.error = std::current_exception();
    ending.line = with_who(progress->who(), what);
    ending.code = 1;
    if (progress->failure().empty()) progress->abort(ending.line);
    progress->leave(LeaveReason::failed, what, kGraceSeconds);
  };
  try {
    {
      Communicator communicator(progress, progress->world());
      body(communicator);
    }
    const Farewell farewell = progress->leave(LeaveReason::finished, "", 0);
    if (const std::string text = progress->failure(); !text.empty()) throw CommError(text);
    if (!farewell.alike) throw CommError(fmt::format("{}: another rank failed: {}", progress->who(), farewell.other));
    progress->close_cleanly();
  } catch (const ConfigError& e) {
    ending.error = std::current_exception();
    ending.line = with_who(progress->who(), e.what());
    ending.code = 2;
    if (progress->leave(LeaveReason::config_error, e.what(), kGraceSeconds).alike) {
      ending.line = progress->rank() == 0 ? e.what() : "";
      progress->close_cleanly();
    } else {
      progress->abort(ending.line);
      progress->leave(LeaveReason::failed, e.what(), kGraceSeconds);
    }
  } catch (const std::exception& e) {
    failed(e.what());
  } catch (...) {
    failed("unknown exception");
  }
  return ending;
}

void print(const Ending& ending) {
  if (ending.line.empty()) return;
  std::fprintf(stderr, "ringzero: %s\n", ending.line.c_str());
  std::fflush(stderr);
}

std::vector<Ending> run_threads(int ranks, const LaunchOptions& options, const std::function<void(Communicator&)>& body,
                                std::shared_ptr<ThreadHub> hub) {
  const ProgressOptions progress_opts = progress_options(options);
  if (options.network.has_value()) options.network->check_ranks(ranks);
  std::vector<Ending> endings(static_cast<size_t>(ranks));
  std::vector<std::thread> threads;
  const auto run_one = [&](int r) {
    const RankContextScope scope(RankContext::make(r));
    Ending& ending = endings[static_cast<size_t>(r)];
    try {
      const auto open = [&] { return over_links(std::make_unique<ThreadTransport>(hub, r), options, progress_opts.deadline_s); };
      auto progress = std::make_shared<Progress>(open, progress_opts);
      ending = run_rank(progress, body);
    } catch (const std::exception& e) {  // could not even begin: the others miss it at their deadline
      ending = {std::current_exception(), fmt::format("rank {}/{}: {}", r, ranks, e.what()), 1};
    }
  };
  for (int r = 0; r < ranks; ++r) {
    try {
      threads.emplace_back(run_one, r);
    } catch (const std::exception& e) {  // the system gives no more: nor to those that follow
      for (int missing = r; missing < ranks; ++missing)
        endings[static_cast<size_t>(missing)] = {std::current_exception(),
                                                 fmt::format("rank {}/{}: no thread for it: {}", missing, ranks, e.what()), 1};
      break;
    }
  }
  for (std::thread& t : threads) t.join();
  return endings;
}

extern "C" void on_sigterm(int) { Progress::request_termination(); }

int run_mpi(const LaunchOptions& options, const std::function<void(Communicator&)>& body) {
  const RankContextScope scope(RankContext::make(launcher_rank()));
  ProgressOptions progress_opts = progress_options(options);
  progress_opts.watch_sigterm = options.handle_sigterm;
  if (options.handle_sigterm) {
    struct sigaction action = {};
    action.sa_handler = on_sigterm;
    action.sa_flags = SA_RESTART;
    sigaction(SIGTERM, &action, nullptr);
  }
  // Before anything is allocated that peers shall reach. Where it fails, the meeting of ranks says so.
  if (progress_opts.intra_node != IntraNode::messages && !progress_opts.emulates_links) allocator::share();
  const size_t limit = options.message_limit_bytes == 0 ? kDefaultMessageLimit : options.message_limit_bytes;
  const auto open = [&] { return over_links(make_mpi_transport(limit), options, progress_opts.deadline_s); };
  auto progress = std::make_shared<Progress>(open, progress_opts);
  const Ending ending = run_rank(progress, [&](Communicator& comm) {
    RZ_CONFIG_CHECK(options.ranks == 0 || options.ranks == comm.size(), "{} ranks asked for, but mpirun started {}", options.ranks,
                    comm.size());
    body(comm);
  });
  print(ending);
  if (progress->hangs()) {  // nobody can wait for its end
    std::fflush(stdout);
    std::_Exit(ending.code);
  }
  return ending.code;
}

}  // namespace

TransportKind parse_transport(std::string_view text) {
  if (text == "auto") return TransportKind::automatic;
  if (text == "threads") return TransportKind::threads;
  if (text == "mpi") return TransportKind::mpi;
  throw ConfigError(fmt::format("unknown transport '{}': choose auto, threads, mpi", text));
}

bool under_mpirun() {
  return std::getenv("OMPI_COMM_WORLD_SIZE") != nullptr || std::getenv("PMI_SIZE") != nullptr || std::getenv("PMIX_RANK") != nullptr;
}

int launcher_rank() {
  for (const char* name : {"OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK"}) {
    if (const char* text = std::getenv(name); text != nullptr) return std::atoi(text);
  }
  return 0;
}

std::vector<std::exception_ptr> run_thread_ranks(int ranks, const LaunchOptions& options, const std::function<void(Communicator&)>& body,
                                                 std::shared_ptr<ThreadHub> hub) {
  if (hub == nullptr) hub = std::make_shared<ThreadHub>(ranks);
  std::vector<std::exception_ptr> errors;
  for (Ending& e : run_threads(ranks, options, body, std::move(hub))) errors.push_back(e.error);
  return errors;
}

int run_ranks(const LaunchOptions& options, const std::function<void(Communicator&)>& body) {
  try {
    RZ_CONFIG_CHECK(options.ranks >= 0 && options.ranks <= 4096, "the number of ranks must be positive, not {}", options.ranks);
    const bool mpi = options.transport == TransportKind::mpi || (options.transport == TransportKind::automatic && under_mpirun());
    if (mpi) return run_mpi(options, body);
    RZ_CONFIG_CHECK(!under_mpirun(),
                    "--transport threads under mpirun would run the whole job in every process: leave one of the two away");
    const int ranks = std::max(1, options.ranks);
    int code = 0;
    for (const Ending& e : run_threads(ranks, options, body, std::make_shared<ThreadHub>(ranks))) {
      print(e);
      code = std::max(code, e.code);
    }
    return code;
  } catch (const ConfigError& e) {
    if (launcher_rank() == 0) print({nullptr, e.what(), 2});
    return 2;
  } catch (const std::exception& e) {
    print({nullptr, fmt::format("rank {}: {}", launcher_rank(), e.what()), 1});
    return 1;
  }
}

}  // namespace rz::comm
