#!/usr/bin/env bash
# Long runs do not grow: 500 steps under mpirun on 3 ranks, with validations and checkpoints in between; from the second step on every
# category's peak is the same to the byte, on every rank. Usage: steady_memory.sh PATH_TO_RINGZERO [STEPS]
set -euo pipefail
ringzero=$1
steps=${2:-500}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() { echo "FAILED: $*" >&2; exit 1; }

for _ in $(seq 400); do echo "in the beginning was the word and the word was with"; echo "let there be light and there was light"; done >"$work/text.txt"
cat >"$work/job.textproto" <<JOB
transformer { layers: 2 width: 32 heads: 2 context: 32 }
text { path: "$work/text.txt" }
training { steps: $steps batch: 6 threads: 1 evaluate_sequences: 12 evaluate_every: 100 save_every: 150 }
JOB

for stage in 0 3; do
  run=$work/stage$stage
  mpirun --bind-to none --oversubscribe --mca mpi_yield_when_idle 1 -np 3 "$ringzero" train "$work/job.textproto" --stage $stage --out "$run" >/dev/null
  [ "$(wc -l <"$run/metrics.jsonl")" = "$steps" ] || fail "stage $stage: not $steps steps in the metrics"
  # Rank 0's peaks of each step are in the metrics; what each rank saw over all its steps is in the summary.
  peaks=$(sed -n '2,$s/.*"peak_bytes":\({[^}]*}\).*/\1/p' "$run/metrics.jsonl")
  [ "$(wc -l <<<"$peaks")" = $((steps - 1)) ] || fail "stage $stage: steps without peak_bytes"
  different=$(sort <<<"$peaks" | uniq -c)
  [ "$(wc -l <<<"$different")" = 1 ] || fail "stage $stage: peaks change after step 2:"$'\n'"$different"
  since=$(sed -n 's/.*"step_peaks_constant_since": \([0-9]*\).*/\1/p' "$run/summary.json")
  [ "$(wc -l <<<"$since")" = 3 ] || fail "stage $stage: not the peaks of 3 ranks"
  for s in $since; do [ "$s" -ge 1 ] && [ "$s" -le 2 ] || fail "stage $stage: a rank's peaks change as late as in step $s"; done
  echo "stage $stage, $steps steps on 3 ranks: peaks constant since step" $since "(by rank); rank 0: $(head -n 1 <<<"$peaks")"
done
echo "no category grows"
