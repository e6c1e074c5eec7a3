#!/usr/bin/env bash
# Memory under mpirun: what `ringzero memory` predicts is what 1, 2 and 3 ranks measure in every stage, to the byte, and so are the bytes
# on the wire; a limit that is too low ends all ranks in the phase that breaks it, with the ledger. Usage: memory_mpi.sh PATH_TO_RINGZERO
set -euo pipefail
ringzero=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() { echo "FAILED: $*" >&2; exit 1; }

for _ in $(seq 400); do echo "in the beginning was the word and the word was with"; echo "let there be light and there was light"; done >"$work/text.txt"
cat >"$work/job.textproto" <<JOB
transformer { layers: 3 width: 24 heads: 3 context: 16 positions: ROPE }
text { path: "$work/text.txt" }
training { steps: 3 batch: 7 threads: 1 evaluate_sequences: 8 }
JOB

# --- measured = predicted -----------------------------------------------------------------------------------------------------
"$ringzero" memory "$work/job.textproto" --ranks 1,2,3 --stages 0,1,2,3 --measure --out "$work/memory" >"$work/table.txt" 2>"$work/err" \
  || { cat "$work/err" >&2; fail "memory --measure"; }
# stage ranks | 7 categories | peak measured DIFFERENCE B UNACCOUNTED B growth ratio
rows=$(awk '$1 ~ /^[0-3]$/ && $3 == "|" {
  if ($15 != "B" || $17 != "B") {print "no such columns: " $0; exit}
  if ($14 != 0) print "predicted and measured differ by " $14 " bytes in stage " $1 " on " $2 " ranks"
  if ($16 != 0) print $16 " bytes unaccounted in stage " $1 " on " $2 " ranks"
  ++n } END {print n + 0}' "$work/table.txt")
[ "$rows" = 12 ] || { cat "$work/table.txt" >&2; fail "$rows"; }

# Sent per step, from the transport's counters: 2 (N-1)/N of the payload; in stage 3 3 (N-1)/N, the outermost unit once less.
for n in 1 2 3; do
  "$ringzero" plan "$work/job.textproto" --ranks $n --json >"$work/plan.json"
  outer=$(sed -n '/"name": "outermost"/,/}/s/.*"padded_parameters": \([0-9]*\).*/\1/p' "$work/plan.json")
  for stage in 0 1 2 3; do
    summary=$work/memory/runs/stage${stage}_ranks$n/run/summary.json
    values() { sed -n "s/.*\"$1\": \([0-9.]*\).*/\1/p" "$summary"; }
    [ "$(values sent_bytes_per_step | wc -l)" = $n ] || fail "not the traffic of $n ranks"
    paste <(values sent_bytes_per_step) <(values payload_bytes) | awk -v n=$n -v stage=$stage -v outer="$outer" '{
      want = stage < 3 ? 2 * (n - 1) / n * $2 : (n - 1) / n * (3 * $2 - 4 * outer)
      if ($2 <= 0 || $1 != want) {print "stage " stage " on " n " ranks sends " $1 " bytes a step, not " want; bad = 1}} END {exit bad}' >&2 || fail "bytes on the wire"
  done
done

# --- limits ---------------------------------------------------------------------------------------------------------------------
# Ranks are left to end by themselves (mpirun then ends with 0): one that hangs runs into the timeout.
cat >"$work/rank.sh" <<'RANK'
code=0; "$@" || code=$?
echo "$code" >"$CODES.$OMPI_COMM_WORLD_RANK"
exit "$code"
RANK
# Phases in the order of time. Those left out hold nothing that was not there before them, so that no limit breaks first in them.
order=(init forward backward evaluate save)
# breaks PHASE ARGUMENT...: a limit between what earlier phases need and what this one does.
breaks() {
  local phase=$1 before=0 need=0; shift
  "$ringzero" plan "$work/job.textproto" --ranks 3 "$@" >"$work/plan.txt"
  for p in "${order[@]}"; do
    need=$(awk -v p="$p" '$1 == p {gsub(",", "", $2); print $2}' "$work/plan.txt")
    [ "$p" != "$phase" ] || break
    [ "$need" -le $before ] || before=$need
  done
  [ "$need" -gt $((before + 1000)) ] || fail "$phase needs $need bytes, earlier phases $before: no limit lies between"
  rm -f "$work"/codes.*
  local limit code=0
  limit=$(awk -v a=$before -v b="$need" 'BEGIN {printf "%.6f", (a + b) / 2e6}')
  CODES=$work/codes timeout 120 mpirun --bind-to none --oversubscribe --mca mpi_yield_when_idle 1 --mca orte_abort_on_non_zero_status 0 -np 3 \
    bash "$work/rank.sh" "$ringzero" train "$work/job.textproto" "$@" --memory-limit "$limit" --out "$work/limited" >"$work/out" 2>&1 || code=$?
  rm -rf "$work/limited"
  [ "$code" != 124 ] || { cat "$work/out" >&2; fail "$phase: not all ranks ended"; }
  for r in 0 1 2; do
    [ -s "$work/codes.$r" ] && [ "$(cat "$work/codes.$r")" != 0 ] || { cat "$work/out" >&2; fail "$phase: rank $r ended with '$(cat "$work/codes.$r")'"; }
  done
  for what in "memory limit of .* in phase $phase" "largest holders" "parameter .* now .* peak" "would fit\|comes nearest"; do
    grep -q "$what" "$work/out" || { cat "$work/out" >&2; fail "$phase: nothing says '$what'"; }
  done
  ! grep "memory limit of .* in phase" "$work/out" | grep -v "in phase $phase," || fail "$phase: another phase broke the limit"
  echo "a limit of $limit MB ($before bytes before, $need needed) ends all ranks in phase $phase"
}
for stage in 0 3; do
  breaks init --stage $stage --set transformer.width=96
  breaks forward --stage $stage
  breaks backward --stage $stage --set transformer.width=96 --set training.batch=30 --recompute FULL
  breaks evaluate --stage $stage --set training.batch=3 --set training.evaluate_sequences=600
  breaks save --stage $stage
done
echo "memory under mpirun is as predicted"
