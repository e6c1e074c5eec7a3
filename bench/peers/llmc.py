"""Training steps of llm.c's CPU trainer beside ringzero's, at llm.c's own setting: GPT-2 124M, 4 sequences of 64 tokens, float32.

git clone https://github.com/karpathy/llm.c
python3 bench/peers/llmc.py --llmc llm.c [--threads 1] [--rounds 3] [--steps 3] [--ringzero build/release/bin/ringzero] [--json FILE]

llm.c's own Makefile builds train_gpt2 (CC names another compiler) in a temporary folder that goes at the end; the checkout stays as it is.
The folder, 500 MB where TMPDIR says, also gets what the program reads, in its formats: a checkpoint with random weights, a table of tokens,
random tokens. Nothing is downloaded. A round is `steps` timed steps of train_gpt2 in a process of its own, then of
`ringzero bench bench/jobs/gpt2_124m.textproto`; each sleeps while the other runs. train_gpt2 prints a step's time: data, forward, backward,
AdamW; ringzero's step also clips the gradient's norm. Step 0, which allocates, does not count, and the program is ended after the last step
that does, so that it neither generates text nor validates more than the 5 batches it begins with. Figures are medians. Needs make, a C
compiler with OpenMP, and nothing of Python beyond its library; nothing of ringzero needs this file.
"""

import argparse
import array
import json
import math
import os
import pty
import random
import re
import select
import signal
import statistics
import struct
import subprocess
import sys
import tempfile

from torch_step import ROOT, Ringzero

LAYERS, WIDTH, HEADS, CONTEXT, VOCABULARY, PADDED = 12, 768, 12, 1024, 50257, 50304
BATCH_TOKENS = 4 * 64
WARMUP = 1
MOST_STEPS = 20 - WARMUP  # before its step 20 train_gpt2 generates text
SILENCE = 300  # seconds without a line after which it counts as stuck
STEP = re.compile(r"step (\d+): train loss (\S+) \(took (\S+) ms\)")


def header(*values):
    return struct.pack("<256i", *values, *[0] * (256 - len(values)))


def write_weights(file, count, generator):
    """Independent float32 of random sign and magnitude in [2^-7, 2^-5), rms 0.019: random bits with all but the exponent's last bit set."""
    block = 1 << 20
    keep = int.from_bytes(struct.pack("<I", 0x80FFFFFF) * block, "little")
    exponent = int.from_bytes(struct.pack("<I", 0x3C000000) * block, "little")
    for begin in range(0, count, block):
        words = (generator.getrandbits(32 * block) & keep | exponent).to_bytes(4 * block, "little")
        file.write(words[:4 * min(block, count - begin)])


def write_checkpoint(path, generator):
    c, l = WIDTH, LAYERS
    one, zero = array.array("f", [1]).tobytes(), bytes(4)
    tensors = ((None, PADDED * c), (None, CONTEXT * c), (one, l * c), (zero, l * c), (None, l * 3 * c * c), (zero, l * 3 * c),
               (None, l * c * c), (zero, l * c), (one, l * c), (zero, l * c), (None, l * 4 * c * c), (zero, l * 4 * c),
               (None, l * 4 * c * c), (zero, l * c), (one, c), (zero, c))
    with open(path, "wb") as file:
        file.write(header(20240326, 3, CONTEXT, VOCABULARY, LAYERS, HEADS, WIDTH, PADDED))
        for value, count in tensors:
            if value is None:
                write_weights(file, count, generator)
            else:
                file.write(value * count)
    return sum(count for _, count in tensors)


def write_tokens(path, batches, generator):
    count = batches * BATCH_TOKENS + 1
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(header(20240520, 1, count))
        file.write(struct.pack(f"<{count}H", *(generator.randrange(VOCABULARY) for _ in range(count))))


def write_inputs(folder):
    """What train_gpt2 opens, at the paths at which it looks; returns the number of parameters."""
    generator = random.Random(1)
    with open(f"{folder}/gpt2_tokenizer.bin", "wb") as file:
        file.write(header(20240328, 2, VOCABULARY, VOCABULARY - 1) + b"\x01x" * VOCABULARY)  # length and bytes of each token
    write_tokens(f"{folder}/dev/data/tinyshakespeare/tiny_shakespeare_train.bin", 1 + WARMUP + MOST_STEPS, generator)
    write_tokens(f"{folder}/dev/data/tinyshakespeare/tiny_shakespeare_val.bin", 5, generator)
    return write_checkpoint(f"{folder}/gpt2_124M.bin", generator)


def build(checkout, folder):
    """Builds train_gpt2 into `folder`; returns the compiler's command."""
    checkout = os.path.abspath(checkout)
    for part in ("Makefile", "train_gpt2.c", "llmc/dataloader.h"):
        if not os.path.isfile(os.path.join(checkout, part)):
            raise RuntimeError(f"--llmc {checkout}: no {part} there; give a checkout of https://github.com/karpathy/llm.c")
    made = subprocess.run(["make", "-C", folder, "-f", f"{checkout}/Makefile", f"VPATH={checkout}", "train_gpt2"],
                          capture_output=True, text=True)
    if made.returncode != 0 or not os.path.isfile(f"{folder}/train_gpt2"):
        raise RuntimeError(f"make train_gpt2 failed in {checkout}:\n{made.stdout[-2000:]}{made.stderr[-2000:]}")
    command = next((line for line in made.stdout.splitlines() if "train_gpt2.c" in line), "")
    if "-fopenmp" not in command:
        raise RuntimeError(f"llm.c's Makefile found no OpenMP for its compiler, so threads would not count; it ran: {command}\n"
                           "install the compiler's OpenMP, or name another compiler: CC=gcc")
    return command


