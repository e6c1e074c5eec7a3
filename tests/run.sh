#!/usr/bin/env bash
# All tests that every change must pass: release, AddressSanitizer with UndefinedBehaviorSanitizer, ThreadSanitizer. Installs what is
# missing. Goes on after a failure, so that one run tells everything; the end lists what ran and what did not, and why.
# The long ones are in tests/nightly.sh. Environment: RZ_TEST_JOBS = tests at a time (default 1: tests start ranks themselves; 2 with
# AddressSanitizer, where none starts mpirun and many compute alone).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source tests/common.sh

phase "install packages" bash tools/install_dependencies.sh || { finish; exit 1; }
prepare_environment

# Ranks as threads show the sanitizers everything that is ours; Open MPI's own threads would drown ThreadSanitizer. What is slow without a sanitizer is
# too slow with one.
declare -A left_out=([release]="nightly|hosts" [dev]="nightly|slow|mpi" [tsan]="nightly|slow|mpi")
declare -A jobs=([release]=1 [dev]=2 [tsan]=1)
for preset in release dev tsan; do
  if phase "build $preset" build "$preset"; then
    RZ_TEST_JOBS=${RZ_TEST_JOBS:-${jobs[$preset]}} phase "test $preset, without $(tr '|' ' ' <<<"${left_out[$preset]}")" ctest_of "$preset" -LE "${left_out[$preset]}" || true
  else
    not_run "test $preset" "the build failed" counts
  fi
done

if reason=$(bash tools/hosts.sh --check 2>&1); then
  phase "test release, several hosts" ctest_of release -L hosts || true
else
  not_run "tests labelled hosts" "${reason#not run: }"
fi
find_browser >/dev/null || not_run "tests labelled browser" "no Chromium here (400 MB); tests/nightly.sh installs it"
not_run "tests labelled nightly" "they take long; run tests/nightly.sh"
finish
