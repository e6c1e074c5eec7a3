#!/usr/bin/env python3
"""How close `ringzero simulate` comes: one run is recorded at one link, other configurations are simulated from it and then measured. With
--auto: step time over bucket sizes, measured, beside what `bucket_mb: auto` chooses. Prints tables.
Repetitions are interleaved, and of each configuration the one with the least median step counts: what is slower was disturbed by something else
on the machine. Of the recorded one it is the repetition that computed least: over a slow link its steps hardly show how fast it computed. The spread
over the repetitions is printed.
Usage: bench/simulation_accuracy.py build/release/bin/ringzero [--ranks 2] [--repeat 5] [--steps 30] [--batch 8] [--only rank] [--auto]"""
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
    """Trains; returns the median step in ms and the summary."""
    subprocess.run([*MPIRUN, "-np", str(ranks), options.program, "train", JOB, "--out", out, "--json", "--set", f"communication.link={LINK}", "--threads", "1", "--steps", str(options.steps),
                    "--set", f"training.batch={options.batch}", "--set", "training.evaluate_sequences=8", *flags],
                   check=True, stdout=subprocess.DEVNULL)
    with open(os.path.join(out, "metrics.jsonl")) as file:
        steps = [json.loads(line)["step_ms"] for line in file][WARM_UP:]
    with open(os.path.join(out, "summary.json")) as file:
        return statistics.median(steps), json.load(file)


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


def computed(options, out):
    """Median compute of a step in ms, mean over ranks."""
    report = subprocess.run([options.program, "overlap", out, "--json"], check=True, capture_output=True, text=True)
    return statistics.mean(statistics.median(step["compute_ms"] for step in rank["steps"][WARM_UP:]) for rank in json.loads(report.stdout)["per_rank"])


def spread(runs):
    return f"{min(r[0] for r in runs):.2f} ... {max(r[0] for r in runs):.2f}"


def accuracy(options, folder):
    wanted = [c for c in configurations(options.ranks) if options.only in c[0]]
    measured = measure(options, folder, [("recorded", [], options.ranks)] + [(name, flags, ranks) for name, flags, _, ranks in wanted])
    step, recorded, _ = min(measured["recorded"], key=lambda run: computed(options, run[1]))
    print(f"recorded: {options.ranks} ranks, stage 0, a bucket for each unit, {LINK}, batch {options.batch}: {step:.2f} ms ({spread(measured['recorded'])})\n")
    print("| what differs | simulated ms | measured ms | error | all repetitions |")
    print("|---|--:|--:|--:|---|")
    for name, _, flags, _ in wanted:
        report = subprocess.run([options.program, "simulate", recorded, "--no-best", "--json", *flags], check=True, capture_output=True, text=True)
        simulated = json.loads(report.stdout)["simulated"]["step_ms"]
        step, _, _ = least(measured[name])
        print(f"| {name} | {simulated:.2f} | {step:.2f} | {100 * (simulated / step - 1):+.1f} % | {spread(measured[name])} |", flush=True)


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
    parser.add_argument("--auto", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        (automatic if options.auto else accuracy)(options, folder)


if __name__ == "__main__":
    main()
