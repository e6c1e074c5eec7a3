#!/usr/bin/env bash
# The tests that take long (label `nightly`): one set of bits over some two hundred runs, soaks; and those in a browser, which it installs.
# In the release build only. Also a build of every file by itself and, where valgrind is installed, the instructions of the hot kernels beside
# those counted before.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source tests/common.sh

phase "install packages" bash tools/install_dependencies.sh || { finish; exit 1; }
find_browser >/dev/null || phase "install a browser" bash tools/install_dependencies.sh --browser || true
prepare_environment
if phase "build release" build release; then
  phase "test release, nightly and browser" ctest_of release -L "nightly|browser" || true
  find_browser >/dev/null || not_run "tests labelled browser" "Chromium could not be installed" counts
else
  not_run "test release, nightly and browser" "the build failed" counts
fi
# What batches hide: a file that lacks an include.
every_file_by_itself() { cmake --preset release -B build/by_file -DCMAKE_UNITY_BUILD=OFF && cmake --build build/by_file; }
phase "build release, every file by itself" every_file_by_itself || true
phase "instruction counts" bench/instructions.py || true
finish
