#!/usr/bin/env bash
# One set of bits under mpirun: weights_digest and the losses of 20 steps on 2, 3 and 4 ranks do not depend on the stage, on recomputation
# or on hybrid groups' stages, with clipping, without it, and with accumulation, in the reduction modes ring and ordered; with exact
# they depend on none of that and not on the number of ranks. Beside them the controls: what may change the bits does.
# Usage: bits_mpi.sh PATH_TO_RINGZERO
set -euo pipefail
ringzero=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() { echo "FAILED: $*" >&2; exit 1; }

for _ in $(seq 100); do echo "in the beginning was the word and the word was with"; echo "let there be light and there was light"; done >"$work/text.txt"
cat >"$work/job.textproto" <<JOB
transformer { layers: 2 width: 16 heads: 2 context: 8 }
text { path: "$work/text.txt" }
training { steps: 20 batch: 8 threads: 1 evaluate_sequences: 4 clip_norm: 0.1 }
schedule { learning_rate: 1e-2 }
JOB

runs=0
# bits RANKS ARGUMENT...: sets bits to the digest of the weights and of the losses.
bits() {
  local n=$1; shift
  rm -rf "$work/run"
  mpirun --bind-to none --oversubscribe --mca mpi_yield_when_idle 1 -np "$n" "$ringzero" train "$work/job.textproto" --out "$work/run" "$@" \
    >"$work/output" 2>&1 || { cat "$work/output" >&2; fail "$n ranks, $*"; }
  local weights losses
  weights=$(sed -n 's/^ *"weights_digest": "\([0-9a-f]*\)".*/\1/p' "$work/run/summary.json")
  losses=$(sed -n 's/.*"loss":\([^,]*\),.*/\1/p' "$work/run/metrics.jsonl")
  [ ${#weights} = 16 ] && [ "$(wc -l <<<"$losses")" = 20 ] || fail "$n ranks, $*: no digest or not 20 losses"
  bits="$weights $(md5sum <<<"$losses" | cut -c1-16)"
  runs=$((runs + 1))
}
# same EXPECTED RANKS ARGUMENT...
same() {
  local expected=$1; shift
  bits "$@"
  [ "$bits" = "$expected" ] || fail "ranks $*: bits $bits instead of $expected"
}
declare -A seen
# new NAME: the bits at hand are like no others before; a mode that silently were another would fail here.
new() {
  [ -z "${seen[$bits]:-}" ] || fail "$1 has the bits of ${seen[$bits]}"
  seen[$bits]=$1
  echo "$bits  $1"
}

# What must not change the bits, in the settings that are given.
stages() {
  local expected=$1 n=$2; shift 2
  for stage in 1 2 3; do same "$expected" "$n" --stage $stage "$@"; done
}

every=(--accumulate 2 --set sharding.reduce_every=true)
for mode in ring ordered; do
  for n in 2 3 4; do
    name="$mode on $n ranks"
    bits "$n" --reduction $mode; clipped=$bits
    [ "$n" = 2 ] && [ $mode = ordered ] || new "$name"  # two addends have one order: these bits may be those of the ring
    stages "$clipped" "$n" --reduction $mode
    for recompute in FULL SELECTIVE SQRT; do same "$clipped" "$n" --reduction $mode --stage 3 --recompute $recompute; done
    same "$clipped" "$n" --reduction $mode --stage 0 --recompute FULL
    if [ $mode = ordered ]; then
      same "$clipped" "$n" --reduction $mode --stage 2 --bucket-mb 0.01
    elif [ "$n" -gt 2 ]; then
      bits "$n" --reduction $mode --stage 2 --bucket-mb 0.01
      new "$name in other buckets"
    fi

    bits "$n" --reduction $mode --set training.clip_norm=0
    [ "$bits" != "$clipped" ] || fail "$name: nothing was clipped"
    stages "$bits" "$n" --reduction $mode --set training.clip_norm=0
    bits "$n" --reduction $mode "${every[@]}"
    [ "$bits" != "$clipped" ] || fail "$name: nothing was accumulated"
    stages "$bits" "$n" --reduction $mode "${every[@]}"
    bits "$n" --reduction $mode --accumulate 2
    stages "$bits" "$n" --reduction $mode --accumulate 2
  done
  bits 4 --reduction $mode --group-size 2
  [ $mode = ordered ] || new "$mode on 4 ranks in groups of 2"  # two addends, twice
  stages "$bits" 4 --reduction $mode --group-size 2
done

bits 1 --reduction exact; exact=$bits
new "exact on any number of ranks"
bits 1 --reduction exact --set training.clip_norm=0; unclipped=$bits
new "exact on any number of ranks, without clipping"
for n in 1 2 3 4; do
  for stage in 0 1 2 3; do
    same "$exact" "$n" --reduction exact --stage $stage
    same "$unclipped" "$n" --reduction exact --stage $stage --set training.clip_norm=0
  done
  same "$exact" "$n" --reduction exact --stage 3 --recompute FULL
  same "$exact" "$n" --reduction exact --stage 0 --recompute SELECTIVE --accumulate 2
  same "$exact" "$n" --reduction exact --stage 2 "${every[@]}"
  same "$exact" "$n" --reduction exact --stage 3 --bucket-mb 0.01 "${every[@]}"
done
for stage in 0 1 2 3; do same "$exact" 4 --reduction exact --stage $stage --group-size 2; done
same "$exact" 2 --reduction exact --stage 3 --group-size 1
for precision in bf16 f16; do
  bits 1 --reduction exact --precision $precision; expected=$bits
  new "exact in $precision on any number of ranks"
  same "$expected" 2 --reduction exact --precision $precision --stage 1
  same "$expected" 3 --reduction exact --precision $precision --stage 3 --recompute FULL
  same "$expected" 4 --reduction exact --precision $precision --stage 2 --group-size 2
done
echo "$runs runs under mpirun: one set of bits each"
