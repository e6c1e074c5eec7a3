"""Peak resident memory of each rank while PyTorch trains the quick start's model (examples/gpt_kjv.textproto) on CPUs over Gloo.

python3 bench/peers/torch_memory.py --mode ddp|zero1|fsdp2|fsdp3 [--ranks 2] [--steps 4]

ddp: DistributedDataParallel; zero1: with ZeroRedundancyOptimizer; fsdp2 and fsdp3: fully_shard of each block and of the whole, weights kept
gathered after forward (as stage 2 keeps them) or not (stage 3). Prints, per rank, the peak of the process and its growth over what the
process held before the model was made (interpreter, libraries, process group). Needs torch; nothing of ringzero needs this file.
"""

import argparse
import os
import resource
import subprocess
import sys

# examples/gpt_kjv.textproto, with 16 sequences a step
LAYERS, WIDTH, HEADS, CONTEXT, VOCABULARY, BATCH = 4, 160, 5, 128, 63, 16


def resident_bytes(field):
    with open("/proc/self/status") as status:
        for line in status:
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    raise RuntimeError("no " + field + " in /proc/self/status")


def peak_bytes():
    # getrusage's figure outlives exec, and so may be the parent's; VmHWM is this program's own.
    return min(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, resident_bytes("VmHWM"))


def make_model(torch):
    nn, functional = torch.nn, torch.nn.functional
    head_width = WIDTH // HEADS

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
            self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
            self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

        def forward(self, x, cos, sin):
            batch, time, _ = x.shape
            q, k, v = self.qkv(self.norm1(x)).view(batch, time, 3, HEADS, head_width).permute(2, 0, 3, 1, 4)

            def rotate(y):
                a, b = y.chunk(2, dim=-1)
                return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)

            y = functional.scaled_dot_product_attention(rotate(q), rotate(k), v, is_causal=True)
            x = x + self.out(y.transpose(1, 2).reshape(batch, time, WIDTH))
            return x + self.down(functional.gelu(self.up(self.norm2(x)), approximate="tanh"))

    class Gpt(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(VOCABULARY, WIDTH)
            nn.init.normal_(self.embedding.weight, std=0.02)
            self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
            self.norm = nn.LayerNorm(WIDTH)
            angles = torch.outer(torch.arange(CONTEXT).float(), 10000.0 ** (-torch.arange(0, head_width, 2).float() / head_width))
            self.register_buffer("cos", angles.cos(), persistent=False)
            self.register_buffer("sin", angles.sin(), persistent=False)

        def forward(self, tokens, targets):
            x = self.embedding(tokens)
            for block in self.blocks:
                x = block(x, self.cos, self.sin)
            logits = functional.linear(self.norm(x), self.embedding.weight)  # tied
            return functional.cross_entropy(logits.view(-1, VOCABULARY), targets.reshape(-1))

    return Gpt()


def train(mode, steps):
    import torch
    import torch.distributed as dist

    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)
    torch.manual_seed(1)
    dist.init_process_group("gloo")
    dist.barrier()
    adam = dict(lr=2e-3, betas=(0.9, 0.99), weight_decay=0.1)
    # Imported before the baseline is taken: libraries are no model memory.
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.optim import ZeroRedundancyOptimizer
    from torch.nn.parallel import DistributedDataParallel
    baseline = resident_bytes("VmRSS")

    model = make_model(torch)
    parameters = sum(p.numel() for p in model.parameters())
    if mode in ("ddp", "zero1"):
        model = DistributedDataParallel(model)
        optimizer = (ZeroRedundancyOptimizer(model.parameters(), torch.optim.AdamW, **adam) if mode == "zero1"
                     else torch.optim.AdamW(model.parameters(), **adam))
    else:
        mesh = dist.device_mesh.init_device_mesh("cpu", (ranks,))
        for block in model.blocks:
            fully_shard(block, mesh=mesh, reshard_after_forward=mode == "fsdp3")
        fully_shard(model, mesh=mesh, reshard_after_forward=False)
        optimizer = torch.optim.AdamW(model.parameters(), **adam)
    share = BATCH // ranks
    for step in range(steps):
        tokens = torch.randint(VOCABULARY, (share, CONTEXT + 1), generator=torch.Generator().manual_seed(step * ranks + rank))
        loss = model(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    value = loss.item()
    for r in range(ranks):
        dist.barrier()
        if r == rank:
            peak = peak_bytes()
            print(f"torch {torch.__version__} {mode} rank {rank} of {ranks}: {parameters} parameters, loss {value:.3f}, "
                  f"peak {peak / 1e6:.1f} MB, before the model {baseline / 1e6:.1f} MB, growth {(peak - baseline) / 1e6:.1f} MB", flush=True)
    dist.barrier()
    dist.destroy_process_group()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", choices=("ddp", "zero1", "fsdp2", "fsdp3"), required=True)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4)
    arguments = parser.parse_args()
    if "RANK" in os.environ:
        return train(arguments.mode, arguments.steps)
    environment = dict(os.environ, WORLD_SIZE=str(arguments.ranks), MASTER_ADDR="127.0.0.1", OMP_NUM_THREADS="1",
                       MASTER_PORT=str(20000 + os.getpid() % 20000))
    processes = [subprocess.Popen([sys.executable, __file__, *sys.argv[1:]], env=dict(environment, RANK=str(r))) for r in range(arguments.ranks)]
    return max(abs(p.wait()) for p in processes)


if __name__ == "__main__":
    sys.exit(main())
