"""Collectives of ringzero, of Open MPI and of Gloo, side by side on one machine: medians of interleaved runs, and ratios.

python3 bench/peers/collectives.py [--ringzero build/release/bin/ringzero] [--ranks 2 4] [--rounds 5] [--bind-to none] [--python PYTHON]
                                   [--json FILE]

Each round runs, one after the other, `ringzero collectives` over shared memory, the same over messages, bench/peers/collectives_mpi.c
(built here with mpicc), which also times copies, and Gloo through PyTorch (all-reduce alone; --python names an interpreter that has torch).
What is not installed is reported as not run. Times are microseconds, of the slowest rank; a ratio above 1 says that ringzero over shared
memory is so many times faster.

`bound`: what copies allow. At the rate at which all ranks at once copied S bytes each (2 S bytes moved), an all-reduce of S bytes on N ranks,
in which each rank reads its N pieces of S/N bytes and writes N, takes as long as one copy of S bytes; a reduce-scatter reads N pieces and
writes one, (N+1)/2N of it; an all-gather reads and writes N-1 pieces, (N-1)/N of it. What stays in a cache shared by ranks can be faster.
`of bound` = bound / time.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
KINDS = ("all_reduce", "reduce_scatter", "all_gather")


def run(command):
    result = subprocess.run(command, capture_output=True, text=True, timeout=900)
    if result.returncode != 0:
        raise RuntimeError(" ".join(command[:8]) + " ...: " + (result.stderr.strip().splitlines() or ["no output"])[-1])
    return result.stdout


def mpirun(args, ranks):
    return ["mpirun", "--bind-to", args.bind_to, "--oversubscribe", "--mca", "mpi_yield_when_idle", "1", "-np", str(ranks)]


def lines_of(text):
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def ringzero(args, ranks, way):
    rows = []
    for begin, end, factor, iterations in (("8", "64K", "8", 10 * args.iterations), ("256K", "64M", "4", args.iterations)):
        report = json.loads(run(mpirun(args, ranks) + [args.ringzero, "collectives", "--intra-node", way, "--op", "all", "-b", begin, "-e", end,
                                                     "-f", factor, "--iters", str(iterations), "--warmup", "3", "--no-check", "--json"]))
        if ("shared memory" in report["transport"]) != (way == "shared"):
            raise RuntimeError("asked for " + way + ", ran over " + report["transport"])
        rows += report["results"]
    return rows


def open_mpi(args, ranks, program, sizes):
    return lines_of(run(mpirun(args, ranks) + [program, str(args.iterations)] + [str(s) for s in sizes]))


def gloo(args, ranks, sizes, folder, number):
    file = os.path.join(folder, f"meet-{ranks}-{number}")
    command = [args.python, os.path.join(HERE, "collectives_gloo.py")]
    tail = [str(ranks), file, str(args.iterations)] + [str(s) for s in sizes]
    processes = [subprocess.Popen(command + [str(r)] + tail, stdout=subprocess.PIPE, text=True) for r in range(ranks)]
    outs = [p.communicate(timeout=900)[0] for p in processes]
    if any(p.returncode for p in processes):
        raise RuntimeError("a rank over Gloo failed")
    return lines_of(outs[0])


def bound_us(kind, ranks, copy_us):
    return copy_us * {"all_reduce": 1, "reduce_scatter": (ranks + 1) / (2 * ranks), "all_gather": (ranks - 1) / ranks}[kind]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ringzero", default="build/release/bin/ringzero")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--iterations", type=int, default=20, help="per size and round; ten times as many up to 64 KiB, but of Gloo")
    parser.add_argument("--bind-to", default="none", help="mpirun's, for ringzero and Open MPI: none, or core where each rank has one")
    parser.add_argument("--python", default=sys.executable, help="an interpreter that has torch")
    parser.add_argument("--json", help="where to write all medians")
    args = parser.parse_args()
    os.environ.update(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1", OMP_NUM_THREADS="1")
    sizes = [8 << (3 * i) for i in range(5)] + [262144 << (2 * i) for i in range(5)]
    report = []
    with tempfile.TemporaryDirectory() as folder:
        program = os.path.join(folder, "collectives_mpi")
        run(["mpicc", "-O3", "-march=native", os.path.join(HERE, "collectives_mpi.c"), "-o", program])
        systems = {"shared": lambda n, i: ringzero(args, n, "shared"), "messages": lambda n, i: ringzero(args, n, "messages"),
                   "open_mpi": lambda n, i: open_mpi(args, n, program, sizes)}
        try:
            run([args.python, "-c", "import torch.distributed as d; assert d.is_gloo_available()"])
            systems["gloo"] = lambda n, i: gloo(args, n, sizes, folder, i)
        except RuntimeError as error:
            print("gloo: not run:", error)
        for ranks in args.ranks:
            times = {}
            for number in range(args.rounds):
                for system, measure in systems.items():
                    for row in measure(ranks, number):
                        times.setdefault((system, row["collective"], row["size_bytes"]), []).append(row["time_us"])
            median = {key: statistics.median(values) for key, values in times.items()}
            print(f"\n{ranks} ranks, {args.rounds} rounds, load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
            print(f"{'':14} {'bytes':>9} {'shared us':>10} {'messages':>10} {'Open MPI':>10} {'Gloo':>10} {'/messages':>9} {'/Open MPI':>9} {'/Gloo':>7} {'of bound':>8}")
            for kind in KINDS:
                for size in sizes:
                    own = median.get(("shared", kind, size))
                    if own is None:
                        continue
                    others = [median.get((system, kind, size)) for system in ("messages", "open_mpi", "gloo")]
                    bound = bound_us(kind, ranks, median[("open_mpi", "copy", size)])
                    cell = lambda value, form: format(value, form) if value is not None else "-"
                    print(f"{kind:14} {size:>9} {own:>10.2f} " + " ".join(f"{cell(o, '.2f'):>10}" for o in others) + " " +
                          " ".join(f"{cell(o / own if o else None, '.1f'):>{w}}" for o, w in zip(others, (9, 9, 7))) + f" {bound / own:>8.2f}")
                    report.append({"ranks": ranks, "collective": kind, "size_bytes": size, "shared_us": own, "messages_us": others[0],
                                   "open_mpi_us": others[1], "gloo_us": others[2], "bound_us": bound})
    if args.json:
        with open(args.json, "w") as out:
            json.dump(report, out, indent=1)


main()
