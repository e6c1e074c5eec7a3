#!/usr/bin/env python3
"""How a training step's time grows with layers, batch and context, on one rank and one thread, and whether it stays the same: tables and
least-squares slopes in log-log scale.
  layers, batch: time = fixed + each x; what does not grow (embedding, head, optimizer) is fitted and subtracted before the slope is taken;
  context: by arithmetic, whose part from attention grows with its square; attention's own time too;
  steady: a run of --steady steps in hundreds;
  requests: how often a step after the second asked the system for memory, in all runs. Above 0 the exit code is 1.
Times are processor times of the one thread, so that others on its core do not count; caches and memory are shared all the same, and a point is the
least of its steps over --rounds rounds, which are interleaved: what is slower was disturbed.
Usage: bench/scaling.py build/release/bin/ringzero [--rounds 5] [--only layers batch context steady] [--json FILE]"""
import argparse
import json
import math
import os
import statistics
import subprocess
import sys

JOB = os.path.join(os.path.dirname(os.path.abspath(__file__)), "jobs", "gpt.textproto")
WARM_UP = 2
# Name: what it changes, its values, the fixed rest of the model.
SERIES = {
    "layers": ("transformer.layers", [2, 4, 8, 16, 32], {"transformer.width": 128, "transformer.heads": 2, "transformer.context": 64, "training.batch": 8}),
    "batch": ("training.batch", [2, 4, 8, 16, 32], {"transformer.layers": 4, "transformer.width": 128, "transformer.heads": 2, "transformer.context": 64}),
    "context": ("transformer.context", [256, 512, 1024, 2048, 4096],
                {"transformer.layers": 2, "transformer.width": 64, "transformer.heads": 1, "training.batch": 1}),
}
SMALL = {"transformer.layers": 2, "transformer.width": 64, "transformer.heads": 2, "transformer.context": 64, "training.batch": 4}


def bench(options, count, settings):
    command = [options.program, "bench", JOB, "--ranks", "1", "--threads", "1", "--warmup", str(WARM_UP), "--count", str(count), "--json"]
    for name, value in settings.items():
        command += ["--set", f"{name}={value}"]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def slope(x, y):
    """Of the least-squares line through (log x, log y)."""
    return statistics.linear_regression([math.log(v) for v in x], [math.log(v) for v in y]).slope


def line(x, y):
    """(fixed, each) of y = fixed + each x, with least squares of relative errors, so that small points count as much as large ones."""
    s0 = sum(1 / b**2 for b in y)
    s1 = sum(a / b**2 for a, b in zip(x, y))
    s2 = sum(a * a / b**2 for a, b in zip(x, y))
    t0 = sum(1 / b for b in y)
    t1 = sum(a / b for a, b in zip(x, y))
    determinant = s0 * s2 - s1 * s1
    return (s2 * t0 - s1 * t1) / determinant, (s0 * t1 - s1 * t0) / determinant


def attention(report, key):
    return sum(op[key] for op in report["ops"] if op["op"].startswith("attention"))


def measure(options, name):
    """One row a value: the least step time, the arithmetic, attention's part of both, requests to the system."""
    field, values, rest = SERIES[name]
    rows = [{"value": value, "step_ms": math.inf, "requests": 0} for value in values]
    for _ in range(options.rounds):
        for row in rows:
            report = bench(options, options.count, {**rest, field: row["value"]})
            if report["processor_ms"]["min"] < row["step_ms"]:
                row["step_ms"] = report["processor_ms"]["min"]
                # Times by op are means of a round: attention's part of the mean step is taken for its part of the least one.
                row["attention_ms"] = row["step_ms"] * attention(report, "ms_per_step") / statistics.mean(report["step_ms"]["each"])
            row["gflop"] = 1e-9 * report["flops_per_step"]
            row["attention_gflop"] = attention(report, "gflop_per_step")
            row["requests"] = max(row["requests"], report["system_allocations_per_step"])
    return rows


def linear(name, rows):
    """Prints the table of a series that should grow linearly; returns its figures."""
    x, y = [row["value"] for row in rows], [row["step_ms"] for row in rows]
    fixed, each = line(x, y)
    print(f"\n| {name} | step ms | fixed + each x | off | GFLOP/s | requests |\n|--:|--:|--:|--:|--:|--:|")
    for row in rows:
        fitted = fixed + each * row["value"]
        off = 100 * (row["step_ms"] / fitted - 1)
        speed = 1e3 * row["gflop"] / row["step_ms"]
        print(f"| {row['value']} | {row['step_ms']:.2f} | {fitted:.2f} | {off:+.1f} % | {speed:.1f} | {row['requests']:g} |")
    print(f"\nstep = {fixed:.2f} ms + {each:.3f} ms x {name}")
    found = {"rows": rows, "fixed_ms": fixed, "each_ms": each, "slope": slope(x, y)}
    print(f"log-log slope {found['slope']:.3f} of the step", end="")
    if fixed < min(y):
        found["slope_without_fixed"] = slope(x, [v - fixed for v in y])
        print(f", {found['slope_without_fixed']:.3f} without what is fixed")
    else:
        print("; what is fixed is more than the smallest step: disturbed, or no line")
    return found


