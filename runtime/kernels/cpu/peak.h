// The limits of this machine, measured in the run that quotes them: speed of shared machines drifts by tens of percent.
#pragma once

namespace rz::cpu {

// Fused multiply-adds of float32 in registers, in GFLOP/s on `threads` threads of its own: no loop of them can exceed it; products in tile
// registers (gemm_tiles.h) and convolutions by Winograd's method can. Measured for a few
// milliseconds at each call; the best of the calls so far. Not for several threads at once.
double multiply_add_peak(int threads);

// The best of some products of 1024 x 1024 float32 matrices, in GFLOP/s on the calling rank's compute threads.
double matmul_peak();

}  // namespace rz::cpu