class Llmc:
    def __init__(self, folder, parameters, args):
        self.seconds, self.peak, self.name = [], 0, "llm.c"
        self.folder, self.parameters, self.first_loss = folder, parameters, None
        self.environment = dict(os.environ, OMP_NUM_THREADS=str(args.threads))

    def lines(self, process, terminal):
        rest = b""
        while True:
            if not select.select([terminal], [], [], SILENCE)[0]:
                raise RuntimeError(f"train_gpt2 printed nothing for {SILENCE} s")
            try:
                data = os.read(terminal, 65536)
            except OSError:  # Linux's answer once the last writer has closed a terminal
                data = b""
            if not data:
                return
            *whole, rest = (rest + data).split(b"\n")
            for line in whole:
                yield line.decode(errors="replace").strip()

    def round(self, count):
        terminal, out = pty.openpty()  # into a pipe it would print only at its end
        process = subprocess.Popen(["./train_gpt2"], cwd=self.folder, env=self.environment,
                                   stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        os.close(out)
        times, said = [], []
        try:
            for line in self.lines(process, terminal):
                said.append(line)
                step = STEP.fullmatch(line)
                if step:
                    if int(step[1]) != len(times):
                        raise RuntimeError(f"train_gpt2 printed step {step[1]} where step {len(times)} was to come")
                    self.check_loss(int(step[1]), float(step[2]))
                    times.append(float(step[3]) / 1e3)
                if len(times) == WARMUP + count:
                    with open(f"/proc/{process.pid}/status") as status:
                        self.peak = max([self.peak] + [int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM")])
                    break
        finally:
            process.kill()
            process.wait()
            os.close(terminal)
        if len(times) < WARMUP + count:
            raise RuntimeError(f"train_gpt2 ended (status {process.returncode}) after printing the times of {len(times)} of "
                               f"{WARMUP + count} steps, as in \"step 0: train loss 10.9 (took 1000.0 ms)\"; it printed:\n"
                               + "\n".join(said[-12:]))
        self.seconds += times[WARMUP:]

    def check_loss(self, step, loss):
        """Small random weights know nothing: ln(vocabulary), and half the variance of the logits, 768 * 0.019^2 = 0.27, on top."""
        if not math.isfinite(loss):
            raise RuntimeError(f"train_gpt2's loss at step {step} is {loss}: its times say nothing")
        if step == 0:
            if abs(loss - math.log(VOCABULARY)) > 0.5:
                raise RuntimeError(f"train_gpt2's first loss is {loss}; with small random weights it has to be near ln {VOCABULARY} = "
                                   f"{math.log(VOCABULARY):.2f}: it reads the checkpoint otherwise than it was written")
            self.first_loss = loss


def compare(args):
    with tempfile.TemporaryDirectory(prefix="llmc-") as folder:
        command = build(args.llmc, folder)
        print(command, flush=True)
        peer, own = Llmc(folder, write_inputs(folder), args), Ringzero("gpt2_124m", args)
        for _ in range(args.rounds):
            for contestant in (peer, own):
                contestant.round(args.steps)
    ours, theirs = statistics.median(own.seconds), statistics.median(peer.seconds)
    rows = []
    for c in (own, peer):
        median = statistics.median(c.seconds)
        rows.append({"model": "gpt2_124m", "contestant": c.name, "parameters": c.parameters, "threads": args.threads,
                     "step_ms": 1e3 * median, "ratio": median / ours, "peak_rss_mb": c.peak / 1e6})
    rows[0].update(model_flop_utilization=statistics.median(own.utilization))
    rows[1].update(first_loss=peer.first_loss, build=command, step_ms_all=[1e3 * s for s in peer.seconds])
    extras = (f"{rows[0]['model_flop_utilization']:.1%} of matrix products",
              f"{theirs / ours:.2f}x ringzero's time, first loss {peer.first_loss:.2f}")
    for row, extra in zip(rows, extras):
        print(f"{row['model']:<10} {args.threads} threads  {row['contestant']:<9} {row['step_ms']:9.1f} ms  "
              f"{row['parameters'] / 1e6:6.2f}M  peak {row['peak_rss_mb']:7.0f} MB  {extra}", flush=True)
    if args.json:
        with open(args.json, "w") as f:
            json.dump(rows, f, indent=1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llmc", required=True, help="a checkout of https://github.com/karpathy/llm.c")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help=f"timed steps of a round, at most {MOST_STEPS}")
    parser.add_argument("--ringzero", default=f"{ROOT}/build/release/bin/ringzero")
    parser.add_argument("--json", help="write the figures here")
    args = parser.parse_args()
    if not 1 <= args.steps <= MOST_STEPS:
        parser.error(f"--steps {args.steps}: 1 to {MOST_STEPS}; later train_gpt2 stops to generate text")
    if args.rounds < 1 or args.threads < 1:
        parser.error("--rounds and --threads begin at 1")
    if not os.access(args.ringzero, os.X_OK):
        parser.error(f"--ringzero {args.ringzero}: no such program; build it or say where it is")
    args.ranks, args.stage = 1, 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what it started and its folder go too
    try:
        compare(args)
    except (RuntimeError, OSError) as error:
        sys.exit(f"llmc.py: {error}")


if __name__ == "__main__":
    main()
