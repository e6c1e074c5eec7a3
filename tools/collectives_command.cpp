// What is measured: S bytes per rank in the full buffer, for every collective. time = mean over iterations of the slowest
// rank; algbw = S / time; busbw = algbw x {all_reduce 2(n-1)/n, reduce_scatter and all_gather (n-1)/n, broadcast 1}.
// What is checked, apart from the timing: inputs are small integers whose results are exact in any order and every type, so
// any error at all is a bug; `error` is the largest difference on any rank.
#include "tools/collectives_command.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "comm/launch.h"
#include "runtime/core/storage.h"

namespace rz::tools {

namespace {

using comm::Chunk;
using comm::chunk_of;
using comm::CollectiveKind;
using comm::Communicator;
using comm::Order;
using comm::ReduceOp;

struct CollectivesFlags {
  std::string begin = "8";
  std::string end = "64M";
  size_t factor = 2;
  std::string op = "all_reduce";
  std::string dtype = "f32";
  std::string reduce = "sum";
  std::string order = "ring";
  std::string transport = "auto";
  std::string intra_node = "auto";
  int ranks = 0;
  int iterations = 20;
  int warmup = 5;
  std::string segment = "0";
  std::string link;
  std::string inter_node_link;
  int64_t nodes = 1;
  bool check = true;
  bool json = false;
};

// Flags, understood.
struct MeasurementPlan {
  std::vector<CollectiveKind> kinds;
  std::vector<size_t> sizes;
  DType dtype = DType::f32;
  ReduceOp reduce = ReduceOp::sum;
  Order order = Order::ring;
  int iterations = 20;
  int warmup = 5;
  bool check = true;
  bool json = false;
};

struct Row {
  CollectiveKind kind;
  size_t bytes;
  size_t count;
  double seconds;
  double error;  // negative: not checked
};

// "8", "64K", "64M", "1G", powers of 1024.
size_t parse_size(const std::string& text, const char* flag) {
  size_t end = 0;
  unsigned long long value = 0;
  try {
    if (!text.empty() && text[0] >= '0' && text[0] <= '9') value = std::stoull(text, &end);
  } catch (const std::exception&) {
    end = 0;
  }
  size_t shift = 0;
  const std::string unit = text.substr(end);
  if (unit == "K" || unit == "k")
    shift = 10;
  else if (unit == "M" || unit == "m")
    shift = 20;
  else if (unit == "G" || unit == "g")
    shift = 30;
  else if (!unit.empty())
    end = 0;
  RZ_CONFIG_CHECK(end > 0 && value <= (std::numeric_limits<size_t>::max() >> (shift + 2)),
                  "{}: '{}' is not a size: a number of bytes, or one followed by K, M or G", flag, text);
  return static_cast<size_t>(value) << shift;
}

MeasurementPlan plan_measurement(const CollectivesFlags& f) {
  MeasurementPlan plan;
  if (f.op == "all") {
    plan.kinds = {CollectiveKind::all_reduce, CollectiveKind::reduce_scatter, CollectiveKind::all_gather, CollectiveKind::broadcast};
  } else {
    RZ_CONFIG_CHECK(f.op == "all_reduce" || f.op == "reduce_scatter" || f.op == "all_gather" || f.op == "broadcast",
                    "--op: unknown collective '{}': choose all_reduce, reduce_scatter, all_gather, broadcast, all", f.op);
    plan.kinds = {comm::parse_collective_kind(f.op)};
  }
  plan.dtype = parse_dtype(f.dtype);
  plan.reduce = comm::parse_reduce_op(f.reduce);
  plan.order = comm::parse_order(f.order);
  plan.iterations = f.iterations;
  plan.warmup = f.warmup;
  plan.check = f.check;
  plan.json = f.json;
  RZ_CONFIG_CHECK(plan.reduce != ReduceOp::mean || is_floating(plan.dtype), "--reduce mean needs a floating-point --dtype, not {}",
                  name(plan.dtype));
  RZ_CONFIG_CHECK(f.iterations >= 1, "--iters must be at least 1, not {}", f.iterations);
  RZ_CONFIG_CHECK(f.warmup >= 0, "--warmup must not be negative: {}", f.warmup);
  RZ_CONFIG_CHECK(f.factor >= 2, "-f must be at least 2, not {}", f.factor);
  const size_t begin = parse_size(f.begin, "-b");
  const size_t end = parse_size(f.end, "-e");
  RZ_CONFIG_CHECK(begin >= 1 && begin <= end, "-b {} .. -e {}: need 1 <= begin <= end", f.begin, f.end);
  for (size_t s = begin; s <= end; s *= f.factor) {
    plan.sizes.push_back(s);
    if (s > end / f.factor) break;
  }
  return plan;
}

double bus_factor(CollectiveKind kind, int ranks) {
  const double n = ranks;
  switch (kind) {
    case CollectiveKind::all_reduce:
      return 2 * (n - 1) / n;
    case CollectiveKind::reduce_scatter:
    case CollectiveKind::all_gather:
      return (n - 1) / n;
    default:
      return 1;
  }
}

class Measurement {
 public:
  Measurement(const MeasurementPlan& plan, Communicator& comm) : plan_(plan), comm_(comm), n_(comm.size()) {
    const size_t most = std::max(*std::max_element(plan.sizes.begin(), plan.sizes.end()), size_bytes(plan.dtype));
    buffer_ = Storage::make(most, Category::communication, "collectives benchmark");
    std::fill_n(buffer_->data(), most, std::byte{0});
  }