def context(rows):
    """The same for the context: T tokens are T parts of everything else and T (T + 1) / 2 pairs of attention."""
    print("\n| T | step ms | GFLOP | GFLOP/s | attention ms | GFLOP | GFLOP/s | requests |\n|--:|--:|--:|--:|--:|--:|--:|--:|")
    for row in rows:
        print(f"| {row['value']} | {row['step_ms']:.2f} | {row['gflop']:.3f} | {1e3 * row['gflop'] / row['step_ms']:.1f} "
              f"| {row['attention_ms']:.2f} | {row['attention_gflop']:.3f} | {1e3 * row['attention_gflop'] / row['attention_ms']:.1f} | {row['requests']:g} |")
    x = [row["value"] for row in rows]
    found = {"rows": rows,
             "attention_slope": slope(x, [row["attention_ms"] for row in rows]), "attention_theory": slope(x, [row["attention_gflop"] for row in rows]),
             "attention_over_arithmetic": slope([row["attention_gflop"] for row in rows], [row["attention_ms"] for row in rows]),
             "slope": slope(x, [row["step_ms"] for row in rows]), "theory": slope(x, [row["gflop"] for row in rows]),
             "over_arithmetic": slope([row["gflop"] for row in rows], [row["step_ms"] for row in rows])}
    # Short sequences pay for whole tiles on the diagonal and for what every op costs.
    longest = rows[-3:]
    found["attention_over_arithmetic_longest"] = slope([row["attention_gflop"] for row in longest], [row["attention_ms"] for row in longest])
    print(f"\nattention: log-log slope {found['attention_slope']:.3f} in T, of its arithmetic {found['attention_theory']:.3f}; "
          f"of time over arithmetic {found['attention_over_arithmetic']:.3f}, "
          f"{found['attention_over_arithmetic_longest']:.3f} from T {longest[0]['value']}")
    print(f"step: log-log slope {found['slope']:.3f} in T, of its arithmetic {found['theory']:.3f}; of time over arithmetic {found['over_arithmetic']:.3f}")
    return found


def steady(options):
    report = bench(options, options.steady, SMALL)
    each = report["processor_ms"]["each"]
    hundreds = [each[i : i + 100] for i in range(0, len(each), 100)]
    rows = [{"first": WARM_UP + 100 * i, "median_ms": statistics.median(part), "min_ms": min(part)} for i, part in enumerate(hundreds)]
    print("\n| steps from | median ms | least ms |\n|--:|--:|--:|")
    for row in rows:
        print(f"| {row['first']} | {row['median_ms']:.3f} | {row['min_ms']:.3f} |")
    found = {"rows": rows, "requests": report["system_allocations_per_step"]}
    for key in ("median_ms", "min_ms"):
        values = [row[key] for row in rows]
        found[f"{key}_last_to_first"] = values[-1] / values[0]
        found[f"{key}_spread"] = max(values) / min(values)
    print(f"\nlast hundred to first: median {found['median_ms_last_to_first']:.3f}, least {found['min_ms_last_to_first']:.3f}; largest to smallest: "
          f"{found['median_ms_spread']:.3f}, {found['min_ms_spread']:.3f}; {found['requests']:g} requests a step")
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", help="ringzero")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=5, help="steps of a point in a round")
    parser.add_argument("--steady", type=int, default=1000, help="steps of the long run")
    parser.add_argument("--only", nargs="+", choices=[*SERIES, "steady"], default=[*SERIES, "steady"])
    parser.add_argument("--json", help="write all figures to this file")
    options = parser.parse_args()

    found, requests = {}, 0
    for name in options.only:
        if name == "steady":
            found[name] = steady(options)
            requests += found[name]["requests"]
            continue
        rows = measure(options, name)
        found[name] = context(rows) if name == "context" else linear(name, rows)
        requests += sum(row["requests"] for row in rows)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(found, file, indent=2)
            file.write("\n")
    if requests > 0:
        print("\nFAILED: steps after the second asked the system for memory")
        sys.exit(1)
    print("\nno step after the second asked the system for memory")


if __name__ == "__main__":
    main()
