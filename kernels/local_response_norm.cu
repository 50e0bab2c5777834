// Local response normalisation across channels (paper, section 3.3) and its gradient.
//
//   y_c = x_c s_c^-beta,    s_c = k + alpha / size * sum of x_j^2 over `size` channels around c
//
// Formula of the gradient, and why s is never stored: response_norm.cuh. No pixel depends on
// another, nor one group of channels on another: x is a list of lines of `width` neighbouring
// channels, and it does not matter to which pixel or image a line belongs.
//
// Bytes, float32, N = 128:
//
//   norm 1: 55 x 55 x 96 = 290,400 values per image, 128 * 4 * 290,400 = 148.7 MB per array
//     forward:  x read, y written:      2 * 148.7 = 297.4 MB
//     gradient: dy, x read, dx written: 3 * 148.7 = 446.1 MB
//   norm 2: 27 x 27 x 256 = 186,624 values, 95.6 MB per array: 191.1 MB and 286.7 MB
//
// An H100's memory moves 3.35 TB/s by its data sheet: at the least 89 and 133 us for norm 1. With
// some 15 operations per value forward, 37.2 million values are 0.6 GFLOP, and at 67 TFLOP/s 8 us:
// time is bytes. Keeping s would move 148.7 MB more each way. Not yet measured on hardware.
//
// v1  One thread per value: it reads its window from memory, where the caches mostly serve it, as
//     the window's channels are neighbours. Forward reads each value `size` times. The gradient
//     needs s of each channel of the window, and computes it from that channel's window: size^2.
// v2  Four channels per thread (no double, width a multiple of 4), several lines per block; values
//     come from memory once, into shared memory, and the windows from there. The gradient keeps
//     dy x s^(-beta-1) there too, so that each thread computes s of its own channels only.
#include "response_norm.cuh"

constexpr int THREADS = 256;

// --- v1: one thread per value --------------------------------------------------------------------

KERNEL_FOR(float, double, bfloat16) __launch_bounds__(THREADS)
local_response_norm(const T* x, T* y, int values, int width, int size, Compute<T> ratio,
                    Compute<T> beta, Compute<T> k) {
  const Norm<Compute<T>> norm = {width, size, ratio, beta, k};
  const int index = blockIdx.x * THREADS + threadIdx.x;
  if (index >= values) return;
  const int c = index % norm.width;
  y[index] = normalised(x + index - c, c, norm);
}

KERNEL_FOR(float, double, bfloat16) __launch_bounds__(THREADS)
local_response_norm_grad(const T* grad, const T* x, T* dx, int values, int width, int size,
                         Compute<T> ratio, Compute<T> beta, Compute<T> k) {
  const Norm<Compute<T>> norm = {width, size, ratio, beta, k};
  const int index = blockIdx.x * THREADS + threadIdx.x;
  if (index >= values) return;
  const int c = index % norm.width, line = index - c;
  dx[index] = normalised_grad(x + line, c, norm, [&](int j) { return grad[line + j]; });
}

// --- v2: four channels per thread, lines in shared memory ----------------------------------------
//
// threadIdx.x is the quad of the line, threadIdx.y the line; the block's lines lie in shared memory
// one behind the other, so that neighbouring threads read and write neighbouring quads.

KERNEL_FOR(float, bfloat16) __launch_bounds__(THREADS)
local_response_norm_quads(const T* __restrict__ x, T* __restrict__ y, int lines, int width,
                          int size, float ratio, float beta, float k) {
  const Norm<float> norm = {width, size, ratio, beta, k};
  __shared__ float4 values[THREADS];
  float* const line = reinterpret_cast<float*>(values) + threadIdx.y * norm.width;
  const int number = blockIdx.x * blockDim.y + threadIdx.y;
  const int index = number * norm.width + 4 * threadIdx.x;
  Quad value = {};
  if (number < lines) value = load(x + index);
  store(line + 4 * threadIdx.x, value);
  __syncthreads();
  if (number >= lines) return;

  const Quad s = scales(line, threadIdx.x, norm);
#pragma unroll
  for (int e = 0; e < 4; ++e) value.at[e] *= powers(s.at[e], norm.beta).value;
  store(y + index, value);
}

KERNEL_FOR(float, bfloat16) __launch_bounds__(THREADS)
local_response_norm_grad_quads(const T* __restrict__ grad, const T* __restrict__ x,
                               T* __restrict__ dx, int lines, int width, int size, float ratio,
                               float beta, float k) {
  const Norm<float> norm = {width, size, ratio, beta, k};
  __shared__ float4 values[THREADS];
  __shared__ float4 products[THREADS];  // dy x s^(-beta-1)
  const int start = threadIdx.y * norm.width, own = start + 4 * threadIdx.x;
  float* const all_values = reinterpret_cast<float*>(values);
  float* const all_products = reinterpret_cast<float*>(products);
  const int number = blockIdx.x * blockDim.y + threadIdx.y;
  const int index = number * norm.width + 4 * threadIdx.x;
  Quad value = {}, slope = {};
  if (number < lines) {
    value = load(x + index);
    slope = load(grad + index);
  }
  store(all_values + own, value);
  __syncthreads();

  const Quad s = scales(all_values + start, threadIdx.x, norm);
  Quad product;
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    const Powers<float> p = powers(s.at[e], norm.beta);
    product.at[e] = slope.at[e] * value.at[e] * p.slope;
    slope.at[e] *= p.value;
  }
  store(all_products + own, product);
  __syncthreads();
  if (number >= lines) return;

  const Quad spread = spreads(all_products + start, threadIdx.x, norm);
#pragma unroll
  for (int e = 0; e < 4; ++e)
    slope.at[e] -= 2 * norm.beta * norm.ratio * value.at[e] * spread.at[e];
  store(dx + index, slope);
}