  Row run(CollectiveKind kind, size_t bytes) {
    const size_t count = std::max<size_t>(1, bytes / size_bytes(plan_.dtype));
    Row row{kind, count * size_bytes(plan_.dtype), count, 0, -1};
    if (plan_.check) row.error = check(kind, count);
    std::fill_n(buffer_->data(), row.bytes, std::byte{0});  // timed on numbers that stay numbers
    for (int i = 0; i < plan_.warmup; ++i) issue(kind, count).wait();
    comm_.barrier().wait();
    const auto begin = std::chrono::steady_clock::now();
    for (int i = 0; i < plan_.iterations; ++i) issue(kind, count).wait();
    row.seconds = largest(std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count() / plan_.iterations);
    return row;
  }

 private:
  comm::Work issue(CollectiveKind kind, size_t count) {
    std::byte* full = buffer_->data();
    std::byte* own = full + chunk_of(count, comm_.rank(), n_).begin * size_bytes(plan_.dtype);
    const comm::CollectiveOptions options{.name = "benchmark", .order = plan_.order, .at_once = true};
    switch (kind) {
      case CollectiveKind::all_reduce:
        return comm_.all_reduce(full, count, plan_.dtype, plan_.reduce, options);
      case CollectiveKind::reduce_scatter:
        return comm_.reduce_scatter(full, own, count, plan_.dtype, plan_.reduce, options);
      case CollectiveKind::all_gather:
        return comm_.all_gather(own, full, count, plan_.dtype, options);
      default:
        return comm_.broadcast(full, count, plan_.dtype, 0, options);
    }
  }

  double largest(double value) {
    comm_.all_reduce(&value, 1, DType::f64, ReduceOp::max, {.name = "largest"}).wait();
    return value;
  }

  // Sums stay within 256, exact even in bf16 (for up to 256 ranks).
  size_t modulus() const { return 1 + static_cast<size_t>(std::clamp(256 / n_, 1, 6)); }
  double input(int rank, size_t i) const { return static_cast<double>((static_cast<size_t>(rank) * 3 + i) % modulus()); }
  double reduced(size_t i) const {
    double out = input(0, i);
    for (int r = 1; r < n_; ++r) {
      const double x = input(r, i);
      out = plan_.reduce == ReduceOp::max ? std::max(out, x) : plan_.reduce == ReduceOp::min ? std::min(out, x) : out + x;
    }
    return out;
  }

