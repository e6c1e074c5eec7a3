#include "tools/version.h"

#include <mpi.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <google/protobuf/stubs/common.h>
#include <thread>
#include <xxhash.h>

#include "runtime/core/error.h"
#include "runtime/kernels/cpu/gemm_tiles.h"

namespace rz::tools {

namespace {
std::string cpu_name() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);)
    if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
  return "unknown";
}
}  // namespace

std::string version_text() {
  char mpi[MPI_MAX_LIBRARY_VERSION_STRING];
  int length = 0;
  MPI_Get_library_version(mpi, &length);
  std::string mpi_text(mpi, static_cast<size_t>(length));
  mpi_text = mpi_text.substr(0, mpi_text.find(','));
#ifdef RZ_SANITIZE
  const char* sanitize = RZ_SANITIZE;
#else
  const char* sanitize = "none";
#endif
  return fmt::format(
      "ringzero {}\n"
      "compiler   {} {}, {} build, flags {}\n"
      "cpu level  {} (sanitizers: {}), matrix products {}\n"
      "libraries  {}; protobuf {}; fmt {}; nlohmann-json {}.{}.{}; xxHash {}\n"
      "cpu        {}, {} hardware threads",
      RZ_VERSION,
#ifdef __clang__
      "clang", __clang_version__,
#else
      "g++", __VERSION__,
#endif
      RZ_BUILD_TYPE, RZ_CXX_FLAGS, RZ_CPU_LEVEL, sanitize, cpu::tiles_available() ? "in tile registers" : "by multiply-adds", mpi_text,
      google::protobuf::internal::VersionString(GOOGLE_PROTOBUF_VERSION), FMT_VERSION, NLOHMANN_JSON_VERSION_MAJOR, NLOHMANN_JSON_VERSION_MINOR,
      NLOHMANN_JSON_VERSION_PATCH, XXH_versionNumber(), cpu_name(), std::thread::hardware_concurrency());
}

void require_cpu() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const std::string level = RZ_CPU_LEVEL;
  bool supported = true;
  if (level == "v2") supported = __builtin_cpu_supports("x86-64-v2");
  if (level == "v3") supported = __builtin_cpu_supports("x86-64-v3");
  if (level == "v4") supported = __builtin_cpu_supports("x86-64-v4");
  RZ_CONFIG_CHECK(supported, "built for x86-64-{}, which this CPU ({}) is not; build again here, or with -DRZ_CPU_LEVEL=v2", level, cpu_name());
#endif
}

}  // namespace rz::tools
