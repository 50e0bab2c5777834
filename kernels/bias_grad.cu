// The gradient of a bias: each channel's gradient, summed over images and pixels.
//
//   dbias[k] = sum over m of dy[m,k]                      dy [M,K], with M = N * Ho * Wo pixels
//
// and behind a ReLU, whose output is y:
//
//   masked[m,k] = dy[m,k] where y[m,k] > 0, else 0;       dbias[k] = sum over m of masked[m,k]
//
// Cost, for the paper's conv1 at a batch of 128 (55x55 pixels, 96 channels): one addition
// for each value of dy, 128*55*55*96*4 = 148.7 MB. So it is the reading that takes the time. With
// the ReLU, y is read and the masked gradient written too: 3 * 148.7 MB; a masking pass and then a
// summing pass would move 4 * 148.7 MB.
//
// The pixels are split into ranges, so that the whole GPU reads. A block takes 32 channels of one
// range: a warp reads 32 neighbouring channels of a pixel, 128 bytes in a row, and each of the 8
// warps takes every eighth pixel. Each block writes its sums, [ranges, K]; the same kernel, run
// once more with these as its pixels and one range, adds them up. Every addition has its fixed
// place in that order, so the same input gives the same bits, and short sums of short sums round
// less than one long sum. There is one version: at one addition per value, nothing can be gained.
#include "bfloat16.cuh"

constexpr int LANES = 32;  // channels of a block
constexpr int WARPS = 8;   // pixels that it reads at a time

// Where y is given, it masks the gradient on the way to the sum, and `masked` gets the result.
template <typename T, bool RELU>
__device__ void sum_pixels(const T* __restrict__ grad, const T* __restrict__ y,
                           T* __restrict__ masked, Compute<T>* __restrict__ sums, int pixels,
                           int K) {
  __shared__ Compute<T> of_warp[WARPS][LANES];
  const int lane = threadIdx.x % LANES, warp = threadIdx.x / LANES;
  const int k = blockIdx.x * LANES + lane;
  const int range = (pixels + gridDim.y - 1) / gridDim.y;
  const int begin = blockIdx.y * range, end = min(pixels, begin + range);
  Compute<T> sum = 0;
  if (k < K) {
#pragma unroll 4  // four reads under way at once
    for (int m = begin + warp; m < end; m += WARPS) {
      Compute<T> value = grad[m * K + k];
      if (RELU) {
        if (y[m * K + k] <= 0) value = 0;  // written so that NaN lets the gradient through
        masked[m * K + k] = value;
      }
      sum += value;
    }
  }
  of_warp[warp][lane] = sum;
  __syncthreads();
  if (warp == 0 && k < K) {
    for (int other = 1; other < WARPS; ++other) sum += of_warp[other][lane];
    sums[blockIdx.y * K + k] = sum;
  }
}

KERNEL_FOR(float, double, bfloat16) __launch_bounds__(LANES * WARPS)
bias_grad(const T* __restrict__ grad, Compute<T>* __restrict__ sums, int pixels, int K) {
  sum_pixels<T, false>(grad, nullptr, nullptr, sums, pixels, K);
}

KERNEL_FOR(float, double, bfloat16) __launch_bounds__(LANES * WARPS)
relu_bias_grad(const T* __restrict__ grad, const T* __restrict__ y, T* __restrict__ masked,
               Compute<T>* __restrict__ sums, int pixels, int K) {
  sum_pixels<T, true>(grad, y, masked, sums, pixels, K);
}
