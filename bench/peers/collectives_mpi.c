/* Open MPI's collectives, and what copies cost on the same cores: collectives_mpi ITERATIONS SIZE... (bytes of the full buffer)
 *
 * Prints a line of JSON per collective and size, with the mean time of the slowest rank, as `ringzero collectives` measures it, and for
 * each size the bound: the time in which every rank moves, at the rate at which all ranks at once copied buffers of that size, the bytes
 * that no collective among private results can avoid (see collectives.py). Needs nothing but MPI:
 * mpicc -O3 -march=native collectives_mpi.c -o collectives_mpi */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static double slowest(double seconds) {
  double out = 0;
  MPI_Allreduce(&seconds, &out, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
  return out;
}

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  int rank, n;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &n);
  const int most = argc > 1 ? atoi(argv[1]) : 20;
  static const char* const names[] = {"all_reduce", "reduce_scatter", "all_gather", "copy"};
  for (int a = 2; a < argc; ++a) {
    const size_t bytes = strtoull(argv[a], NULL, 10);
    const int count = (int)(bytes / sizeof(float)), chunk = (count + n - 1) / n;
    float* full = aligned_alloc(64, (size_t)chunk * n * sizeof(float) + 64);
    float* other = aligned_alloc(64, (size_t)chunk * n * sizeof(float) + 64);
    memset(full, 0, (size_t)chunk * n * sizeof(float));
    memset(other, 0, (size_t)chunk * n * sizeof(float));
    const int iterations = bytes <= 65536 ? most * 10 : most;
    for (int what = 0; what < 4; ++what) {
      double begin = 0;
      for (int i = -3; i < iterations; ++i) {
        if (i == 0) {
          MPI_Barrier(MPI_COMM_WORLD);
          begin = MPI_Wtime();
        }
        if (what == 0) MPI_Allreduce(MPI_IN_PLACE, full, count, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
        if (what == 1) MPI_Reduce_scatter_block(MPI_IN_PLACE, full, chunk, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
        if (what == 2) MPI_Allgather(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, full, chunk, MPI_FLOAT, MPI_COMM_WORLD);
        if (what == 3) {
          memcpy(other, full, bytes);
          __asm__ volatile("" : : "r"(other), "r"(full) : "memory");
        }
      }
      const double seconds = slowest((MPI_Wtime() - begin) / iterations);
      if (rank == 0) printf("{\"collective\": \"%s\", \"size_bytes\": %zu, \"time_us\": %.3f}\n", names[what], bytes, seconds * 1e6);
    }
    free(full);
    free(other);
  }
  MPI_Finalize();
  return 0;
}
