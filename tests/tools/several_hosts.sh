#!/usr/bin/env bash
# The program on several hosts, which are network namespaces, over Open MPI's TCP path: the weights of one host, a shaped link, a link
# that goes down. Usage: several_hosts.sh PATH_TO_RINGZERO. Exit code 77: not run here, and why.
set -euo pipefail
ringzero=$(realpath "$1")
tools=$(dirname "$(realpath "$0")")/../../tools
run() { bash "$tools/hosts.sh" "$@"; }
run --check || exit $?
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() { echo "FAILED: $*" >&2; cat "$work/out" >&2; exit 1; }
field() { sed -n "s/^ *\"$2\": \"\{0,1\}\([^\",]*\).*/\1/p" "$1/summary.json" | head -n 1; }

for _ in $(seq 400); do echo "in the beginning was the word and the word was with"; echo "let there be light and there was light"; done >"$work/text.txt"
cat >"$work/job.textproto" <<JOB
transformer { layers: 2 width: 16 heads: 2 context: 16 }
text { path: "$work/text.txt" }
training { steps: 10 batch: 8 threads: 1 evaluate_sequences: 20 check_replicas: true }
JOB
"$ringzero" train "$work/job.textproto" --ranks 4 --stage 0 --out "$work/one" >"$work/out" 2>&1 || fail "training on one host"
for stage in 1 3; do
  run --hosts 2 --ranks-per-host 2 --rate 200mbit "$ringzero" train "$work/job.textproto" --stage $stage --out "$work/two$stage" >"$work/out" 2>&1 ||
    fail "training on two hosts, stage $stage"
  [ "$(field "$work/two$stage" weights_digest)" = "$(field "$work/one" weights_digest)" ] || fail "two hosts, stage $stage, have other weights than one"
done
echo "done   the same weights on one host and on two"

# busbw is what each host sends per second: 25 MB/s at most, once the shaper's 32 KiB are gone; three hosts, right results.
run --hosts 3 --rate 200mbit "$ringzero" collectives -b 8M -e 8M --iters 3 --warmup 1 >"$work/out" 2>&1 || fail "collectives on three hosts"
awk '!/^#/ && NF == 8 {rows++; if ($7 > 0.0255 || $8 != 0) bad = 1} END {exit bad || rows != 1}' "$work/out" || fail "faster than the link, or wrong"
echo "done   200 Mbit/s are not exceeded"

# shellcheck disable=SC2016
script='
RZ_COMM_DEADLINE_S=3 launch "$@" & job=$!
for _ in $(seq 100); do [ -n "$(busy "${hosts[1]}")" ] && break; sleep 0.1; done
sleep 2
unplug "${hosts[1]}"
for _ in $(seq 80); do [ -z "$(busy "${hosts[0]}")$(busy "${hosts[1]}")" ] && break; sleep 0.1; done
echo "left: $(busy "${hosts[0]}") $(busy "${hosts[1]}")"
kill -KILL $job'
script="busy() { for p in \$(ip netns pids \"\$1\"); do [ \"\$(cat /proc/\$p/comm 2>/dev/null)\" = ringzero ] && echo \$p; done; true; }; $script"
RZ_MPI_ARGUMENTS="-x RZ_COMM_DEADLINE_S" run --hosts 2 --shell "$script" "$ringzero" collectives -b 1M -e 1M --iters 1000000 >"$work/out" 2>&1 || true
grep -q "^ringzero: rank 0/2 .*no answer from rank 1: dead or stopped" "$work/out" || fail "an unplugged host is not named"
grep -q "^left:  *$" "$work/out" || fail "ranks live on, ten seconds after their host was unplugged"
echo "done   an unplugged host is named, and no rank is left"
for name in $(ip netns list | sed -n 's/^\(rz[0-9]*-[0-9a-z]*\).*/\1/p'); do
  pid=${name#rz}
  [ -e "/proc/${pid%%-*}" ] || { ip netns list >"$work/out"; fail "namespace $name is left"; }
done
