// Convolution, the gradient of the weights: each output's gradient times the window that it saw.
//
//   dweight[k,r,s,c] = sum over n, i, j of dy[n,i,j,k]
//                                          * x[n, i*stride + r*dilation - top,
//                                                 j*stride + s*dilation - left, g*C/G + c]
//
// where pixels outside the image count as 0, and g = k / (K/G) is the group of filter k. Arrays lie
// channels last: dy [N,Ho,Wo,K], x [N,H,W,C], dweight [K,R,S,C/G].
//
// Cost, for the paper's conv2 at a batch of 128 (27x27 pixels, 96 -> 256 channels, 5x5,
// two groups):
//   2 * 256*5*5*48 weights * 128*27*27 terms = 57.3 GFLOP, as in the forward pass
//   dy 128*27*27*256*4 = 95.6 MB, x 128*27*27*96*4 = 35.8 MB, dweight 256*5*5*48*4 = 1.2 MB
// The shape is what differs: few results, each the sum of 128*27*27 = 93312 products.
//
// Version 1, `conv_weight_grad_naive`: one thread per weight.
// Version 2, `conv_weight_grad_tiled`: a tiled matrix product, its sums split among many blocks,
// whose parts split_sum.cu adds up.
// The next rung, on tensor cores, is in conv_weight_grad_tensor.cu.

#include "convolution.cuh"
#include "product_tile.cuh"

// --- version 1: one thread per weight ------------------------------------------------------------
//
// conv2 has 307200 weights, so 307200 threads: about what one GPU runs at a time (an H100 has 132
// multiprocessors for 2048 threads each: 270336). But each reads 2 * 93312 values, most of them
// fetched by hundreds of others as well. And in float32 one long sum loses accuracy: each addition
// rounds to the size that the sum has by then.

template <typename T>
__device__ void naive(const T* grad, const T* x, T* dweight, ConvShape p) {
  const int channels = p.C / p.groups;
  const int index = blockIdx.x * blockDim.x + threadIdx.x;
  if (index >= p.K * p.R * p.S * channels) return;
  const int c = index % channels, s = index / channels % p.S, r = index / channels / p.S % p.R;
  const int k = index / channels / p.S / p.R, first = k / (p.K / p.groups) * channels;
  T sum = 0;
  for (int n = 0; n < p.N; ++n) {
    for (int i = 0; i < p.Ho; ++i) {
      const int h = i * p.stride_h + r * p.dilation_h - p.top;
      if (h < 0 || h >= p.H) continue;
      for (int j = 0; j < p.Wo; ++j) {
        const int w = j * p.stride_w + s * p.dilation_w - p.left;
        if (w < 0 || w >= p.W) continue;
        sum += grad[((n * p.Ho + i) * p.Wo + j) * p.K + k] *
               x[((n * p.H + h) * p.W + w) * p.C + first + c];
      }
    }
  }
  dweight[index] = sum;
}

extern "C" __global__ void __launch_bounds__(256)
conv_weight_grad_naive_float(const float* grad, const float* x, float* dweight, ConvShape p) {
  naive(grad, x, dweight, p);
}

extern "C" __global__ void __launch_bounds__(256)
conv_weight_grad_naive_double(const double* grad, const double* x, double* dweight, ConvShape p) {
  naive(grad, x, dweight, p);
}

// --- version 2: tiles of a matrix product, split along its depth ---------------------------------
//
// dweight, read as a matrix of filters x taps, is the product of dy, transposed to filters x
// pixels, and the windows, pixels x taps. A tap is one (r, s, c) here, and one (r, s) elsewhere. A
// block computes 128 x 128 of it as in product_tile.cuh. Both operands are fetched along their
// lines, four filters and four taps at a time, for one pixel: neighbours in memory, one read of 16
// bytes if C/G and K/G are divisible by 4 (`_vector`).
//
// For conv2 that makes 2 groups * 1 * ceil(1200 / 128) = 20 tiles: most of a GPU with 132
// multiprocessors would stand idle. So the pixels are split into `splits` ranges, each summed by
// blocks of its own into a partial result, and split_sum.cu adds these. Always in the same
// order: the same input gives the same bits, which atomic additions would not promise. It also
// shortens the sums, and with them the rounding error.

template <int WIDTH>
__device__ void tiled(const float* grad, const float* x, float* partial, ConvShape p, int splits) {
  __shared__ Tiles tiles;
  const int channels = p.C / p.groups, filters = p.K / p.groups, group = blockIdx.y;
  const int pixels = p.N * p.Ho * p.Wo, taps = p.R * p.S * channels;
  const int tap_tiles = (taps + TILE - 1) / TILE;
  const int first_filter = blockIdx.x / tap_tiles * TILE;
  const int first_tap = blockIdx.x % tap_tiles * TILE;
  const int range = (pixels + splits - 1) / splits;
  const int begin = blockIdx.z * range, end = min(pixels, begin + range);

  // What this thread fetches of every eight pixels: four filters and four taps of one of them.
  const int row = threadIdx.x / 32, column = threadIdx.x % 32 * 4;
  const int filter = first_filter + column, tap = first_tap + column;
  int below[4], beside[4], channel[4];  // where each tap lies in the window
  for (int e = 0; e < 4; e += WIDTH) {
    below[e] = (tap + e) / channels / p.S * p.dilation_h - p.top;
    beside[e] = (tap + e) / channels % p.S * p.dilation_w - p.left;
    channel[e] = group * channels + (tap + e) % channels;
  }
  float of_filters[4], of_taps[4];
  auto fetch_pixels = [&](int first) {
    const int pixel = first + row, image = pixel / (p.Ho * p.Wo) * p.H * p.W;
    const int top = pixel / p.Wo % p.Ho * p.stride_h, left = pixel % p.Wo * p.stride_w;
#pragma unroll
    for (int e = 0; e < 4; e += WIDTH) {
      fetch<WIDTH>(of_filters + e, grad, pixel * p.K + group * filters + filter + e,
                   pixel < end && filter + e < filters);
      const int h = top + below[e], w = left + beside[e];
      const bool inside = 0 <= h && h < p.H && 0 <= w && w < p.W;
      fetch<WIDTH>(of_taps + e, x, (image + h * p.W + w) * p.C + channel[e],
                   pixel < end && tap + e < taps && inside);
    }
  };

  float sum[OWN][OWN] = {};
  fetch_pixels(begin);
  for (int d = begin; d < end; d += DEPTH) {
    keep_lines(tiles.a, row, column, of_filters);
    keep_lines(tiles.b, row, column, of_taps);
    __syncthreads();
    if (d + DEPTH < end) fetch_pixels(d + DEPTH);
    add_products(tiles, sum);
    __syncthreads();
  }
  const int first_row = blockIdx.z * p.K + group * filters + first_filter;
  store_tile<WIDTH>(partial + first_row * taps + first_tap, taps, filters - first_filter,
                     taps - first_tap, sum);
}

extern "C" __global__ void __launch_bounds__(TILE_THREADS, 2)
conv_weight_grad_tiled(const float* grad, const float* x, float* partial, ConvShape p, int splits) {
  tiled<1>(grad, x, partial, p, splits);
}

extern "C" __global__ void __launch_bounds__(TILE_THREADS, 2)
conv_weight_grad_tiled_vector(const float* grad, const float* x, float* partial, ConvShape p,
                              int splits) {
  tiled<4>(grad, x, partial, p, splits);
}