  double check(CollectiveKind kind, size_t count) {
    return largest(dispatch(plan_.dtype, [&]<class T>(TypeTag<T>) {
      using C = compute_t<T>;
      T* data = reinterpret_cast<T*>(buffer_->data());
      const Chunk own = chunk_of(count, comm_.rank(), n_);
      const bool reduces = kind == CollectiveKind::all_reduce || kind == CollectiveKind::reduce_scatter;
      for (size_t i = 0; i < count; ++i) {
        const bool known = reduces || (kind == CollectiveKind::broadcast ? comm_.rank() == 0 : i >= own.begin && i < own.end);
        data[i] = static_cast<T>(static_cast<float>(reduces ? input(comm_.rank(), i) : known ? input(0, i) : 99.0));
      }
      issue(kind, count).wait();
      std::vector<double> want;  // what is expected repeats
      for (size_t i = 0; i < modulus(); ++i) {
        C value = static_cast<C>(reduces ? reduced(i) : input(0, i));
        if (reduces && plan_.reduce == ReduceOp::mean) value = static_cast<C>(value / static_cast<C>(n_));
        want.push_back(static_cast<double>(static_cast<T>(value)));
      }
      const Chunk checked = kind == CollectiveKind::reduce_scatter ? own : Chunk{0, count};
      double worst = 0;
      for (size_t i = checked.begin; i < checked.end; ++i) {
        const double difference = std::abs(static_cast<double>(data[i]) - want[i % modulus()]);
        worst = difference <= worst ? worst : std::isnan(difference) ? std::numeric_limits<double>::infinity() : difference;
      }
      return worst;
    }));
  }

