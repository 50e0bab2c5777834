// A linear layer on a few rows, such as the prediction of a single image:
//
//   y[n,o] = bias[o] + sum over i of x[n,i] weight[o,i], or ReLU of it     x [N,I], weight [O,I]
//
// The time is that of reading the weights. The paper's fc6 has 4096 x 9216 floats, 151 MB: 45 us at
// an H100's 3.35 TB/s, in which each of them meets N numbers of x. A matrix product as in
// conv_mma.cu would compute a tile of 64 rows for the sake of one.
//
// One version. A warp computes two outputs: each lane reads 16 bytes of both lines of weights at a
// time, neighbouring lanes neighbouring groups, and STEPS of these before it uses the first, so
// that 32 lanes x 8 x 16 bytes = 4 KB per warp are on their way; 16 warps on a multiprocessor are
// three times what 3.35 TB/s and a delay of 700 ns ask for (18 KB each of 132).
//
// Every number of x is read once for two outputs, from the L1 cache. With up to MOST = 8 rows that
// is 8 x 16 bytes for 32 of weights, four times as much; memory sends a multiprocessor some 15
// bytes per cycle, so L1 has to give 60 of its 128. With more rows it, and the registers for sums,
// would be the bound. L1 can hold six rows of fc6 (37 KB each); of eight it helps only if the warps
// keep together. Weights, read once, shall not push x out.
//
// A lane adds its products in order, and then five exchanges add up the lanes, each in a fixed
// order.
#include "four.cuh"

constexpr int WARPS = 8, OUTPUTS = 2, STEPS = 4, MOST = 8;
constexpr int LANES = 32, GROUP = 4 * LANES;  // elements that a warp reads at once

// Elements `first` to first + 3 of a line of `length`, a multiple of four; zeros beyond its end.
template <class T>
__device__ __forceinline__ Four<T> load_group(const T* line, int first, int length) {
  return first < length ? *reinterpret_cast<const Four<T>*>(line + first) : Four<T>{};
}

// Four elements of what is read once: it is the first to leave the caches.
__device__ __forceinline__ Four<float> load_once(const float* from) {
  const float4 four = __ldcs(reinterpret_cast<const float4*>(from));
  return {four.x, four.y, four.z, four.w};
}

__device__ __forceinline__ Four<double> load_once(const double* from) {
  const double2 two = __ldcs(reinterpret_cast<const double2*>(from));
  const double2 more = __ldcs(reinterpret_cast<const double2*>(from) + 1);
  return {two.x, two.y, more.x, more.y};
}

// I is a multiple of 4, N at most 8; bias [O] or null, y [N,O]; relu is 0 or 1.
KERNEL_FOR(float, double) __launch_bounds__(WARPS * LANES, 2)
few_rows(const T* __restrict__ x, const T* __restrict__ weight, const T* __restrict__ bias,
         T* __restrict__ y, int N, int I, int O, int relu) {
  const int lane = threadIdx.x % LANES;
  const int first = (blockIdx.x * WARPS + threadIdx.x / LANES) * OUTPUTS;
  if (first >= O) return;
  const T* lines[OUTPUTS];
#pragma unroll
  for (int o = 0; o < OUTPUTS; ++o) lines[o] = weight + min(first + o, O - 1) * I;
  T sums[OUTPUTS][MOST] = {};
  for (int begin = 4 * lane; begin < I; begin += STEPS * GROUP) {
    Four<T> w[OUTPUTS][STEPS];
#pragma unroll
    for (int step = 0; step < STEPS; ++step)
#pragma unroll
      for (int o = 0; o < OUTPUTS; ++o) {
        const int i = begin + step * GROUP;
        w[o][step] = i < I ? load_once(lines[o] + i) : Four<T>{};
      }
#pragma unroll
    for (int n = 0; n < MOST; ++n) {
      if (n >= N) break;
#pragma unroll
      for (int step = 0; step < STEPS; ++step) {
        const Four<T> factor = load_group(x + n * I, begin + step * GROUP, I);
#pragma unroll
        for (int o = 0; o < OUTPUTS; ++o)
#pragma unroll
          for (int i = 0; i < 4; ++i) sums[o][n] += w[o][step].at[i] * factor.at[i];
      }
    }
  }
#pragma unroll
  for (int n = 0; n < MOST; ++n)
#pragma unroll
    for (int o = 0; o < OUTPUTS; ++o) {
      T sum = sums[o][n];
#pragma unroll
      for (int step = LANES / 2; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
      if (lane != 0 || n >= N || first + o >= O) continue;
      if (bias) sum += bias[first + o];
      y[n * O + first + o] = relu && sum <= 0 ? T(0) : sum;  // a NaN stays one
    }
}
