// The file of one rank's trace: run/trace/rank-00003.trace, a RankTrace of proto/trace.proto under a checksum.
#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "comm/communicator.h"
#include "proto/job.pb.h"
#include "runtime/core/trace.h"

namespace rz::tools {

// The link from the left neighbour as measured at the start of the run; all 0 where there is none.
struct LinkProbe {
  int64_t latency_ns = 0;
  double bytes_per_s = 0;
};

struct RankTrace {
  int rank = 0;
  int size = 1;
  int threads = 1;
  int cores = 1;
  std::string host;
  int64_t clock_offset_ns = 0;  // added to this rank's times, they are times of rank 0's clock
  int64_t clock_error_ns = 0;
  std::string job_text;
  std::vector<std::string> names;  // by trace::Event::name, trace::Operation::name
  std::unordered_map<uint32_t, std::vector<int>> groups;
  std::vector<trace::Step> steps;
  int64_t dropped = 0;
  LinkProbe probe;
};

std::string trace_directory(const std::string& run_path);
std::string trace_path(const std::string& run_path, int rank);

// What a recorder holds, without rank, host, clock and job.
RankTrace rank_trace_of(const trace::Recorder& recorder);

// What this rank's recorder holds, with rank, host, clock and job.
RankTrace own_trace(trace::Recorder& recorder, const comm::Communicator& comm, const comm::ProbeResult& probe, const ringzero::Job& job);

// The file's bytes and back. `name` stands for it in errors, which are those of read_trace().
std::string pack_trace(const RankTrace& trace);
RankTrace unpack_trace(const std::string& bytes, const std::string& name);

// rz::Error naming path and cause.
void write_trace(const std::string& path, const RankTrace& trace);
// ConfigError naming the file for one that is missing, damaged, of a newer format, or inconsistent.
RankTrace read_trace(const std::string& path);

}  // namespace rz::tools