  const MeasurementPlan& plan_;
  Communicator& comm_;
  int n_;
  std::shared_ptr<Storage> buffer_;
};

std::string op_column(const MeasurementPlan& plan, CollectiveKind kind) {
  const bool reduces = kind == CollectiveKind::all_reduce || kind == CollectiveKind::reduce_scatter;
  return reduces ? name(plan.reduce) : "none";
}

void print_heading(const MeasurementPlan& plan, CollectiveKind kind, int ranks, const char* transport) {
  fmt::print("# {}, {} rank{} over {}, order {}, {} iterations\n", name(kind), ranks, ranks == 1 ? "" : "s", transport, name(plan.order),
             plan.iterations);
  fmt::print("#{:>11} {:>13} {:>6} {:>6} {:>11} {:>9} {:>9} {:>9}\n", "size", "count", "type", "op", "time", "algbw", "busbw", "error");
  fmt::print("#{:>11} {:>13} {:>6} {:>6} {:>11} {:>9} {:>9} {:>9}\n", "(B)", "(elements)", "", "", "(us)", "(GB/s)", "(GB/s)", "");
}

double algorithm_bandwidth(const Row& row) { return static_cast<double>(row.bytes) / row.seconds * 1e-9; }

void print_row(const MeasurementPlan& plan, const Row& row, int ranks) {
  const double algbw = algorithm_bandwidth(row);
  fmt::print("{:>12} {:>13} {:>6} {:>6} {:>11.2f} {:>9.3f} {:>9.3f} {:>9}\n", row.bytes, row.count, name(plan.dtype),
             op_column(plan, row.kind), row.seconds * 1e6, algbw, algbw * bus_factor(row.kind, ranks),
             row.error < 0 ? "N/A" : fmt::format("{:g}", row.error));
  std::fflush(stdout);
}

nlohmann::json to_json(const MeasurementPlan& plan, const std::vector<Row>& rows, int ranks, const char* transport) {
  nlohmann::json results = nlohmann::json::array();
  for (const Row& row : rows) {
    const double algbw = algorithm_bandwidth(row);
    results.push_back({{"collective", name(row.kind)},
                       {"size_bytes", row.bytes},
                       {"count", row.count},
                       {"dtype", name(plan.dtype)},
                       {"op", op_column(plan, row.kind)},
                       {"time_us", row.seconds * 1e6},
                       {"algbw_gb_per_s", algbw},
                       {"busbw_gb_per_s", algbw * bus_factor(row.kind, ranks)},
                       {"error", row.error < 0 ? nlohmann::json() : nlohmann::json(row.error)}});
  }
  return {{"ranks", ranks}, {"transport", transport}, {"order", name(plan.order)}, {"iterations", plan.iterations}, {"results", results}};
}

// Every rank; true if all results were right.
bool measure(const MeasurementPlan& plan, Communicator& comm, std::string transport) {
  comm.barrier({.name = "start"}).wait();
  if (comm.shares_memory()) transport += ", shared memory";
  Measurement measurement(plan, comm);
  const bool speaks = comm.rank() == 0;
  std::vector<Row> rows;
  for (const CollectiveKind kind : plan.kinds) {
    if (speaks && !plan.json) print_heading(plan, kind, comm.size(), transport.c_str());
    for (const size_t bytes : plan.sizes) {
      rows.push_back(measurement.run(kind, bytes));
      if (speaks && !plan.json) print_row(plan, rows.back(), comm.size());
    }
  }
  if (speaks && plan.json) fmt::print("{}\n", to_json(plan, rows, comm.size(), transport.c_str()).dump(2));
  return std::all_of(rows.begin(), rows.end(), [](const Row& r) { return r.error <= 0; });
}

int run_collectives(const CollectivesFlags& flags) {
  const MeasurementPlan plan = plan_measurement(flags);
  comm::LaunchOptions options;
  options.transport = comm::parse_transport(flags.transport);
  options.intra_node = comm::parse_intra_node(flags.intra_node);
  options.segment_bytes = parse_size(flags.segment, "--segment");
  options.ranks = flags.ranks;
  if (!flags.link.empty() || !flags.inter_node_link.empty() || flags.nodes != 1) {
    options.network = comm::parse_network(flags.link, flags.inter_node_link, flags.nodes);
  }
  const bool mpi =
      options.transport == comm::TransportKind::mpi || (options.transport == comm::TransportKind::automatic && comm::under_mpirun());
  bool right = true;  // written by rank 0 where ranks are threads
  const int code = comm::run_ranks(options, [&](Communicator& comm) {
    const bool all_right = measure(plan, comm, mpi ? "mpi" : "threads");
    if (comm.rank() == 0 || mpi) right = all_right;
  });
  if (code == 0 && !right && comm::launcher_rank() == 0) std::fprintf(stderr, "ringzero: wrong results: see the error column\n");
  return code != 0 ? code : right ? 0 : 1;
}

}  // namespace

void add_collectives_command(CLI::App& app) {
  auto flags = std::make_shared<CollectivesFlags>();
  auto* command = app.add_subcommand("collectives", "time and check the collectives, as nccl-tests prints them");
  command->add_option("-b,--begin", flags->begin, "smallest size in bytes; K, M, G = powers of 1024")->capture_default_str();
  command->add_option("-e,--end", flags->end, "largest size")->capture_default_str();
  command->add_option("-f,--factor", flags->factor, "from one size to the next")->capture_default_str();
  command->add_option("--op", flags->op, "all_reduce, reduce_scatter, all_gather, broadcast, all")->capture_default_str();
  command->add_option("--dtype", flags->dtype, "f32, bf16, f16, f64, i32, i64, u8")->capture_default_str();
  command->add_option("--reduce", flags->reduce, "sum, mean, max, min")->capture_default_str();
  command->add_option("--order", flags->order, "of additions: ring, ordered (rank order)")->capture_default_str();
  command->add_option("--transport", flags->transport, "auto (mpi under mpirun, else threads), threads, mpi")->capture_default_str();
  command->add_option("--intra-node", flags->intra_node, "between ranks of a machine: auto (shared memory where possible), shared, messages")
      ->capture_default_str();
  command->add_option("--ranks", flags->ranks, "threads: number of ranks; mpi: what mpirun must have started");
  command->add_option("--iters", flags->iterations, "timed repetitions per size")->capture_default_str();
  command->add_option("--warmup", flags->warmup, "repetitions before them")->capture_default_str();
  command->add_option("--segment", flags->segment, "pipelining unit in bytes; 0 = default; never changes results")->capture_default_str();
  command->add_option("--link", flags->link, "emulate links: 1Gbit,50us[,jitter 5us]");
  command->add_option("--inter-node-link", flags->inter_node_link, "emulated links between nodes, if others");
  command->add_option("--nodes", flags->nodes, "emulated nodes, equal blocks of ranks")->capture_default_str();
  command->add_flag("--check,!--no-check", flags->check, "verify results (default)");
  command->add_flag("--json", flags->json, "print a JSON object");
  command->callback([flags] {
    if (const int code = run_collectives(*flags); code != 0) throw CLI::RuntimeError(code);
  });
}

}  // namespace rz::tools
