#!/usr/bin/env python3
"""Published findings about diffusion models, repeated in small on Fashion-MNIST; docs/diffusion.md shows the tables.

python3 examples/diffusion/study.py ddim      few steps: DDIM against DDPM, one network
python3 examples/diffusion/study.py bound     bits per dimension: improved DDPM against DDPM
python3 examples/diffusion/study.py samplers  EDM's Heun against DDIM at 35 evaluations; flow against DDIM at 10
python3 examples/diffusion/study.py reflow    straightness, one-step samples and distillation
python3 examples/diffusion/study.py guidance  classifier-free and classifier guidance

Each trains what is missing (examples/diffusion/*.textproto, about 6 core minutes each; ddim's some 30) under --runs, evaluates, and writes TABLE.md, TABLE.json and
for ddim TABLE.svg there; what was evaluated already is read from TABLE.json's cache. --ranks N: ranks under mpirun (0: one process, all cores).
"""

import argparse
import json
import math
import os
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


class Study:
    def __init__(self, args):
        self.args = args
        os.makedirs(args.runs, exist_ok=True)
        self.cache_path = os.path.join(args.runs, "evaluations.json")
        self.cache = json.load(open(self.cache_path)) if os.path.exists(self.cache_path) else {}

    def ringzero(self, *arguments):
        command = [self.args.ringzero, *map(str, arguments)]
        if self.args.ranks > 0:
            command = ["mpirun", "--bind-to", "none", "--oversubscribe", "--mca", "mpi_yield_when_idle", "1", "-np", str(self.args.ranks)] + command
        print("+", " ".join(command), file=sys.stderr, flush=True)
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode != 0:
            sys.exit(f"study: failed with {done.returncode}: {' '.join(command)}")
        return done.stdout

    def run(self, name):
        return os.path.join(self.args.runs, name)

    def train(self, name, config, *settings):
        """The run's directory; trains it unless it is finished."""
        if not os.path.exists(os.path.join(self.run(name), "summary.json")):
            overrides = [part for setting in settings for part in ("--set", setting)]
            self.ringzero("train", os.path.join(ROOT, "examples", config + ".textproto"), "--out", self.run(name), *overrides)
        return self.run(name)

    def classifier(self):
        return self.train("classifier", "fashion_classifier")

    def evaluate(self, run, *flags):
        flags = [str(f) for f in (*flags, "--count", self.args.count)]
        key = " ".join([os.path.basename(run), *flags])
        if key not in self.cache:
            self.cache[key] = json.loads(self.ringzero("evaluate", run, "--classifier", self.classifier(), "--json", *flags))
            with open(self.cache_path, "w") as f:
                json.dump(self.cache, f, indent=1)
        return self.cache[key]

    def write(self, name, title, header, rows):
        lines = [title, "", "| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
        lines += ["| " + " | ".join(row) + " |" for row in rows]
        text = "\n".join(lines) + "\n"
        with open(os.path.join(self.args.runs, name + ".md"), "w") as f:
            f.write(text)
        print(text)


def fd(result):
    return result["generated"]["frechet_distance"]


def quality(result):
    g = result["generated"]
    return [f"{fd(result):.2f}", f"{g['precision']:.3f}", f"{g['recall']:.3f}", f"{g['class_accuracy']:.3f}" if "class_accuracy" in g else ""]


def chart(path, title, steps, series):
    """FD over steps, both logarithmic, as SVG."""
    width, height, left, bottom, top = 640, 400, 60, 50, 30
    values = [v for _, line in series for v in line]
    low, high = math.log10(min(values)) - 0.05, math.log10(max(values)) + 0.05
    x = lambda s: left + (width - left - 150) * math.log10(s / steps[0]) / math.log10(steps[-1] / steps[0])
    y = lambda v: top + (height - top - bottom) * (high - math.log10(v)) / (high - low)
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
           f'<rect width="{width}" height="{height}" fill="white"/><text x="{left}" y="18" font-size="14">{title}</text>']
    for s in steps:
        out.append(f'<line x1="{x(s):.1f}" x2="{x(s):.1f}" y1="{top}" y2="{height - bottom}" stroke="#ddd"/>'
                   f'<text x="{x(s):.1f}" y="{height - bottom + 18}" text-anchor="middle">{s}</text>')
    for v in (2, 5, 10, 20, 50, 100, 200, 500, 1000):
        if low <= math.log10(v) <= high:
            out.append(f'<line x1="{left}" x2="{x(steps[-1]):.1f}" y1="{y(v):.1f}" y2="{y(v):.1f}" stroke="#ddd"/>'
                       f'<text x="{left - 6}" y="{y(v) + 4:.1f}" text-anchor="end">{v}</text>')
    for (name, line), color in zip(series, ("#1f77b4", "#d62728", "#2ca02c", "#9467bd")):
        points = " ".join(f"{x(s):.1f},{y(v):.1f}" for s, v in zip(steps, line))
        out.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2"/>'
                   f'<text x="{x(steps[-1]) + 8:.1f}" y="{y(line[-1]) + 4 + 14 * (len(out) % 3 - 1):.1f}" fill="{color}">{name}</text>')
    out.append(f'<text x="{(left + x(steps[-1])) / 2:.0f}" y="{height - 12}" text-anchor="middle">steps</text></svg>')
    with open(path, "w") as f:
        f.write("\n".join(out) + "\n")


