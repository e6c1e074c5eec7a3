#!/usr/bin/env bash
# Several hosts on one machine: network namespaces joined by a bridge, links shaped by tc, and an mpirun across them over Open MPI's
# real TCP path. See docs/cluster.md.
#
#   hosts.sh [--hosts 2] [--ranks-per-host 1] [--rate 200mbit] [--delay 1ms] [--] COMMAND...     runs COMMAND on all ranks
#   hosts.sh --check        says whether this machine can, and if not why
#   hosts.sh --shell 'SCRIPT' ...     runs SCRIPT instead, on the first host, with the functions below: for tests
#
# --rate: of each host, in each direction (tc tbf); default: unshaped. --delay: one way (tc netem, which some kernels lack).
# Variables for --shell: hosts (array of names), rate, ranks. Functions: on HOST COMMAND..., launch COMMAND... (the mpirun),
# unplug HOST, plug HOST.
# Exit code: the command's; 77 with a line `not run: why` where rights or tools are missing. Everything is taken down at the end,
# whatever it was, processes included. RZ_MPI_ARGUMENTS: further arguments of mpirun.
set -euo pipefail

not_run() { echo "not run: $*" >&2; exit 77; }
usage() { sed -n '2,15s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 2; }

count=2 per_host=1 rate="" delay="" check=0 shell=""
while (($#)); do
  case $1 in
    --hosts) count=${2:?}; shift 2 ;;
    --ranks-per-host) per_host=${2:?}; shift 2 ;;
    --rate) rate=${2:?}; shift 2 ;;
    --delay) delay=${2:?}; shift 2 ;;
    --check) check=1; shift ;;
    --shell) shell=${2:?}; shift 2 ;;
    --) shift; break ;;
    -*) echo "hosts.sh: unknown option '$1'" >&2; usage ;;
    *) break ;;
  esac
done
[[ $count =~ ^[0-9]+$ && $per_host =~ ^[0-9]+$ ]] && ((count >= 1 && count <= 200 && per_host >= 1)) ||
  { echo "hosts.sh: --hosts $count, --ranks-per-host $per_host: need 1 to 200 hosts and at least 1 rank" >&2; exit 2; }
[[ $rate =~ ^([0-9.]+[kmgt]?bit)?$ && $delay =~ ^([0-9.]+[mu]?s)?$ ]] ||
  { echo "hosts.sh: --rate '$rate', --delay '$delay': need such as 200mbit, 1ms" >&2; exit 2; }
((check)) || [[ -n $shell ]] || (($# > 0)) || usage

PATH=$PATH:/usr/sbin:/sbin
((EUID == 0)) || not_run "network namespaces need root"
for tool in ip tc unshare mpirun; do
  command -v "$tool" >/dev/null || not_run "$tool is missing: apt-get install iproute2 util-linux openmpi-bin"
done

# Names of interfaces have at most 15 letters: a process id of 7 leaves room.
id=rz$$
net=$id-net
hosts=()
for ((h = 0; h < count; ++h)); do hosts+=("$id-$h"); done
work=$(mktemp -d)

take_down() {
  trap - EXIT
  set +e
  exec 2>/dev/null  # not all of it need be there
  local name pids
  for name in "${hosts[@]}" "$net"; do
    # `ip netns exec` and unshare leave the processes in the namespace: whoever is left there is ours.
    pids=$(ip netns pids "$name")
    # shellcheck disable=SC2086
    [[ -z $pids ]] || kill -KILL $pids
    ip netns del "$name"
    rm -rf "/etc/netns/$name"
  done
  rmdir /etc/netns
  rm -rf "$work"
}
trap take_down EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# shape NAMESPACE INTERFACE: what leaves through it.
shape() {
  local parent=root
  if [[ -n $delay ]]; then
    tc -n "$1" qdisc add dev "$2" root handle 1: netem delay "$delay" limit 100000 || return
    parent="parent 1:"
  fi
  # A small bucket: what an idle link saves up would make it faster than it is. The kernel cuts larger packets.
  # shellcheck disable=SC2086
  [[ -z $rate ]] || tc -n "$1" qdisc add dev "$2" $parent tbf rate "$rate" burst 32kb latency 200ms
}

set_up() {
  ip netns add "$net" && ip -n "$net" link add bridge type bridge && ip -n "$net" link set bridge up || return
  local h name line
  for ((h = 0; h < count; ++h)); do
    name=${hosts[h]}
    ip netns add "$name" && ip -n "$name" link set lo up &&
      ip -n "$net" link add "port$h" type veth peer name eth0 netns "$name" &&
      ip -n "$net" link set "port$h" master bridge up &&
      ip -n "$name" addr add "10.213.0.$((h + 1))/24" dev eth0 && ip -n "$name" link set eth0 up &&
      shape "$name" eth0 && shape "$net" "port$h" || return
    # `ip netns exec` shows this file as /etc/hosts.
    mkdir -p "/etc/netns/$name"
    { echo "127.0.0.1 localhost"; for ((line = 0; line < count; ++line)); do echo "10.213.0.$((line + 1)) ${hosts[line]}"; done; } >"/etc/netns/$name/hosts"
  done
}
error=$(set_up 2>&1 >/dev/null) || true
[[ -z $error ]] || not_run "$(tr '\n' ' ' <<<"$error")(--rate ${rate:-none}, --delay ${delay:-none})"
((check)) && { echo "network namespaces work here"; exit 0; }

# What mpirun calls instead of ssh: agent HOST COMMAND. A host name of its own, or all daemons would claim the same one.
cat >"$work/agent" <<'AGENT'
#!/bin/sh
host=$1
shift
exec ip netns exec "$host" unshare -u sh -c "hostname $host; exec $*"
AGENT
chmod +x "$work/agent"
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
host_list=$(printf "%s:$per_host," "${hosts[@]}")
ranks=$((count * per_host))

on() { local host=$1; shift; ip netns exec "$host" "$@"; }
launch() {
  # shellcheck disable=SC2086
  TMPDIR=$work mpirun -np $ranks --host "${host_list%,}" --map-by node --bind-to none --mca mpi_yield_when_idle 1 \
    --mca plm_rsh_agent "$work/agent" --mca btl tcp,self --mca btl_tcp_if_include eth0 --mca oob_tcp_if_include eth0 \
    ${RZ_MPI_ARGUMENTS:-} "$@"
}
unplug() { ip -n "$net" link set "port${1##*-}" down; }
plug() { ip -n "$net" link set "port${1##*-}" up; }
export -f on launch unplug plug
export work net ranks rate host_list first="${hosts[0]}" all_hosts="${hosts[*]}"

# mpirun itself runs on the first host.
code=0
if [[ -n $shell ]]; then
  body="read -ra hosts <<<\"\$all_hosts\"; $shell"
else
  body='launch "$@"'
fi
ip netns exec "${hosts[0]}" unshare -u bash -c "hostname ${hosts[0]}; $body" hosts.sh "$@" &
wait $! || code=$?
exit $code
