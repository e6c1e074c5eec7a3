#!/bin/bash
# Faults over MPI: mpi_faults.sh PATH_TO_test_comm_mpi
# Ranks that disagree, leave, throw, are killed (SIGKILL) or stopped (SIGSTOP): every surviving rank must say so, name the
# cause, and the job must end non-zero within its bound. Sweeps up the shared memory that killed jobs leave behind.
set -u
binary=${1:?usage: mpi_faults.sh PATH_TO_test_comm_mpi}
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export RZ_COMM_DEADLINE_S=2
work=$(mktemp -d)
# Killed jobs leave segments and session directories: they go to places of their own, which go with this script.
export TMPDIR=$work
backing=$(mktemp -d -p /dev/shm rz_faults.XXXXXX 2>/dev/null || mktemp -d)
trap 'rm -rf "$work" "$backing"' EXIT
failures=0

launch() { # ranks case
  mpirun --bind-to none --oversubscribe --mca mpi_yield_when_idle 1 --mca btl_vader_backing_directory "$backing" \
    -np "$1" "$binary" "$2" "$1"
}

now_ms() { date +%s%3N; }

verdict() { # label exit-code elapsed-ms limit-ms output regex...
  local label=$1 code=$2 elapsed=$3 limit=$4 output=$5 bad=""
  shift 5
  [ "$code" -ne 0 ] && [ "$code" -ne 124 ] || bad="exit code $code"
  [ "$elapsed" -le "$limit" ] || bad="$bad; took $elapsed ms, limit $limit"
  for regex in "$@"; do
    grep -Eq -- "$regex" "$output" || bad="$bad; nothing matches /$regex/"
  done
  if [ -z "$bad" ]; then
    echo "ok     $label ($elapsed ms, exit code $code)"
  else
    echo "FAILED $label: $bad"
    sed 's/^/    | /' "$output"
    failures=$((failures + 1))
  fi
}

# A case that ends by itself; every pattern must appear in the output.
expect() { # ranks case limit-ms regex...
  local ranks=$1 name=$2 limit=$3 begin output=$work/out
  shift 3
  begin=$(now_ms)
  timeout 60 bash -c "$(declare -f launch); binary='$binary' backing='$backing' launch $ranks $name" >"$output" 2>&1
  verdict "$name on $ranks ranks" $? $(($(now_ms) - begin)) "$limit" "$output" "$@"
}

# A zombie that nobody collects has ended.
runs() { [ -r "/proc/$1/stat" ] && [ "$(sed 's/.*) //; s/ .*//' "/proc/$1/stat" 2>/dev/null)" != Z ]; }

until_under_way() { # ranks, whose process ids go to $RZ_PID_DIR
  for _ in $(seq 100); do
    [ "$(ls "$RZ_PID_DIR" | grep -vc tmp)" -eq "$1" ] && break
    sleep 0.05
  done
  sleep 0.3
}

