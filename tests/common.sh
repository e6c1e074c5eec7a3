# shellcheck shell=bash
# Shared by tests/run.sh and tests/nightly.sh: phases with times, an environment for MPI and the sanitizers, a tidy end. Sourced, from the
# root of the repository.

results=()
failed=0

# phase NAME COMMAND...: runs it, remembers how it ended and how long it took. Returns its verdict. A command that ends with 77 lacks something
# that is not required, and has said what.
phase() {
  local name=$1 begin=$SECONDS verdict=ok
  shift
  printf '\n== %s\n' "$name"
  "$@" || verdict="FAILED (exit code $?)"
  [[ $verdict != *" 77)" ]] || verdict="not run: see what it said"
  [[ $verdict != FAILED* ]] || failed=1
  results+=("$(printf '%-34s %5d s  %s' "$name" $((SECONDS - begin)) "$verdict")")
  [[ $verdict == ok ]]
}

# not_run NAME WHY: counts as a failure only with a third argument.
not_run() {
  results+=("$(printf '%-34s          not run: %s' "$1" "$2")")
  [[ -z ${3:-} ]] || failed=1
}

# The names that tests/CMakeLists.txt looks for.
find_browser() { command -v chromium || command -v chromium-browser || command -v google-chrome; }

prepare_environment() {
  # Everything that Open MPI leaves behind when a test kills its ranks lies in folders of this run alone.
  shared_folder=$(mktemp -d /dev/shm/rz-tests.XXXXXX)
  session_folder=$(mktemp -d /tmp/rz-tests.XXXXXX)
  trap 'rm -rf "$shared_folder" "$session_folder"' EXIT
  trap 'exit 130' INT TERM
  export OMPI_MCA_btl_vader_backing_directory=$shared_folder OMPI_MCA_orte_tmpdir_base=$session_folder
  # Ranks share few cores here: none is bound, idle ones yield.
  export OMPI_MCA_hwloc_base_binding_policy=none OMPI_MCA_rmaps_base_oversubscribe=true OMPI_MCA_mpi_yield_when_idle=1
  if ((EUID == 0)); then
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
  fi
  # Without detect_stack_use_after_return: g++ 12 gives its heap frames less alignment than vectors of AVX-512 need.
  export ASAN_OPTIONS=detect_leaks=1:detect_stack_use_after_return=0:abort_on_error=0
  export LSAN_OPTIONS=suppressions=$PWD/tests/support/lsan.supp:print_suppressions=0
  export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
  export TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1
  export CTEST_OUTPUT_ON_FAILURE=1
}

# build PRESET: configures and builds it, files in batches.
build() { cmake --preset "$1" -DRZ_BUILD_TESTS=ON -DCMAKE_UNITY_BUILD=ON && cmake --build --preset "$1"; }

# ctest_of PRESET ARGUMENT...: no tests at all is a failure, too.
ctest_of() {
  local preset=$1 launcher=()
  shift
  # ThreadSanitizer needs its place in the address space: some kernels randomize further than it expects.
  if [[ $preset == tsan ]] && setarch "$(uname -m)" -R true 2>/dev/null; then
    launcher=(setarch "$(uname -m)" -R)
  fi
  "${launcher[@]}" ctest --preset "$preset" --no-tests=error -j "${RZ_TEST_JOBS:-1}" "$@"
}

finish() {
  printf '\n== what ran\n'
  printf '%s\n' "${results[@]}"
  printf '%d min %02d s in all\n' $((SECONDS / 60)) $((SECONDS % 60))
  if ((failed)); then
    echo "FAILED"
    exit 1
  fi
  echo "all passed"
}
