// Convolution, forward: the sum over a window, for every output pixel and filter.
//
//   y[n,i,j,k] = bias[k] + sum over r, s, c of x[n, i*stride + r*dilation - top,
//                                                   j*stride + s*dilation - left, g*C/G + c]
//                                              * weight[k,r,s,c]
//
// where pixels outside the image count as 0, and g = k / (K/G) is the group of filter k. Arrays lie
// channels last: x [N,H,W,C], weight [K,R,S,C/G], y [N,Ho,Wo,K].
//
// Cost, for the paper's conv2 at a batch of 128 (27x27 pixels, 96 -> 256 channels, 5x5,
// two groups):
//   2 * 128*27*27 pixels * 256 filters * 5*5*48 terms = 57.3 GFLOP
//   x 128*27*27*96*4 = 35.8 MB, weight 256*5*5*48*4 = 1.2 MB, y 128*27*27*256*4 = 95.6 MB
// That is 57.3e9 / 132.6e6 = 432 operations a byte. An H100 has time for 67e12 / 3.35e12 = 20 of
// them (float32, without tensor cores, by its data sheet): it is arithmetic that takes the time, if
// each byte is fetched from memory about once. All of the craft here goes into that "if".
//
// Version 1, `conv_forward_naive`: one thread per output element, the formula and nothing else.
// Version 2, `conv_forward_tiled`: the same sums as a tiled matrix product, without ever writing
// down the matrix of windows (the "implicit GEMM").
// The next rung, on tensor cores, is in conv_mma.cu.

#include "convolution.cuh"
#include "product_tile.cuh"

// --- version 1: one thread per output element ----------------------------------------------------
//
// Every product needs two values from memory: 2 * 4 bytes for 2 operations. The caches catch many
// of these reads, but not the instructions that make them. And neighbouring threads, which have
// neighbouring filters, read weights that lie R*S*C/G values apart: the 32 threads of a warp need
// 32 different pieces of memory where one would do.

KERNEL_FOR(float, double) __launch_bounds__(256)
conv_forward_naive(const T* x, const T* weight, const T* bias, T* y, ConvShape p) {
  const int index = blockIdx.x * blockDim.x + threadIdx.x;
  if (index >= p.N * p.Ho * p.Wo * p.K) return;
  const int k = index % p.K, j = index / p.K % p.Wo, i = index / p.K / p.Wo % p.Ho;
  const int n = index / p.K / p.Wo / p.Ho;
  const int channels = p.C / p.groups, first = k / (p.K / p.groups) * channels;
  T sum = 0;
  for (int r = 0; r < p.R; ++r) {
    for (int s = 0; s < p.S; ++s) {
      const int h = i * p.stride_h + r * p.dilation_h - p.top;
      const int w = j * p.stride_w + s * p.dilation_w - p.left;
      if (h < 0 || h >= p.H || w < 0 || w >= p.W) continue;
      const T* pixel = x + ((n * p.H + h) * p.W + w) * p.C + first;
      const T* tap = weight + ((k * p.R + r) * p.S + s) * channels;
      for (int c = 0; c < channels; ++c) sum += pixel[c] * tap[c];
    }
  }
  y[index] = bias ? sum + bias[k] : sum;
}

// --- version 2: tiles of a matrix product --------------------------------------------------------
//
// y, read as a matrix of pixels x filters, is the product of two matrices: the windows, pixels x
// terms, and the weights, terms x filters, where the terms are all (r, s, c). A block computes
// 128 x 128 of it as in product_tile.cuh. The windows are never stored: whoever fetches the term d
// of a pixel works out r, s and c from d, and so where in x it lies.
//
// A thread fetches four neighbouring terms of one pixel and of one filter. With channels last,
// these are four neighbouring channels and lie in a row: one read of 16 bytes. So C/G and K/G are
// divisible by 4.
//
// The next terms are fetched while the products of the last are added: they wait in registers, and
// memory works at the same time as the arithmetic units.
//
// The bias, and the ReLU if there is one, are applied to the sums in the registers. On their own,
// they would read and write y again: 2 * 95.6 MB for conv2.

extern "C" __global__ void __launch_bounds__(TILE_THREADS, 2)
conv_forward_tiled(const float* x, const float* weight, const float* bias, float* y, ConvShape p,
                   int relu) {
  __shared__ Tiles tiles;
  const int channels = p.C / p.groups, filters = p.K / p.groups, group = blockIdx.y;
  const int pixels = p.N * p.Ho * p.Wo, terms = p.R * p.S * channels;
  // Neighbouring blocks take the same pixels, so that the second finds them in a cache: pixels are
  // many, while all of the weights stay there anyway.
  const int filter_tiles = (filters + TILE - 1) / TILE;
  const int first_pixel = blockIdx.x / filter_tiles * TILE;
  const int first_filter = blockIdx.x % filter_tiles * TILE;

  // What this thread fetches of every eight terms: four of one pixel, four of one filter.
  const int line = threadIdx.x / 2, part = threadIdx.x % 2 * 4;
  const int pixel = first_pixel + line, filter = first_filter + line;
  // In x: the image's first pixel; row and column of the window's corner, perhaps in the padding.
  const int image = pixel / (p.Ho * p.Wo) * p.H * p.W;
  const int top = pixel / p.Wo % p.Ho * p.stride_h - p.top;
  const int left = pixel % p.Wo * p.stride_w - p.left;
  const int weights = (group * filters + filter) * terms;
  Quad of_pixel, of_filter;
  auto fetch_terms = [&](int first) {
    const int d = first + part, c = d % channels, tap = d / channels;
    const int h = top + tap / p.S * p.dilation_h, w = left + tap % p.S * p.dilation_w;
    const bool inside = pixel < pixels && d < terms && 0 <= h && h < p.H && 0 <= w && w < p.W;
    const int place = (image + h * p.W + w) * p.C + group * channels + c;
    of_pixel = inside ? load(x + place) : Quad{};
    of_filter = filter < filters && d < terms ? load(weight + weights + d) : Quad{};
  };

  float sum[OWN][OWN] = {};
  fetch_terms(0);
  for (int d = 0; d < terms; d += DEPTH) {
    keep_terms(tiles.a, part, line, of_pixel);
    keep_terms(tiles.b, part, line, of_filter);
    __syncthreads();
    if (d + DEPTH < terms) fetch_terms(d + DEPTH);
    add_products(tiles, sum);
    __syncthreads();
  }

#pragma unroll
  for (int j = 0; j < OWN; ++j) {
    const int k = first_filter + own(threadIdx.x % 16, j);
    const float shift = bias && k < filters ? bias[group * filters + k] : 0.0f;
#pragma unroll
    for (int i = 0; i < OWN; ++i) {
      sum[i][j] += shift;
      if (relu && sum[i][j] <= 0) sum[i][j] = 0;  // written so that NaN stays NaN
    }
  }
  store_tile(y + first_pixel * p.K + group * filters + first_filter, p.K, pixels - first_pixel,
             filters - first_filter, sum);
}
