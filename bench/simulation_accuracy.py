#!/usr/bin/env python3
"""How close `ringzero simulate` comes: one run is recorded at one link, other configurations are simulated from it and then measured. With
--auto: step time over bucket sizes, measured, beside what `bucket_mb: auto` chooses. Prints tables.
Repetitions are interleaved, each is recorded and simulated from, and the least counts of both: what is slower was disturbed by something else on the
machine. With --quantile p10 the quick steps of each run count, simulated and measured: on virtual machines cores change their speed by half for
seconds, whenever others use what they share with them. The spread over the repetitions is printed.
Usage: bench/simulation_accuracy.py build/release/bin/ringzero [--ranks 2] [--repeat 5] [--steps 30] [--batch 8] [--only rank] [--quantile p10] [--auto]"""
import argparse
import json
import os
import statistics
import subprocess
import tempfile

JOB = os.path.join(os.path.dirname(__file__), "..", "examples", "gpt_kjv_parity.textproto")
MPIRUN = ["mpirun", "--bind-to", "none", "--oversubscribe", "--mca", "mpi_yield_when_idle", "1"]
LINK = "1Gbit,50us"
WARM_UP = 3


def configurations(recorded):
    """What differs from the run recorded on so many ranks: name, flags of train, flags of simulate, ranks."""
    return [
        *[(f"link {link}", ["--set", f"communication.link={link}"], ["--link", link], recorded) for link in ("200Mbit,50us", "500Mbit,50us", "2Gbit,50us", "1Gbit,2ms")],
        *[(f"bucket {mb} MiB", ["--bucket-mb", mb], ["--bucket", mb], recorded) for mb in ("0.25", "1")],
        *[(f"stage {stage}", ["--stage", stage], ["--stage", stage], recorded) for stage in ("1", "3")],
        *[(f"{ranks} rank{'s' if ranks > 1 else ''}", [], ["--ranks", str(ranks), "--same-machine"], ranks) for ranks in (1, 2, 3, 4) if ranks != recorded],
    ]


BUCKETS = ["0.0001", "0.0625", "0.125", "0.25", "0.5", "1", "2", "4"]


def train(options, ranks, out, flags):
    """Trains; returns the step in ms, as --quantile says, and the summary."""
    subprocess.run([*MPIRUN, "-np", str(ranks), options.program, "train", JOB, "--out", out, "--json", "--set", f"communication.link={LINK}", "--threads", "1", "--steps", str(options.steps),
                    "--set", f"training.batch={options.batch}", "--set", "training.evaluate_sequences=8", "--set", f"training.trace_steps={options.steps}", *flags],
                   check=True, stdout=subprocess.DEVNULL)
    with open(os.path.join(out, "metrics.jsonl")) as file:
        steps = sorted([json.loads(line)["step_ms"] for line in file][WARM_UP:])
    with open(os.path.join(out, "summary.json")) as file:
        return statistics.median(steps) if options.quantile == "median" else steps[int(0.1 * (len(steps) - 1))], json.load(file)


def measure(options, folder, configurations):
    """{name: [(median step, folder, summary) of each repetition]}, repetitions interleaved."""
    found = {name: [] for name, _, _ in configurations}
    for repetition in range(options.repeat):
        for number, (name, flags, ranks) in enumerate(configurations):
            out = f"{folder}/{number}.{repetition}"
            step, summary = train(options, ranks, out, flags)
            found[name].append((step, out, summary))
    return found


def least(runs):
    return min(runs, key=lambda run: run[0])


def spread(runs):
    return f"{min(r[0] for r in runs):.2f} ... {max(r[0] for r in runs):.2f}"


def accuracy(options, folder):
    wanted = [c for c in configurations(options.ranks) if options.only in c[0]]
    measured = measure(options, folder, [("recorded", [], options.ranks)] + [(name, flags, ranks) for name, flags, _, ranks in wanted])
    print(f"recorded: {options.ranks} ranks, stage 0, a bucket for each unit, {LINK}, batch {options.batch}: {least(measured['recorded'])[0]:.2f} ms ({spread(measured['recorded'])})\n")
    print("| what differs | simulated ms | measured ms | error | simulated from each recording | all repetitions |")
    print("|---|--:|--:|--:|---|---|")
    field = {"median": "step_ms", "p10": "p10_step_ms"}[options.quantile]
    for name, _, flags, _ in wanted:
        simulated = []
        for _, recorded, _ in measured["recorded"]:
            report = subprocess.run([options.program, "simulate", recorded, "--no-best", "--json", *flags], check=True, capture_output=True, text=True)
            simulated.append((json.loads(report.stdout)["simulated"][field],))
        ours, theirs = least(simulated)[0], least(measured[name])[0]
        print(f"| {name} | {ours:.2f} | {theirs:.2f} | {100 * (ours / theirs - 1):+.1f} % | {spread(simulated)} | {spread(measured[name])} |", flush=True)


def automatic(options, folder):
    measured = measure(options, folder, [(mb, ["--bucket-mb", mb], options.ranks) for mb in ["0", *BUCKETS, "auto"]])
    steps = {mb: least(runs)[0] for mb, runs in measured.items()}
    best = min((mb for mb in steps if mb != "auto"), key=steps.get)
    chosen = [run[2]["bucket_mb_chosen"] for run in measured["auto"]]
    print("| bucket MiB | measured ms | all repetitions |")
    print("|---|--:|---|")
    for mb, runs in measured.items():
        print(f"| {'unit' if mb == '0' else mb} | {steps[mb]:.2f} | {spread(runs)} |", flush=True)
    print(f"\nbest: {best}; auto chose {chosen} and is {100 * (steps['auto'] / steps[best] - 1):+.1f} % from the best")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--only", default="", help="configurations whose name holds this")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--quantile", choices=["median", "p10"], default="median")
    parser.add_argument("--auto", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        (automatic if options.auto else accuracy)(options, folder)


if __name__ == "__main__":
    main()