# A case whose rank `victim` gets `signal` once all ranks are under way; bounded from the signal on.
strike() { # ranks case victim signal limit-ms regex...
  local ranks=$1 name=$2 victim=$3 signal=$4 limit=$5 output=$work/out begin job
  shift 5
  export RZ_PID_DIR=$work/pids
  rm -rf "$RZ_PID_DIR" && mkdir "$RZ_PID_DIR"
  launch "$ranks" "$name" >"$output" 2>&1 &
  job=$!
  until_under_way "$ranks"
  begin=$(now_ms)
  kill -"$signal" "$(cat "$RZ_PID_DIR/$victim")"
  (sleep 30 && kill -9 $job 2>/dev/null) &
  local guard=$!
  wait $job
  local code=$?
  local elapsed=$(($(now_ms) - begin))
  kill $guard 2>/dev/null
  wait $guard 2>/dev/null
  for pid in $(cat "$RZ_PID_DIR"/* 2>/dev/null); do  # nobody may survive
    for _ in $(seq 20); do runs "$pid" && sleep 0.1; done
    if runs "$pid"; then
      echo "orphan $pid" >>"$output"
      kill -9 "$pid"
      code=0
    fi
  done
  verdict "SIG$signal, $name on $ranks ranks" $code $elapsed "$limit" "$output" "$@"
}

# All ranks stand still for longer than the deadline, as under a debugger or on a machine that sleeps; then they go on.
pause_all() { # ranks
  local ranks=$1 output=$work/out job
  export RZ_PID_DIR=$work/pids
  rm -rf "$RZ_PID_DIR" && mkdir "$RZ_PID_DIR"
  timeout -k 5 60 bash -c "$(declare -f launch); binary='$binary' backing='$backing' launch $ranks paused" >"$output" 2>&1 &
  job=$!
  until_under_way "$ranks"
  kill -STOP $(cat "$RZ_PID_DIR"/*)
  sleep 4
  kill -CONT $(cat "$RZ_PID_DIR"/*)
  if wait $job && grep -q "PASSED paused on $ranks ranks" "$output"; then
    echo "ok     paused on $ranks ranks"
  else
    echo "FAILED paused on $ranks ranks"
    sed 's/^/    | /' "$output"
    failures=$((failures + 1))
  fi
}

every() { # ranks text: one pattern per rank
  for r in $(seq 0 $(($1 - 1))); do printf '%s\n' "^ringzero: rank $r/$1 .*$2"; done
}

for n in 2 4; do
  odd=$((n - 1))
  for name in count kind missing; do
    mapfile -t patterns < <(every $n "ranks disagree: .*rank $odd called op#2")
    expect $n $name 5000 "${patterns[@]}"
  done
  mapfile -t patterns < <(every $n "left without calling op#2")
  expect $n extra 5000 "${patterns[@]}"
  mapfile -t patterns < <(every $n "the dog ate the shard")
  expect $n exception 5000 "${patterns[@]}"
done
mapfile -t patterns < <(every 4 "the dog ate the shard")
RZ_INTRA_NODE=messages expect 4 exception_large 8000 "${patterns[@]}"
# Each says so itself: nobody can join a thread that hangs.
mapfile -t patterns < <(every 3 "this rank's progress thread has not moved")
RZ_INTRA_NODE=messages expect 3 hung_threads 9000 "${patterns[@]}"
mapfile -t patterns < <(every 3 "cannot read weights.bin")
expect 3 config_one 6000 "${patterns[@]}"
expect 3 config 5000 "^ringzero: width 65 is not divisible by 4 heads$"
# Exits without a word: mpirun or the deadline ends the job; whoever waited names it.
expect 3 silent_exit 8000 "no answer from rank 2"

for n in 2 3 4; do
  odd=$((n - 1))
  strike $n steady $odd KILL 5000 "op#[0-9]+ gradient\(all_reduce, f32, 200000\): .*no answer from rank $odd"
  mapfile -t patterns < <(every $n "no answer from rank $odd" | grep -v "rank $odd/$n")
  strike $n steady $odd STOP 6000 "${patterns[@]}"
done
strike 3 steady 0 KILL 5000 "no answer from rank 0"
strike 3 idle 1 KILL 5000 "SIGTERM while no collective was running: no answer from rank 1"
# The same over slow links, while segments are on their way.
export RZ_TEST_LINK=100Mbit,1ms
strike 3 steady 2 KILL 5000 "op#[0-9]+ gradient\(all_reduce, f32, 200000\): .*no answer from rank 2"
mapfile -t patterns < <(every 3 "no answer from rank 2" | grep -v "rank 2/3")
strike 3 steady 2 STOP 6000 "${patterns[@]}"
unset RZ_TEST_LINK
# Nobody is struck here (CONT does nothing): the odd rank computes for ever, and answers.
mapfile -t patterns < <(every 3 "rank 2 answers but has not called op#2 \(called 1, idle\)" | grep -v "rank 2/")
strike 3 hung 0 CONT 7000 "${patterns[@]}"

pause_all 3
RZ_INTRA_NODE=messages pause_all 3

echo "$failures failures"
[ $failures -eq 0 ]
