# Compiler flags, the CPU level, sanitizers, ccache, the size of batches, and rz_library(): one layer = one static library.

find_program(CCACHE_PROGRAM ccache)
if(CCACHE_PROGRAM)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CCACHE_PROGRAM})
endif()

# Where CMAKE_UNITY_BUILD compiles files in batches, headers and their templates are compiled once a batch: few cores want large batches, many
# cores want enough of them for all.
if(NOT DEFINED CMAKE_UNITY_BUILD_BATCH_SIZE)
  cmake_host_system_information(RESULT RZ_CORES QUERY NUMBER_OF_LOGICAL_CORES)
  math(EXPR CMAKE_UNITY_BUILD_BATCH_SIZE "80 / ${RZ_CORES}")
  if(CMAKE_UNITY_BUILD_BATCH_SIZE GREATER 40)
    set(CMAKE_UNITY_BUILD_BATCH_SIZE 40)
  elseif(CMAKE_UNITY_BUILD_BATCH_SIZE LESS 8)
    set(CMAKE_UNITY_BUILD_BATCH_SIZE 8)
  endif()
endif()

# The x86-64 level decides the vector width of the kernels. `auto` asks the CPU that configures the build;
# the program refuses to start, naming the level, on a CPU that lacks it. Other architectures build with their default.
set(RZ_CPU_LEVEL "auto" CACHE STRING "x86-64 level of the kernels: auto, v2, v3 (AVX2, FMA) or v4 (AVX-512)")
set_property(CACHE RZ_CPU_LEVEL PROPERTY STRINGS auto v2 v3 v4)
set(RZ_CPU_FLAGS "")
set(RZ_CPU_LEVEL_USED "default")
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  set(RZ_CPU_LEVEL_USED ${RZ_CPU_LEVEL})
  if(RZ_CPU_LEVEL STREQUAL "auto")
    try_run(RZ_CPU_PROBE_RESULT RZ_CPU_PROBE_BUILT ${CMAKE_BINARY_DIR}/cpu_probe ${CMAKE_SOURCE_DIR}/cmake/cpu_probe.cpp)
    if(NOT RZ_CPU_PROBE_BUILT OR NOT RZ_CPU_PROBE_RESULT MATCHES "^[234]$")
      message(FATAL_ERROR "cannot tell this CPU's x86-64 level; give -DRZ_CPU_LEVEL=v2, v3 or v4")
    endif()
    set(RZ_CPU_LEVEL_USED v${RZ_CPU_PROBE_RESULT})
  endif()
  set(RZ_CPU_FLAGS -march=x86-64-${RZ_CPU_LEVEL_USED})
  if(RZ_CPU_LEVEL_USED STREQUAL "v4")
    list(APPEND RZ_CPU_FLAGS -mprefer-vector-width=512)
    # GCC 12 with AVX-512 copies a constant such as {5, 5, 0, 0} as {5, 5, 5, 5} when the copy is 32 bytes or wider
    # (tests/kernels/compiler_test.cpp); 16-byte moves are not affected. This concerns inlined memcpy of constants only.
    if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_GREATER_EQUAL 12)
      list(APPEND RZ_CPU_FLAGS -mmove-max=128 -mstore-max=128)
    endif()
  endif()
endif()
message(STATUS "CPU level: ${RZ_CPU_LEVEL_USED}")

add_library(rz_compile INTERFACE)
# No -ffast-math: sums keep their order. These two only say that errno and FP exceptions are not read,
# which lets floor, rint and selects vectorize.
target_compile_options(rz_compile INTERFACE -Wall -Wextra -Wpedantic -Wno-psabi -fno-math-errno -fno-trapping-math ${RZ_CPU_FLAGS})
target_compile_definitions(rz_compile INTERFACE RZ_CPU_LEVEL="${RZ_CPU_LEVEL_USED}")
target_include_directories(rz_compile INTERFACE ${CMAKE_SOURCE_DIR})
target_link_libraries(rz_compile INTERFACE Threads::Threads)
if(RZ_SANITIZE)
  target_compile_options(rz_compile INTERFACE -fsanitize=${RZ_SANITIZE} -fno-omit-frame-pointer -g1)
  target_link_options(rz_compile INTERFACE -fsanitize=${RZ_SANITIZE})
  target_compile_definitions(rz_compile INTERFACE RZ_SANITIZE="${RZ_SANITIZE}")
  if(RZ_SANITIZE MATCHES "address")
    target_compile_definitions(rz_compile INTERFACE RZ_ASAN=1)
    # A null or out-of-object access ends in AddressSanitizer's report anyway; checking each costs a fifth of the build time.
    target_compile_options(rz_compile INTERFACE -fno-sanitize-recover=all -fno-sanitize=null,vptr,object-size,pointer-overflow)
  endif()
  if(RZ_SANITIZE MATCHES "thread")
    target_compile_definitions(rz_compile INTERFACE RZ_TSAN=1)
  endif()
endif()
# What a target says itself stands before all this; what shall have the last word, after it.
target_compile_options(rz_compile INTERFACE $<TARGET_PROPERTY:RZ_LAST_OPTIONS>)

# rz_library(name DIRS dir... LINK target...): every .cpp directly in the folders, one static library.
function(rz_library name)
  cmake_parse_arguments(ARG "" "" "DIRS;LINK;PRIVATE_LINK" ${ARGN})
  set(sources "")
  foreach(dir ${ARG_DIRS})
    file(GLOB found CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/${dir}/*.cpp ${CMAKE_CURRENT_SOURCE_DIR}/${dir}/*.h)
    list(APPEND sources ${found})
  endforeach()
  add_library(${name} STATIC ${sources})
  target_link_libraries(${name} PUBLIC rz_compile ${ARG_LINK} PRIVATE ${ARG_PRIVATE_LINK})
endfunction()