def ddim(study):
    # Four times the other studies' network: a small one's own error, which fresh noise corrects and a deterministic path keeps, outweighs that of the steps.
    run = study.train("ddpm_width32", "diffusion/ddpm", "unet.width=32", "training.steps=9000")
    steps = (5, 10, 20, 50, 100, 1000)
    samplers = (("eta 0 (DDIM)", ("--eta", 0)), ("eta 1 (DDPM)", ("--eta", 1)), ("fixed_large", ("--eta", 1, "--variance", "fixed_large")))
    lines = [(name, [fd(study.evaluate(run, "--preset", "ddim", "--steps", s, *flags)) for s in steps]) for name, flags in samplers]
    study.write("ddim", f"FD of {study.args.count} samples of one DDPM by steps and noise", ["steps", *(name for name, _ in lines)],
                [[str(s), *(f"{line[i]:.1f}" for _, line in lines)] for i, s in enumerate(steps)])
    chart(os.path.join(study.args.runs, "ddim.svg"), "Frechet distance by steps, one DDPM", steps, lines)


def bound(study):
    rows = []
    for name, what in (("ddpm", "DDPM: linear, fixed variance"), ("iddpm", "improved DDPM: cosine, learned range")):
        result = study.evaluate(study.train(name, "diffusion/" + name), "--steps", 50, "--likelihood", study.args.likelihood)
        bits = result["bits_per_dimension"]["variational_bound"]
        rows.append([what, f"{bits['mean']:.3f} +- {bits['standard_error']:.3f}"])
    study.write("bound", f"Variational bound of {study.args.likelihood} validation images, all steps", ["", "bits per dimension"], rows)


def samplers(study):
    ddpm, edm, flow = (study.train(name, "diffusion/" + name) for name in ("ddpm", "edm", "flow"))
    rows = []
    for what, run, flags in (("DDIM, 35 steps", ddpm, ("--preset", "ddim", "--steps", 35)),
                             ("EDM, Heun, 18 steps (35 evaluations)", edm, ("--steps", 18)),
                             ("DDIM, 10 steps (VP path)", ddpm, ("--preset", "ddim", "--steps", 10)),
                             ("flow, Euler, 10 steps", flow, ("--steps", 10)),
                             ("flow, Heun, 5 steps (9 evaluations)", flow, ("--steps", 5, "--method", "heun"))):
        result = study.evaluate(run, *flags)
        rows.append([what, str(result["evaluations"]), *quality(result)])
    study.write("samplers", f"{study.args.count} samples, networks trained alike", ["sampler", "evaluations", "FD", "precision", "recall", "accuracy"], rows)


def reflow(study):
    flow = study.train("flow", "diffusion/flow")
    pairs = study.run("pairs")
    if not os.path.exists(os.path.join(pairs, "pairs.json")):
        study.ringzero("sample", flow, "--count", study.args.pairs, "--steps", 15, "--method", "heun", "--pairs", pairs)
    again = study.train("reflow", "diffusion/reflow", f"diffusion.pairs={pairs}", f"training.initialize_from={flow}")
    once = study.train("one_step", "diffusion/reflow", f"diffusion.pairs={pairs}", f"training.initialize_from={again}", "diffusion.distill=true")
    rows = []
    for what, run, steps in (("flow", flow, 1), ("flow", flow, 2), ("flow", flow, 30), ("reflow", again, 1), ("reflow", again, 2), ("distilled", once, 1)):
        result = study.evaluate(run, "--steps", steps, "--method", "euler")
        rows.append([what, str(steps), f"{result['straightness']['mean']:.4f}", *quality(result)])
    study.write("reflow", f"{study.args.count} samples by Euler steps; straightness 0: the paths are straight lines",
                ["network", "steps", "straightness", "FD", "precision", "recall", "accuracy"], rows)


def guidance(study):
    flow = study.train("flow", "diffusion/flow")
    guide = study.train("guide", "fashion_guide")
    rows = []
    for w in (0, 1, 1.5, 2, 3, 5):
        rows.append([f"classifier-free, w = {w}", *quality(study.evaluate(flow, "--steps", 15, "--method", "heun", "--guidance", w))])
    for scale in (1, 2, 4, 8):
        rows.append([f"classifier, scale {scale}", *quality(study.evaluate(flow, "--steps", 15, "--method", "heun", "--guidance", 0, "--guide", guide,
                                                                          "--classifier-guidance", scale))])
    study.write("guidance", f"{study.args.count} samples of the flow, 15 Heun steps", ["guidance", "FD", "precision", "recall", "accuracy"], rows)


PARTS = {"ddim": ddim, "bound": bound, "samplers": samplers, "reflow": reflow, "guidance": guidance}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--runs", default="runs/study", help="where networks, pairs, evaluations and tables are kept")
    parser.add_argument("--count", type=int, default=1000, help="samples of an evaluation; figures of different counts cannot be compared")
    parser.add_argument("--likelihood", type=int, default=200, help="images of the variational bound")
    parser.add_argument("--pairs", type=int, default=20000, help="pairs of noise and image for reflow")
    parser.add_argument("--ranks", type=int, default=2, help="ranks under mpirun; 0: one process")
    parser.add_argument("--ringzero", default=f"{ROOT}/build/release/bin/ringzero")
    args = parser.parse_args()
    PARTS[args.part](Study(args))


if __name__ == "__main__":
    main()
