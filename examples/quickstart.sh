#!/usr/bin/env bash
# From a fresh clone to a trained model: installs what is missing, builds, trains a small GPT on the King James Bible on two
# ranks, and lets it write. About ten minutes on two cores. Usage: examples/quickstart.sh [OUT], default runs/quickstart-<time>.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

out=${1:-runs/quickstart-$(date +%Y%m%d-%H%M%S)}
started=$SECONDS
say() { printf '\n== %s (%d s)\n' "$*" $((SECONDS - started)); }

say "installing missing packages"
bash tools/install_dependencies.sh

say "building (release)"
cmake --preset release -DCMAKE_UNITY_BUILD=ON  # files in batches: little more than half the time for a first build
cmake --build --preset release --target ringzero
ringzero=$PWD/build/release/bin/ringzero

# Open MPI refuses to start as root unless told that this is meant, as in containers.
if ((EUID == 0)); then
  export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
fi

say "training examples/gpt_kjv.textproto on 2 ranks into $out"
# Without --bind-to none Open MPI ties each of two ranks to one core; yielding lets ranks share cores when there are fewer of them.
mpirun -np 2 --bind-to none --oversubscribe --mca mpi_yield_when_idle 1 \
  "$ringzero" train examples/gpt_kjv.textproto --out "$out"

say "a sample"
"$ringzero" sample "$out" --prompt "In the beginning" --tokens 400

say "done; the run is in $out"
