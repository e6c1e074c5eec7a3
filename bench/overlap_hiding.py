#!/usr/bin/env python3
"""How much of the communication is hidden, per stage and number of ranks, over a link so slow that a step's transfers take a given share of
backward's time: both are measured over that link, whose rate is corrected until they meet. Prints a table.
Usage: bench/overlap_hiding.py build/release/bin/ringzero [--ranks 2,4] [--stages 0,1,2,3] [--share 0.8] [--batch 16]"""
import argparse
import json
import os
import statistics
import subprocess
import tempfile

JOB = os.path.join(os.path.dirname(__file__), "..", "examples", "overlap_study.textproto")
# How near the share must be met, and how often the rate is corrected for it.
TOLERANCE = 0.03
CORRECTIONS = 3
MPIRUN = ["mpirun", "--bind-to", "none", "--oversubscribe", "--mca", "mpi_yield_when_idle", "1"]


def run(program, ranks, out, *flags):
    """Trains and returns overlap.json with the digest of the weights."""
    subprocess.run([*MPIRUN, "-np", str(ranks), program, "train", JOB, "--out", out, "--json", *flags], check=True, stdout=subprocess.DEVNULL)
    report = subprocess.run([program, "overlap", out, "--json"], check=True, capture_output=True, text=True)
    with open(os.path.join(out, "summary.json")) as file:
        return json.loads(report.stdout), json.load(file)["weights_digest"]


def sent_bytes(program, ranks, stage, flags):
    plan = subprocess.run([program, "plan", JOB, "--ranks", str(ranks), "--stage", str(stage), "--json", *flags], check=True, capture_output=True, text=True)
    return json.loads(plan.stdout)["wire"]["sent_bytes_per_step"]


def median_hidden(rows):
    """Of all steps of all ranks: what the link and the program do, not the machine's other work in a few steps."""
    return statistics.median(s["hidden_fraction"] for r in rows for s in r["steps"])


def at_share(options, ranks, stage, backward_ms, folder, batch):
    """The flags of a link over which transfers take the share, the run over it, backward's ms there, and the digest."""
    rate = sent_bytes(options.program, ranks, stage, batch) * 8 / (options.share * backward_ms * 1e-3) / 1e6
    for attempt in range(CORRECTIONS + 1):
        flags = [*batch, "--stage", str(stage), "--link", f"{rate:.1f}Mbit,20us"]
        on, digest = run(options.program, ranks, f"{folder}.{attempt}", *flags)
        backward_ms = statistics.median(r["backward_ms"] for r in on["per_rank"])
        off_by = on["critical"]["communication_ms"] / (options.share * backward_ms)
        if abs(off_by - 1) < TOLERANCE:
            break
        rate *= off_by
    return flags, on, backward_ms, digest


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("program")
    parser.add_argument("--ranks", default="2,4")
    parser.add_argument("--stages", default="0,1,2,3")
    parser.add_argument("--share", type=float, default=0.8)
    parser.add_argument("--batch", type=int, default=16)
    options = parser.parse_args()
    batch = ["--set", f"training.batch={options.batch}"]
    print("| ranks | stage | link | backward ms | communication ms | hidden | without overlap | step ms | max(compute, communication) + ends | digest |")
    print("|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|")
    with tempfile.TemporaryDirectory() as folder:
        for ranks in map(int, options.ranks.split(",")):
            free, _ = run(options.program, ranks, f"{folder}/{ranks}", *batch)
            first_guess_ms = statistics.median(r["backward_ms"] for r in free["per_rank"])
            for stage in map(int, options.stages.split(",")):
                flags, on, backward_ms, digest = at_share(options, ranks, stage, first_guess_ms, f"{folder}/{ranks}.{stage}", batch)
                off, digest_off = run(options.program, ranks, f"{folder}/{ranks}.{stage}.off", *flags, "--set", "sharding.overlap=false")
                assert digest == digest_off, "overlap changed the weights"
                rows = on["per_rank"]
                hidden, shown = median_hidden(rows), median_hidden(off["per_rank"])
                c = on["critical"]
                # The first gather or publication and the last reduction have nothing to hide behind.
                moved = [b["transfer_ms"] for b in c["buckets"] if b["purpose"] != "scalars"]
                bound = max(c["compute_ms"], c["communication_ms"]) + c["other_ms"] + moved[0] + moved[-1]
                print(f"| {ranks} | {stage} | {flags[-1]} | {backward_ms:.1f} | {c['communication_ms']:.1f} | {100 * hidden:.1f} % | {100 * shown:.1f} % "
                      f"| {c['median_step_ms']:.1f} | {bound:.1f} | {digest} |", flush=True)


if __name__ == "__main__":
    main()
