#!/usr/bin/env python3
"""How much of the communication is hidden, per stage and number of ranks, over a link so slow that a step's transfers take a given share of
backward's time. Prints a table. Usage: bench/overlap_hiding.py build/release/bin/ringzero [--ranks 2,4] [--share 0.8] [--batch 16]"""
import argparse
import json
import os
import statistics
import subprocess
import tempfile

JOB = os.path.join(os.path.dirname(__file__), "..", "examples", "overlap_study.textproto")
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


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("program")
    parser.add_argument("--ranks", default="2,4")
    parser.add_argument("--share", type=float, default=0.8)
    parser.add_argument("--batch", type=int, default=16)
    options = parser.parse_args()
    batch = ["--set", f"training.batch={options.batch}"]
    print("| ranks | stage | link | backward ms | communication ms | hidden | without overlap | step ms | max(compute, communication) + ends | digest |")
    print("|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|")
    with tempfile.TemporaryDirectory() as folder:
        for ranks in map(int, options.ranks.split(",")):
            free, _ = run(options.program, ranks, f"{folder}/{ranks}", *batch)
            backward_ms = sorted(r["backward_ms"] for r in free["per_rank"])[ranks // 2]
            for stage in range(4):
                rate = sent_bytes(options.program, ranks, stage, batch) * 8 / (options.share * backward_ms * 1e-3) / 1e6
                link = f"{rate:.1f}Mbit,20us"
                flags = [*batch, "--stage", str(stage), "--link", link]
                on, digest = run(options.program, ranks, f"{folder}/{ranks}.{stage}", *flags)
                off, digest_off = run(options.program, ranks, f"{folder}/{ranks}.{stage}.off", *flags, "--set", "sharding.overlap=false")
                assert digest == digest_off, "overlap changed the weights"
                rows = on["per_rank"]
                hidden, shown = median_hidden(rows), median_hidden(off["per_rank"])
                c = on["critical"]
                # The first gather or publication and the last reduction have nothing to hide behind.
                moved = [b["transfer_ms"] for b in c["buckets"] if b["purpose"] != "scalars"]
                bound = max(c["compute_ms"], c["communication_ms"]) + c["other_ms"] + moved[0] + moved[-1]
                print(f"| {ranks} | {stage} | {link} | {backward_ms:.1f} | {c['communication_ms']:.1f} | {100 * hidden:.1f} % | {100 * shown:.1f} % "
                      f"| {c['median_step_ms']:.1f} | {bound:.1f} | {digest} |", flush=True)


if __name__ == "__main__":
    main()
