#!/bin/bash
# The command as users run it: collectives_command.sh PATH_TO_ringzero
# Right results over threads and over MPI, the columns, JSON, and one clear line with a non-zero code for bad flags.
set -u
program=${1:?usage: collectives_command.sh PATH_TO_ringzero}
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
mpi() { mpirun --bind-to none --oversubscribe --mca mpi_yield_when_idle 1 -np "$1" "${@:2}"; }
out=$(mktemp)
trap 'rm -f "$out"' EXIT
failures=0

fail() {
  echo "FAILED $*"
  sed 's/^/    | /' "$out"
  failures=$((failures + 1))
}

right() { # description, rows, command...
  local what=$1 rows=$2
  shift 2
  "$@" >"$out" 2>&1 || fail "$what: exit code $?"
  [ "$(awk '!/^#/ && NF == 8 && $8 == "0"' "$out" | wc -l)" -eq "$rows" ] || fail "$what: not $rows rows without error"
  echo "done   $what"
}

wrong() { # description, text, command...
  local what=$1 text=$2
  shift 2
  "$@" >"$out" 2>&1 && fail "$what: exit code 0"
  [ "$(grep -c -- "$text" "$out")" -eq 1 ] || fail "$what: not one line with '$text'"
  echo "done   $what"
}

for dtype in f32 bf16 f16 f64 i32 i64 u8; do
  right "all, 3 threads, $dtype" 16 "$program" collectives --ranks 3 --op all --dtype $dtype -e 1M -f 64 --iters 2 --order ring -b 4
done
right "mean, ordered, 3 ranks over MPI" 4 mpi 3 "$program" collectives --dtype bf16 --reduce mean --order ordered -b 4 -e 1M -f 64 --iters 2
right "all, 2 ranks over MPI" 16 mpi 2 "$program" collectives --op all -b 4 -e 1M -f 64 --iters 2
right "one rank" 4 "$program" collectives -b 4 -e 1M -f 64 --iters 2
right "all, 4 threads on 2 nodes" 16 "$program" collectives --ranks 4 --link 10Gbit,1us --inter-node-link 1Gbit,20us,jitter\ 5us --nodes 2 \
  --op all -b 4 -e 1M -f 64 --iters 2
right "3 ranks over MPI and links" 4 mpi 3 "$program" collectives --link "1Gbit,20us;1>2=100Mbit" -b 4 -e 1M -f 64 --iters 2
"$program" collectives --ranks 2 -e 64 -f 8 --json >"$out" || fail "--json"
[ "$(grep -c '"error": 0.0,' "$out")" -eq 2 ] && grep -q '"ranks": 2' "$out" && grep -q '"size_bytes": 64' "$out" || fail "--json"
echo "done   --json"

wrong "size" "'64X' is not a size" "$program" collectives -e 64X
wrong "collective" "unknown collective 'gossip'" "$program" collectives --op gossip
wrong "dtype" "unknown dtype 'f8'" mpi 3 "$program" collectives --dtype f8
wrong "mean of integers" "mean needs a floating-point" "$program" collectives --dtype i32 --reduce mean
wrong "ranks" "4 ranks asked for, but mpirun started 2" mpi 2 "$program" collectives --ranks 4
wrong "threads under mpirun" "transport threads under mpirun" mpi 2 "$program" collectives --transport threads
wrong "link" "'1Gbps' is no rate" mpi 2 "$program" collectives --link 1Gbps
wrong "nodes" "nodes is 2, which does not divide 3 ranks" mpi 3 "$program" collectives --link 1Gbit --nodes 2
wrong "flag" "gossip" mpi 2 "$program" collectives --gossip

echo "$failures failures"
[ $failures -eq 0 ]
