#!/usr/bin/env bash
# The program under mpirun: the same losses on any number of ranks and in any stage, resuming, sampling, and bad input that is one
# clear line and a non-zero code. Usage: program_mpi.sh PATH_TO_RINGZERO
set -euo pipefail
ringzero=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() { echo "FAILED: $*" >&2; exit 1; }
ranks() { local n=$1; shift; mpirun --bind-to none --oversubscribe --mca mpi_yield_when_idle 1 -np "$n" "$ringzero" "$@"; }
field() { sed -n "s/^ *\"$2\": \"\{0,1\}\([^\",]*\).*/\1/p" "$1/summary.json" | head -n 1; }
losses() { sed 's/.*"loss":\([^,]*\),.*/\1/' "$1/metrics.jsonl"; }

for _ in $(seq 400); do echo "in the beginning was the word and the word was with"; echo "let there be light and there was light"; done >"$work/text.txt"
cat >"$work/job.textproto" <<JOB
transformer { layers: 2 width: 16 heads: 2 context: 16 }
text { path: "$work/text.txt" }
training { steps: 20 batch: 7 threads: 1 evaluate_sequences: 20 check_replicas: true }
schedule { learning_rate: 1e-2 }
JOB

for n in 1 2 3 5; do ranks "$n" train "$work/job.textproto" --out "$work/n$n" >/dev/null; done
for n in 2 3 5; do
  paste <(losses "$work/n1") <(losses "$work/n$n") | awk -v n="$n" '{d = ($1 - $2) / $1; if (d < 0) d = -d; if (d > 1e-5) {print "step " NR ": " $1 " on 1 rank, " $2 " on " n; bad = 1}} END {exit bad || NR != 20}' \
    || fail "losses on $n ranks differ from one rank's"
done

ranks 3 train "$work/job.textproto" --out "$work/again" >/dev/null
cmp <(losses "$work/n3") <(losses "$work/again") || fail "the same command twice gave other losses"
for stage in 1 2 3; do
  ranks 3 train "$work/job.textproto" --stage $stage --out "$work/stage$stage" >/dev/null
  [ "$(field "$work/stage$stage" weights_digest)" = "$(field "$work/n3" weights_digest)" ] || fail "stage $stage has other weights than stage 0"
done

ranks 4 train "$work/job.textproto" --link "1Gbit,50us,jitter 20us" --inter-node-link 200Mbit,100us --nodes 2 --out "$work/links" >/dev/null
ranks 4 train "$work/job.textproto" --out "$work/no_links" >/dev/null
[ "$(field "$work/links" weights_digest)" = "$(field "$work/no_links" weights_digest)" ] || fail "links changed the weights"

# Exact sums: the weights of one rank on any number, in any stage and grouping.
ranks 1 train "$work/job.textproto" --reduction exact --micro-batch 2 --out "$work/exact1" >/dev/null
exact() {
  local name=$1 n=$2; shift 2
  ranks "$n" train "$work/job.textproto" --reduction exact --micro-batch 2 --out "$work/$name" "$@" >/dev/null
  cmp <(losses "$work/exact1") <(losses "$work/$name") || fail "$name: exact losses differ from one rank's"
  for key in weights_digest val_loss; do
    [ "$(field "$work/$name" $key)" = "$(field "$work/exact1" $key)" ] || fail "$name: exact sums gave another $key than one rank's"
  done
}
exact exact2 2 --stage 2
exact exact3 3 --stage 3 --accumulate 2
exact exact4 4 --stage 1 --group-size 2

ranks 2 train "$work/job.textproto" --steps 10 --set schedule.kind=CONSTANT --out "$work/part" >/dev/null
ranks 2 train "$work/job.textproto" --steps 20 --set schedule.kind=CONSTANT --out "$work/part" --resume >/dev/null
ranks 2 train "$work/job.textproto" --steps 20 --set schedule.kind=CONSTANT --out "$work/whole" >/dev/null
cmp <(losses "$work/part") <(losses "$work/whole") || fail "a resumed run differs from an uninterrupted one"

ranks 1 sample "$work/n2" --prompt "in the" --tokens 20 | grep -q "^in the" || fail "no sample"
ranks 2 train "$work/job.textproto" --steps 2 --out "$work/json" --json | grep '^ *"ranks": 2' >/dev/null || fail "--json is no JSON"

# refused NAME PATTERN ARGUMENTS...: exits non-zero, says PATTERN once, leaves no run directory.
refused() {
  local name=$1 pattern=$2; shift 2
  if ranks 3 train "$@" --out "$work/refused" >"$work/out" 2>"$work/err"; then fail "$name was accepted"; fi
  [ "$(grep -c "^ringzero: .*$pattern" "$work/err")" = 1 ] || { cat "$work/err" >&2; fail "$name: not one line with '$pattern'"; }
  [ ! -e "$work/refused" ] || fail "$name left something behind"
}
printf '\xf8\x84\x35\x01' >"$work/short.bin"
refused "a missing job" "nowhere.textproto" "$work/nowhere.textproto"
refused "an unknown field" "has no field 'layer'" "$work/job.textproto" --set transformer.layer=3
sed 's/layers: 2/layer: 2/' "$work/job.textproto" >"$work/typo.textproto"
refused "an unknown field in the file" "typo.textproto:1:[0-9]*: .*layer" "$work/typo.textproto"
refused "a width that heads do not divide" "heads" "$work/job.textproto" --set transformer.heads=3
refused "a context longer than the data" "500000" "$work/job.textproto" --set transformer.context=500000
refused "groups that do not divide the ranks" "groups of 2" "$work/job.textproto" --group-size 2
refused "a batch smaller than the ranks" "batch of 2" "$work/job.textproto" --set training.batch=2
refused "a truncated token file" "short.bin" "$work/job.textproto" --set "tokens={train_path: \"$work/short.bin\" validation_path: \"$work/short.bin\"}"
for command in "memory --stage 3" "bench --steps 3"; do
  read -r name flag value <<<"$command"
  if "$ringzero" "$name" "$work/job.textproto" "$flag" "$value" >/dev/null 2>"$work/err"; then fail "$name $flag was accepted"; fi
  grep -q -- "not $flag" "$work/err" || fail "$name does not say what to give instead of $flag"
done
touch "$work/file"
if ranks 3 train "$work/job.textproto" --out "$work/file/run" >/dev/null 2>"$work/err"; then fail "an unwritable directory was accepted"; fi
grep -q "$work/file" "$work/err" || fail "the unwritable directory is not named"
echo "all of the program under mpirun passed"
