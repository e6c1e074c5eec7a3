"""Gloo's all-reduce through PyTorch, started by collectives.py once per rank: RANK RANKS FILE ITERATIONS SIZE..."""

import datetime
import json
import sys
import time

import torch
import torch.distributed as dist


def main():
    rank, ranks, file, iterations = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method="file://" + file, rank=rank, world_size=ranks, timeout=datetime.timedelta(seconds=120))
    for size in map(int, sys.argv[5:]):
        data = torch.zeros(size // 4)
        for _ in range(3):
            dist.all_reduce(data)
        dist.barrier()
        begin = time.perf_counter()
        for _ in range(iterations):
            dist.all_reduce(data)
        slowest = torch.tensor([(time.perf_counter() - begin) / iterations], dtype=torch.float64)
        dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
        if rank == 0:
            print(json.dumps({"collective": "all_reduce", "size_bytes": size, "time_us": slowest.item() * 1e6}), flush=True)
    dist.destroy_process_group()


main()
