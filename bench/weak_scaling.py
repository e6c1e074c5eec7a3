#!/usr/bin/env python3
"""Weak scaling: the same share of the batch on ever more ranks. Records one run of a job on two ranks over an emulated link, simulates it on 1 to
1,024 ranks with overlap, without, and with it in hierarchical rings (sharding.group_size), and measures what this machine can hold beside it. Efficiency is the tokens per second and rank of the run
whose collectives cost nothing (one rank) over those of N.

Ranks beyond this machine's cores are measured on shared cores and simulated so too (--same-machine): that checks the model of the network and of
sharing, the curve itself gives each rank a core of its own. Prints tables; --svg FILE draws the curve.
Usage: bench/weak_scaling.py build/release/bin/ringzero [--job bench/jobs/gpt2_124m.textproto] [--link 25Gbit,10us] [--stage 0] [--measure 2,4] [--rounds 3]"""
import argparse
import json
import math
import os
import statistics
import subprocess
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
MPIRUN = ["mpirun", "--bind-to", "none", "--oversubscribe", "--mca", "mpi_yield_when_idle", "1"]
RANKS = [1 << i for i in range(11)]
WARM_UP = 2


def train(options, ranks, share, overlap, out):
    """Median step in ms of a run."""
    subprocess.run([*MPIRUN, "-np", str(ranks), options.program, "train", options.job, "--out", out, "--json", "--link", options.link, "--threads", "1", "--stage", options.stage,
                    "--steps", str(options.steps + WARM_UP), "--set", f"training.batch={share * ranks}", "--set", "training.evaluate_every=0",
                    "--set", f"sharding.overlap={str(overlap).lower()}", "--set", "training.evaluate_sequences=4"], check=True, stdout=subprocess.DEVNULL)
    with open(os.path.join(out, "metrics.jsonl")) as file:
        return statistics.median([json.loads(line)["step_ms"] for line in file][WARM_UP:])


def simulate(options, recorded, ranks, share, overlap, *flags):
    done = subprocess.run([options.program, "simulate", recorded, "--no-best", "--json", "--out", os.path.join(recorded, "simulated"), "--ranks", str(ranks), "--batch", str(share * ranks),
                           "--overlap", "on" if overlap else "off", *flags], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)["simulated"]


def draw(path, title, curves):
    """Efficiency in percent over ranks, as SVG."""
    width, height, left, bottom, top = 640, 380, 50, 45, 30
    x = lambda n: left + (width - left - 130) * math.log2(n) / math.log2(RANKS[-1])
    y = lambda e: top + (height - top - bottom) * (1 - e)
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
           f'<rect width="{width}" height="{height}" fill="white"/><text x="{left}" y="18" font-size="14">{title}</text>']
    for n in RANKS[::2]:
        out.append(f'<text x="{x(n):.1f}" y="{height - bottom + 18}" text-anchor="middle">{n}</text>')
    for e in (0, 0.25, 0.5, 0.75, 1):
        out.append(f'<line x1="{left}" x2="{x(RANKS[-1]):.1f}" y1="{y(e):.1f}" y2="{y(e):.1f}" stroke="#ddd"/>'
                   f'<text x="{left - 6}" y="{y(e) + 4:.1f}" text-anchor="end">{100 * e:.0f} %</text>')
    for (name, line), color in zip(curves, ("#1f77b4", "#d62728", "#2ca02c")):
        points = " ".join(f"{x(n):.1f},{y(e):.1f}" for n, e in zip(RANKS, line))
        out.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2"/><text x="{x(RANKS[-1]) + 8:.1f}" y="{y(line[-1]) + 4:.1f}" fill="{color}">{name}</text>')
    out.append(f'<text x="{(left + x(RANKS[-1])) / 2:.0f}" y="{height - 10}" text-anchor="middle">ranks</text></svg>')
    with open(path, "w") as file:
        file.write("\n".join(out) + "\n")


def measured_beside(options, folder, counts):
    """Each round records anew and then measures everything, so that a machine whose speed drifts does so for both. {(ranks, overlap): [(simulated, measured)]}"""
    found = {}
    for number in range(options.rounds):
        recorded = os.path.join(folder, f"round{number}")
        train(options, 2, options.share, True, recorded)
        for ranks in counts:
            for overlap in (True, False):
                measured = train(options, ranks, options.share, overlap, os.path.join(folder, f"{number}.{ranks}.{overlap}"))
                simulated = simulate(options, recorded, ranks, options.share, overlap, "--same-machine")["step_ms"]
                found.setdefault((ranks, overlap), []).append((simulated, measured))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--job", default=os.path.join(ROOT, "bench", "jobs", "gpt2_124m.textproto"))
    parser.add_argument("--link", default="25Gbit,10us")
    parser.add_argument("--stage", default="0")
    parser.add_argument("--share", type=int, default=4, help="samples of a rank in a step")
    parser.add_argument("--group", type=int, default=8, help="ranks of a group where rings are hierarchical")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--measure", default="2,4", help="numbers of ranks to measure; empty: none")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--svg", default="")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        recorded = os.path.join(folder, "recorded")
        step = train(options, 2, options.share, True, recorded)
        print(f"recorded: 2 ranks, stage {options.stage}, {options.link}, {options.share} samples a rank: {step:.1f} ms\n")
        groups = lambda n: ["--group-size", str(options.group)] if n > options.group else []
        curves = [("overlap", [simulate(options, recorded, n, options.share, True) for n in RANKS]),
                  ("without", [simulate(options, recorded, n, options.share, False) for n in RANKS]),
                  (f"groups of {options.group}", [simulate(options, recorded, n, options.share, True, *groups(n)) for n in RANKS])]
        alone = curves[0][1][0]["step_ms"]
        print("| ranks | " + " | ".join(f"{name}: step ms | exposed ms | efficiency" for name, _ in curves) + " |")
        print("|--:|" + "--:|" * 3 * len(curves))
        for i, n in enumerate(RANKS):
            cells = [f"{c[i]['step_ms']:.1f} | {c[i]['exposed_ms']:.1f} | {100 * alone / c[i]['step_ms']:.1f} %" for _, c in curves]
            print(f"| {n} | " + " | ".join(cells) + " |", flush=True)
        if options.svg:
            draw(options.svg, f"Weak scaling over {options.link}, stage {options.stage}", [(name, [alone / s["step_ms"] for s in c]) for name, c in curves])
        counts = [int(n) for n in options.measure.split(",") if n]
        if not counts:
            return
        print("\n| ranks on this machine | overlap | simulated ms | measured ms | error | of each round |\n|--:|---|--:|--:|--:|---|")
        for (ranks, overlap), pairs in measured_beside(options, folder, counts).items():
            errors = [100 * (simulated / measured - 1) for simulated, measured in pairs]
            simulated, measured = (statistics.median(p[i] for p in pairs) for i in (0, 1))
            print(f"| {ranks} | {'on' if overlap else 'off'} | {simulated:.1f} | {measured:.1f} | {statistics.median(errors):+.1f} % | {', '.join(f'{e:+.1f}' for e in errors)} |")


if __name__ == "__main__":
    main()
