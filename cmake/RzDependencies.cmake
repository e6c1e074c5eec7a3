# Finds every library from Debian packages; a missing one stops with the apt line that brings it.

function(rz_need found what packages)
  if(NOT ${found})
    message(FATAL_ERROR "ringzero needs ${what}, which was not found.\n"
                        "  On Debian: apt-get install ${packages}\n"
                        "  (examples/quickstart.sh and tests/run.sh install everything that is missing)")
  endif()
endfunction()

find_package(Threads REQUIRED)

find_package(MPI QUIET COMPONENTS C)
rz_need(MPI_C_FOUND "MPI (C bindings)" "libopenmpi-dev openmpi-bin")
# mpi.h must not pull in the C++ bindings, which were removed from the standard.
set_property(TARGET MPI::MPI_C APPEND PROPERTY INTERFACE_COMPILE_DEFINITIONS OMPI_SKIP_MPICXX MPICH_SKIP_MPICXX)

find_package(Protobuf QUIET)
rz_need(Protobuf_FOUND "Protocol Buffers" "libprotobuf-dev protobuf-compiler")

find_package(fmt QUIET CONFIG)
rz_need(fmt_FOUND "fmt" "libfmt-dev")

find_package(CLI11 QUIET CONFIG)
rz_need(CLI11_FOUND "CLI11" "libcli11-dev")

find_package(nlohmann_json QUIET CONFIG)
rz_need(nlohmann_json_FOUND "nlohmann-json" "nlohmann-json3-dev")

find_package(ZLIB QUIET)
rz_need(ZLIB_FOUND "zlib" "zlib1g-dev")

find_package(PNG QUIET)
rz_need(PNG_FOUND "libpng" "libpng-dev")

find_path(XXHASH_INCLUDE_DIR xxhash.h)
find_library(XXHASH_LIBRARY xxhash)
if(XXHASH_INCLUDE_DIR AND XXHASH_LIBRARY)
  set(xxhash_FOUND TRUE)
endif()
rz_need(xxhash_FOUND "xxHash" "libxxhash-dev")
add_library(xxhash::xxhash INTERFACE IMPORTED)
target_include_directories(xxhash::xxhash INTERFACE ${XXHASH_INCLUDE_DIR})
target_link_libraries(xxhash::xxhash INTERFACE ${XXHASH_LIBRARY})

if(RZ_BUILD_TESTS)
  find_package(GTest QUIET CONFIG)
  rz_need(GTest_FOUND "GoogleTest" "libgtest-dev libgmock-dev")
endif()
if(RZ_BUILD_BENCH)
  find_package(benchmark QUIET CONFIG)
  rz_need(benchmark_FOUND "google-benchmark" "libbenchmark-dev")
endif()
