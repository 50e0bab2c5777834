// A check for NaN and infinity: 0 * x is 0 for every other number, and NaN for these.
//
// Each thread adds up 0 * x over its share of the array, each warp combines its 32 threads' sums
// and writes one flag: 1 or 0. Every flag has one writer, so nothing has to be zero before,
// and what to do with the few flags (are they all 0?) is left to the caller.
//
// 4 bytes per element, read once: the paper's 60,965,224 parameters, or gradients, are 244 MB.
// One version.
#include "four.cuh"

constexpr int THREADS = 256;
constexpr int WARP = 32;

KERNEL_FOR(float, double) __launch_bounds__(THREADS)
not_finite(const T* x, unsigned count, int* flags) {
  T total = 0;
  for (unsigned first = first_of_four(); first < count; first += 4 * gridDim.x * THREADS) {
    const Four<T> four = load_four(x, first, count);
#pragma unroll
    for (const T value : four.at) total += 0 * value;
  }
  const unsigned found = __ballot_sync(0xffffffffu, total != 0);
  const int thread = blockIdx.x * THREADS + threadIdx.x;
  if (thread % WARP == 0) flags[thread / WARP] = found != 0;
}
