#!/usr/bin/env python3
"""Counts the instructions of the hot kernels under callgrind and compares them with those in instructions.json: a regression check that noise
of the machine does not touch. Counts depend on the CPU level and the compiler, so each pair of them has figures of its own.
Usage: bench/instructions.py [--level v3] [--only matmul] [--update]
Builds in build/instructions-LEVEL, or takes --program. Valgrind knows no AVX-512: levels v2 and v3.
Exit code 0: no case takes more than --allowance % more; 1: one does; 77: not run, because valgrind or the figures are missing."""
import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
FIGURES = os.path.join(ROOT, "bench", "instructions.json")
CALLGRIND = ["valgrind", "--tool=callgrind", "--toggle-collect=rz_counted_call"]
NOT_RUN = 77


def end(code, text):
    print(text)
    sys.exit(code)


def build(level):
    """Returns the program of that CPU level, or of the only one that other architectures have."""
    x86 = platform.machine() in ("x86_64", "AMD64")
    folder = os.path.join(ROOT, "build", f"instructions-{level}" if x86 else "instructions")
    for command in (["cmake", "--preset", "release", "-B", folder, "-DRZ_BUILD_TESTS=OFF", *([f"-DRZ_CPU_LEVEL={level}"] if x86 else [])],
                    ["cmake", "--build", folder, "--target", "bench_instructions"]):
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode != 0:
            end(1, f"{done.stdout}\ninstructions: {' '.join(command)} failed")
    return os.path.join(folder, "bin", "bench_instructions")


def count(program, case, folder):
    """Instructions of one call."""
    out = os.path.join(folder, "callgrind.out")
    done = subprocess.run([*CALLGRIND, f"--callgrind-out-file={out}", program, case], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        end(1, f"{done.stdout}\ninstructions: {case} failed under callgrind with exit code {done.returncode}")
    with open(out) as file:
        total = re.search(r"^(?:totals|summary): (\d+)", file.read(), re.MULTILINE)
    if not total or int(total[1]) == 0:
        end(1, f"{done.stdout}\ninstructions: callgrind collected nothing in {case}: did it find rz_counted_call?")
    return int(total[1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--level", default="v3", choices=["v2", "v3"], help="x86-64 level to build for (default: v3)")
    parser.add_argument("--program", help="a built bench_instructions")
    parser.add_argument("--only", default="", help="cases whose names contain this")
    parser.add_argument("--allowance", type=float, default=3, help="how much more is no failure, in percent (default: 3)")
    parser.add_argument("--update", action="store_true", help="write the counts to instructions.json")
    options = parser.parse_args()

    if not shutil.which("valgrind"):
        end(NOT_RUN, "not run: valgrind is not installed (apt-get install valgrind)")
    program = options.program or build(options.level)
    listed = json.loads(subprocess.run([program, "--list"], check=True, stdout=subprocess.PIPE, text=True).stdout)
    key = f"{listed['compiler']}, level {listed['level']}"
    with open(FIGURES) as file:
        figures = json.load(file)
    known = figures.get(key, {})
    if not known and not options.update:
        end(NOT_RUN, f"not run: no figures for {key} in bench/instructions.json; on a commit that is known to be good: bench/instructions.py --update")
    cases = [case for case in listed["cases"] if options.only in case["name"]]
    if not cases:
        end(2, f"instructions: no case has '{options.only}' in its name")

    print(f"{key}\n{'case':<26}{'instructions':>14}  {'per unit of work':<24}{'before':>14}{'change':>10}")
    counts, worse, fewer = {}, [], []
    with tempfile.TemporaryDirectory() as folder:
        for case in cases:
            name = case["name"]
            total = counts[name] = count(program, name, folder)
            before = known.get(name)
            change = "new" if before is None else f"{100 * (total / before - 1):+.2f} %"
            per = f"{total / case['units']:.4f} / {case['unit']}"
            print(f"{name:<26}{total:>14,}  {per:<24}{'-' if before is None else f'{before:,}':>14}{change:>10}", flush=True)
            if before is None or total > before * (1 + options.allowance / 100):
                worse.append(name)
            elif total < before * (1 - options.allowance / 100):
                fewer.append(name)
    gone = sorted(set(known) - {case["name"] for case in listed["cases"]})

    if options.update:
        figures[key] = {name: value for name, value in {**known, **counts}.items() if name not in gone}
        with open(FIGURES, "w") as file:
            json.dump(figures, file, indent=2)
            file.write("\n")
        end(0, f"written to {os.path.relpath(FIGURES)}")
    if fewer:
        print(f"fewer than before: {', '.join(fewer)}; bench/instructions.py --update keeps it so")
    if worse or gone:
        for name in worse:
            where = f"{' '.join(CALLGRIND)} --callgrind-out-file=OUT {program} {name} && callgrind_annotate OUT"
            why = "no figure" if name not in known else f"{counts[name]:,} instructions, before {known[name]:,}; where they are: {where}"
            print(f"FAILED: {name}: {why}")
        for name in gone:
            print(f"FAILED: {name}: in bench/instructions.json, but no case of the program")
        end(1, "If that is meant, and measured to be no slower: bench/instructions.py --update")


if __name__ == "__main__":
    main()
