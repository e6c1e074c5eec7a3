"""Training steps of PyTorch beside ringzero's: the same models and shapes, float32, the same number of threads, interleaved in one run.

python3 bench/peers/torch_step.py [--models gpt,gpt2_124m,unet,dit] [--threads 1] [--modes eager,compile] [--rounds 3] [--steps 4]
python3 bench/peers/torch_step.py --ranks 2 --parallel ddp|zero1|fsdp2|fsdp3 --stage 0..3 ...

A round is `steps` steps of each contestant, one after the other, while the others sleep; figures are medians over all rounds' steps. A step
is forward, backward, clipping of the gradient's norm, AdamW, and new data; ringzero's jobs are bench/jobs/*.textproto. With --ranks, ranks are
processes with --threads threads each: PyTorch over Gloo, ringzero under mpirun. Needs torch; nothing of ringzero needs this file.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def gpt(torch, layers, width, heads, context, vocabulary, batch):
    nn, functional = torch.nn, torch.nn.functional

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def forward(self, x):
            b, t, _ = x.shape
            q, k, v = self.qkv(self.norm1(x)).view(b, t, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
            y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(y.transpose(1, 2).reshape(b, t, width))
            return x + self.down(functional.gelu(self.up(self.norm2(x)), approximate="tanh"))

    class Gpt(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
            nn.init.normal_(self.tokens.weight, std=0.02)
            self.blocks = nn.ModuleList(Block() for _ in range(layers))
            self.norm = nn.LayerNorm(width)
            self.register_buffer("index", torch.arange(context), persistent=False)

        def forward(self, tokens, targets):
            x = self.tokens(tokens) + self.positions(self.index)
            for block in self.blocks:
                x = block(x)
            logits = functional.linear(self.norm(x), self.tokens.weight)  # tied
            return functional.cross_entropy(logits.view(-1, vocabulary), targets.reshape(-1))

    def data(step, share):
        tokens = torch.randint(vocabulary, (share, context + 1), generator=torch.Generator().manual_seed(step))
        return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    return Gpt(), data, batch


class Flow:
    """Batches of a rectified flow on images, and its loss."""

    def __init__(self, torch, size, classes, batch):
        self.torch, self.size, self.classes, self.batch = torch, size, classes, batch

    def data(self, step, share):
        torch = self.torch
        g = torch.Generator().manual_seed(step)
        x = torch.rand(share, 1, self.size, self.size, generator=g) * 2 - 1
        return (x, torch.randn(x.shape, generator=g), torch.rand(share, generator=g),
                torch.randint(self.classes + 1, (share,), generator=g))

    def loss(self, network, x, noise, t, labels):
        mixed = x + t.view(-1, 1, 1, 1) * (noise - x)
        return (network(mixed, t, labels) - (noise - x)).square().mean()


def sinusoids(torch, t, width):
    half = width // 2
    angles = t[:, None] * torch.exp(torch.arange(half) * (-9.210340371976184 / half))
    return torch.cat((angles.cos(), angles.sin()), dim=1)


def unet(torch, width, multipliers, blocks, attention_heights, size, batch, classes=10):
    nn, functional = torch.nn, torch.nn.functional
    condition = 4 * width

    def groups(channels):
        return min(32, channels // 4)

    class Block(nn.Module):
        def __init__(self, cin, cout, attends):
            super().__init__()
            self.norm1, self.conv1 = nn.GroupNorm(groups(cin), cin), nn.Conv2d(cin, cout, 3, padding=1)
            self.condition = nn.Linear(condition, 2 * cout)
            self.norm2, self.conv2 = nn.GroupNorm(groups(cout), cout), nn.Conv2d(cout, cout, 3, padding=1)
            self.shortcut = nn.Conv2d(cin, cout, 1) if cin != cout else nn.Identity()
            self.attends = attends
            if attends:
                self.norm3, self.qkv, self.out = nn.GroupNorm(groups(cout), cout), nn.Linear(cout, 3 * cout), nn.Linear(cout, cout)

        def forward(self, x, c):
            h = self.conv1(functional.silu(self.norm1(x)))
            scale, shift = self.condition(c)[:, :, None, None].chunk(2, dim=1)
            y = self.shortcut(x) + self.conv2(functional.silu(self.norm2(h) * (1 + scale) + shift))
            if not self.attends:
                return y
            b, ch, hh, ww = y.shape
            tokens = self.norm3(y).permute(0, 2, 3, 1).reshape(b, 1, hh * ww, ch)
            q, k, v = self.qkv(tokens).chunk(3, dim=-1)
            a = self.out(functional.scaled_dot_product_attention(q, k, v))
            return y + a.view(b, hh, ww, ch).permute(0, 3, 1, 2)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inp = nn.Conv2d(1, width, 3, padding=1)
            self.c1, self.c2, self.labels = nn.Linear(width, condition), nn.Linear(condition, condition), nn.Embedding(classes + 1, condition)
            self.down, self.up = nn.ModuleList(), nn.ModuleList()
            channels, skips = width, [width]
            for i, m in enumerate(multipliers):
                for _ in range(blocks):
                    self.down.append(Block(channels, width * m, size >> i in attention_heights))
                    channels = width * m
                    skips.append(channels)
                if i + 1 < len(multipliers):
                    self.down.append(nn.Conv2d(channels, channels, 3, stride=2, padding=1))
                    skips.append(channels)
            self.middle = nn.ModuleList((Block(channels, channels, True), Block(channels, channels, False)))
            for i, m in reversed(list(enumerate(multipliers))):
                for _ in range(blocks + 1):
                    self.up.append(Block(channels + skips.pop(), width * m, size >> i in attention_heights))
                    channels = width * m
                if i > 0:
                    self.up.append(nn.Conv2d(channels, channels, 3, padding=1))
            self.norm, self.outp = nn.GroupNorm(groups(channels), channels), nn.Conv2d(channels, 1, 3, padding=1)

        def forward(self, x, t, labels):
            c = functional.silu(self.c2(functional.silu(self.c1(sinusoids(torch, t, width)))) + self.labels(labels))
            h = self.inp(x)
            skips = [h]
            for module in self.down:
                h = module(h, c) if isinstance(module, Block) else module(h)
                skips.append(h)
            for block in self.middle:
                h = block(h, c)
            for module in self.up:
                h = module(torch.cat((h, skips.pop()), 1), c) if isinstance(module, Block) else module(functional.interpolate(h, scale_factor=2))
            return self.outp(functional.silu(self.norm(h)))

    return Net().to(memory_format=torch.channels_last), Flow(torch, size, classes, batch), batch


def dit(torch, layers, width, heads, patch, size, batch, classes=10):
    nn, functional = torch.nn, torch.nn.functional
    side = size // patch

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.modulation, self.qkv, self.out = nn.Linear(width, 6 * width), nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def forward(self, x, c):
            m = self.modulation(c)[:, None, :].chunk(6, dim=-1)
            b, t, _ = x.shape
            h = functional.layer_norm(x, (width,), eps=1e-6) * (1 + m[1]) + m[0]
            q, k, v = self.qkv(h).view(b, t, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
            y = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, width)
            x = x + m[2] * self.out(y)
            h = functional.layer_norm(x, (width,), eps=1e-6) * (1 + m[4]) + m[3]
            return x + m[5] * self.down(functional.gelu(self.up(h), approximate="tanh"))

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inp, self.outp = nn.Linear(patch * patch, width), nn.Linear(width, patch * patch)
            self.c1, self.c2, self.labels = nn.Linear(256, width), nn.Linear(width, width), nn.Embedding(classes + 1, width)
            self.modulation = nn.Linear(width, 2 * width)
            self.blocks = nn.ModuleList(Block() for _ in range(layers))
            self.register_buffer("positions", torch.randn(side * side, width), persistent=False)

        def forward(self, x, t, labels):
            b = x.shape[0]
            c = functional.silu(self.c2(functional.silu(self.c1(sinusoids(torch, t, 256)))) + self.labels(labels))
            tokens = x.view(b, side, patch, side, patch).permute(0, 1, 3, 2, 4).reshape(b, side * side, patch * patch)
            h = self.inp(tokens) + self.positions
            for block in self.blocks:
                h = block(h, c)
            shift, scale = self.modulation(c)[:, None, :].chunk(2, dim=-1)
            h = self.outp(functional.layer_norm(h, (width,), eps=1e-6) * (1 + scale) + shift)
            return h.view(b, side, side, patch, patch).permute(0, 1, 3, 2, 4).reshape(b, 1, size, size)

    return Net(), Flow(torch, size, classes, batch), batch


# bench/jobs/NAME.textproto
MODELS = {
    "gpt": lambda torch: gpt(torch, 6, 384, 6, 256, 256, 8),
    "gpt2_124m": lambda torch: gpt(torch, 12, 768, 12, 64, 50257, 4),
    "unet": lambda torch: unet(torch, 64, (1, 2, 2), 2, (16, 8), 32, 32),
    "dit": lambda torch: dit(torch, 6, 384, 6, 2, 32, 32),
}


def worker(args):
    """Answers each line "N" with the seconds of N steps as JSON; "0" ends it."""
    import torch
    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if ranks > 1:
        import torch.distributed as dist
        dist.init_process_group("gloo")
    model, data, batch = MODELS[args.worker](torch)
    parameters = sum(p.numel() for p in model.parameters())
    adam = dict(lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1)
    optimizer = None
    if args.parallel in ("ddp", "zero1"):
        from torch.distributed.optim import ZeroRedundancyOptimizer
        from torch.nn.parallel import DistributedDataParallel
        model = DistributedDataParallel(model)
        if args.parallel == "zero1":
            optimizer = ZeroRedundancyOptimizer(model.parameters(), torch.optim.AdamW, **adam)
    elif args.parallel:
        from torch.distributed.fsdp import fully_shard
        mesh = dist.device_mesh.init_device_mesh("cpu", (ranks,))
        for block in model.blocks:
            fully_shard(block, mesh=mesh, reshard_after_forward=args.parallel == "fsdp3")
        fully_shard(model, mesh=mesh, reshard_after_forward=False)
    optimizer = optimizer or torch.optim.AdamW(model.parameters(), **adam)

    if isinstance(data, Flow):
        call, batches = lambda *inputs: data.loss(model, *inputs), data.data
    else:
        call, batches = model, data
    if args.mode == "compile":
        call = torch.compile(call)
    done = 0
    for line in sys.stdin:
        count = int(line)
        if count == 0:
            break
        seconds = []
        for _ in range(count):
            start = time.perf_counter()
            loss = call(*batches(done * ranks + rank, batch // ranks))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            value = loss.item()
            seconds.append(time.perf_counter() - start)
            done += 1
        peak = [int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM")][0]
        print(json.dumps({"seconds": seconds, "loss": value, "parameters": parameters, "torch": torch.__version__, "peak_rss": peak}), flush=True)
    if ranks > 1:
        dist.destroy_process_group()


class Torch:
    def __init__(self, model, mode, args):
        self.seconds, self.peak, self.name = [], 0, "torch " + (args.parallel or mode)
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        self.ranks = []
        for rank in range(args.ranks):
            environment = dict(os.environ, OMP_NUM_THREADS=str(args.threads), OMP_WAIT_POLICY="PASSIVE")
            if args.ranks > 1:
                environment.update(RANK=str(rank), WORLD_SIZE=str(args.ranks), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
            command = [sys.executable, os.path.abspath(__file__), "--worker", model, "--mode", mode, "--threads", str(args.threads)]
            if args.ranks > 1:
                command += ["--parallel", args.parallel]
            self.ranks.append(subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))

    def steps(self, count):
        for process in self.ranks:
            process.stdin.write(f"{count}\n")
            process.stdin.flush()
        answers = [process.stdout.readline() for process in self.ranks]
        if not all(answers):
            raise RuntimeError(f"{self.name}: a worker ended; its error is above")
        answers = [json.loads(a) for a in answers]
        self.version, self.parameters = answers[0]["torch"], answers[0]["parameters"]
        self.peak = max(a["peak_rss"] for a in answers)
        return answers[0]["seconds"]

    def round(self, count):
        self.seconds += self.steps(count)

    def end(self):
        for process in self.ranks:
            process.stdin.write("0\n")
            process.stdin.close()
            process.wait()


class Ringzero:
    def __init__(self, model, args):
        self.seconds, self.utilization, self.peak, self.name = [], [], 0, f"ringzero stage {args.stage}" if args.ranks > 1 else "ringzero"
        self.command = [args.ringzero, "bench", f"{ROOT}/bench/jobs/{model}.textproto", "--threads", str(args.threads), "--stage", str(args.stage), "--json"]
        self.environment = dict(os.environ)
        if args.ranks > 1:
            self.command = ["mpirun", "--bind-to", "none", "--oversubscribe", "--mca", "mpi_yield_when_idle", "1", "-np", str(args.ranks)] + self.command
        else:
            self.command += ["--ranks", "1"]

    def round(self, count):
        out = subprocess.run(self.command + ["--warmup", "2", "--count", str(count)], env=self.environment, capture_output=True, text=True)
        if out.returncode != 0:
            raise RuntimeError(f"{' '.join(self.command)} ended with status {out.returncode}\n{out.stderr}")
        self.result = json.loads(out.stdout)
        self.seconds += [self.result["step_ms"]["median"] / 1e3]
        self.utilization.append(self.result["model_flop_utilization"])
        self.parameters = self.result["parameters"]
        self.peak = max(rank["memory"]["rss_peak_bytes"] for rank in self.result["per_rank"])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--modes", default="eager,compile")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--parallel", default="", choices=["", "ddp", "zero1", "fsdp2", "fsdp3"])
    parser.add_argument("--stage", type=int, default=0)
    parser.add_argument("--ringzero", default=f"{ROOT}/build/release/bin/ringzero")
    parser.add_argument("--json", help="write the figures here")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--mode", default="eager", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return worker(args)
    if (args.ranks > 1) != bool(args.parallel):
        parser.error("--ranks above 1 and --parallel go together")
    rows = []
    for model in args.models.split(","):
        modes = ["eager"] if args.ranks > 1 else args.modes.split(",")
        peers = [Torch(model, mode, args) for mode in modes]
        for peer in peers:
            peer.steps(2)  # loads, compiles, warms up
        own = Ringzero(model, args)
        for _ in range(args.rounds):
            for contestant in peers + [own]:
                contestant.round(args.steps)
        for peer in peers:
            peer.end()
        ours = statistics.median(own.seconds)
        for c in [own] + peers:
            median = statistics.median(c.seconds)
            row = {"model": model, "contestant": c.name, "parameters": c.parameters, "ranks": args.ranks, "threads": args.threads,
                   "step_ms": 1e3 * median, "ratio": median / ours, "peak_rss_mb": c.peak / 1e6}
            if c is own:
                row["model_flop_utilization"] = statistics.median(own.utilization)
            else:
                row["torch"] = c.version
            rows.append(row)
            extra = f"{row['model_flop_utilization']:.1%} of matrix products" if c is own else f"{row['ratio']:.2f}x ringzero's time"
            print(f"{model:<10} {args.ranks} ranks x {args.threads} threads  {c.name:<18} {row['step_ms']:9.1f} ms  {c.parameters / 1e6:6.2f}M  "
                  f"peak {row['peak_rss_mb']:7.0f} MB  {extra}", flush=True)
    if args.json:
        with open(args.json, "w") as f:
            json.dump(rows, f, indent=1)


if __name__ == "__main__":
    main()
