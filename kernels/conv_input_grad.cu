// Convolution, the gradient of the images: each output's gradient goes back through its window.
//
//   dx[n,h,w,c] = sum over r, s, k of dy[n,i,j,k] * weight[k,r,s,c % (C/G)]
//
// with k over the filters of c's group, number c / (C/G), and i, j those outputs whose tap (r, s)
// lies on (h, w):
//   i * stride + r * dilation - top = h,   j * stride + s * dilation - left = w,
// if there is such an output. Arrays lie channels last: dy [N,Ho,Wo,K], weight [K,R,S,C/G],
// dx [N,H,W,C].
//
// Written as "each output adds to the pixels of its window", windows that overlap would add to one
// pixel at once. Written as above, each pixel collects its own sum: no two threads write to one
// place, and the order of the additions is always the same.
//
// Cost, for the paper's conv2 at a batch of 128 (27x27 pixels, 96 -> 256 channels, 5x5,
// two groups):
//   2 * 128*27*27 pixels * 96 channels * 5*5*128 terms = 57.3 GFLOP, as in the forward pass
//   dy 128*27*27*256*4 = 95.6 MB, weight 256*5*5*48*4 = 1.2 MB, dx 128*27*27*96*4 = 35.8 MB
//
// Version 1, `conv_input_grad_naive`: one thread per element of dx.
// Version 2, `conv_input_grad_tiled`: the same sums as a tiled matrix product.
// The next rung, on tensor cores, is in conv_input_grad_tensor.cu.

#include "convolution.cuh"
#include "product_tile.cuh"

// The output, along one axis, whose tap at `offset` lies on pixel `at`; -1 if there is none.
__device__ __forceinline__ int output_at(int at, int offset, int stride, int outputs) {
  const int distance = at - offset;
  const int output = distance / stride;
  return distance < 0 || distance % stride || output >= outputs ? -1 : output;
}

// --- version 1: one thread per element of dx -----------------------------------------------------
//
// Neighbouring threads have neighbouring channels c: they read the same gradient, and weights that
// lie side by side. What is left to gain is reuse: two reads for every product.

template <typename T>
__device__ void naive(const T* grad, const T* weight, T* dx, ConvShape p) {
  const int index = blockIdx.x * blockDim.x + threadIdx.x;
  if (index >= p.N * p.H * p.W * p.C) return;
  const int c = index % p.C, w = index / p.C % p.W, h = index / p.C / p.W % p.H;
  const int n = index / p.C / p.W / p.H;
  const int channels = p.C / p.groups, filters = p.K / p.groups;
  const int first = c / channels * filters;
  T sum = 0;
  for (int r = 0; r < p.R; ++r) {
    for (int s = 0; s < p.S; ++s) {
      const int i = output_at(h, r * p.dilation_h - p.top, p.stride_h, p.Ho);
      const int j = output_at(w, s * p.dilation_w - p.left, p.stride_w, p.Wo);
      if (i < 0 || j < 0) continue;
      const T* output = grad + ((n * p.Ho + i) * p.Wo + j) * p.K;
      for (int k = first; k < first + filters; ++k) {
        sum += output[k] * weight[((k * p.R + r) * p.S + s) * channels + c % channels];
      }
    }
  }
  dx[index] = sum;
}

extern "C" __global__ void __launch_bounds__(256)
conv_input_grad_naive_float(const float* grad, const float* weight, float* dx, ConvShape p) {
  naive(grad, weight, dx, p);
}

extern "C" __global__ void __launch_bounds__(256)
conv_input_grad_naive_double(const double* grad, const double* weight, double* dx, ConvShape p) {
  naive(grad, weight, dx, p);
}

// --- version 2: tiles of a matrix product --------------------------------------------------------
//
// dx, read as a matrix of pixels x channels, is the product of dy, gathered as pixels x terms, and
// the weights as terms x channels; the terms are all (r, s, k). A block computes 128 x 128 of it as
// in product_tile.cuh.
//
// Of dy a thread fetches four neighbouring terms of one pixel: four filters, side by side. Of the
// weights it fetches one term of four neighbouring channels: side by side too, so that they need
// not be transposed first. Both are one read of 16 bytes if C/G and K/G are divisible by 4
// (`_vector`).
//
// With a stride, most taps of a pixel belong to no output, and the products with those zeros are
// computed all the same: stride 2 wastes three of four. In AlexNet only conv1 has a stride, and
// the gradient of the photographs is not needed.

template <int WIDTH>
__device__ void tiled(const float* grad, const float* weight, float* dx, ConvShape p) {
  __shared__ Tiles tiles;
  const int channels = p.C / p.groups, filters = p.K / p.groups, group = blockIdx.y;
  const int pixels = p.N * p.H * p.W, terms = p.R * p.S * filters;
  const int channel_tiles = (channels + TILE - 1) / TILE;
  const int first_pixel = blockIdx.x / channel_tiles * TILE;
  const int first_channel = blockIdx.x % channel_tiles * TILE;

  // What this thread fetches of every eight terms: four of a pixel, and one of four channels.
  const int line = threadIdx.x / 2, part = threadIdx.x % 2 * 4;
  const int row = threadIdx.x / 32, column = threadIdx.x % 32 * 4;
  const int pixel = first_pixel + line, channel = first_channel + column;
  const int image = pixel / (p.H * p.W) * p.Ho * p.Wo;  // its first pixel in dy
  // Unlike in version 1, counted from where the padding begins: one subtraction less for each tap.
  const int h = pixel / p.W % p.H + p.top, w = pixel % p.W + p.left;
  float of_pixel[4], of_channels[4];
  auto fetch_terms = [&](int first) {
#pragma unroll
    for (int e = 0; e < 4; e += WIDTH) {
      const int d = first + part + e, k = d % filters, tap = d / filters;
      const int i = output_at(h, tap / p.S * p.dilation_h, p.stride_h, p.Ho);
      const int j = output_at(w, tap % p.S * p.dilation_w, p.stride_w, p.Wo);
      const bool inside = pixel < pixels && d < terms && i >= 0 && j >= 0;
      fetch<WIDTH>(of_pixel + e, grad, (image + i * p.Wo + j) * p.K + group * filters + k, inside);
    }
    const int d = first + row, k = group * filters + d % filters, tap = d / filters;
    const int weights = (k * p.R * p.S + tap) * channels + channel;
#pragma unroll
    for (int e = 0; e < 4; e += WIDTH) {
      const bool inside = d < terms && channel + e < channels;
      fetch<WIDTH>(of_channels + e, weight, weights + e, inside);
    }
  };

  float sum[OWN][OWN] = {};
  fetch_terms(0);
  for (int d = 0; d < terms; d += DEPTH) {
    keep_terms(tiles.a, part, line, of_pixel);
    keep_lines(tiles.b, row, column, of_channels);
    __syncthreads();
    if (d + DEPTH < terms) fetch_terms(d + DEPTH);
    add_products(tiles, sum);
    __syncthreads();
  }
  store_tile<WIDTH>(dx + first_pixel * p.C + group * channels + first_channel, p.C,
                     pixels - first_pixel, channels - first_channel, sum);
}

extern "C" __global__ void __launch_bounds__(TILE_THREADS, 2)
conv_input_grad_tiled(const float* grad, const float* weight, float* dx, ConvShape p) {
  tiled<1>(grad, weight, dx, p);
}

extern "C" __global__ void __launch_bounds__(TILE_THREADS, 2)
conv_input_grad_tiled_vector(const float* grad, const float* weight, float* dx, ConvShape p) {
  tiled<4>(grad, weight, dx, p);
}
