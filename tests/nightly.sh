#!/usr/bin/env bash
# The tests that take long (label `nightly`): one set of bits over some two hundred runs, soaks. In the release build only.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source tests/common.sh

phase "install packages" bash tools/install_dependencies.sh || { finish; exit 1; }
prepare_environment
if phase "build release" build release; then
  phase "test release, nightly" ctest_of release -L nightly || true
else
  not_run "test release, nightly" "the build failed" counts
fi
finish
