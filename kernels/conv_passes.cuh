// The three passes of a convolution on tensor cores: a product per group, of matrices never built,
//
//   y[pixel, filter] = sum over k = (r, s, channel) of X[pixel, k] weight[filter, k]
//   dx[pixel, channel] = sum over k = (r, s, filter) of D[pixel, k] weight[filter, r, s, channel]
//   dweight[filter, column] = sum over k = (n, i, j) of dy[k, filter] X[k, column]
//
// X[(n, i, j), (r, s, channel)] is the pixel of x that tap (r, s) of window (i, j) meets; column is
// (r, s, channel) too. D[(n, h, w), (r, s, filter)] is the element of dy whose window met pixel
// (h, w) with its tap (r, s): for stride 1 dx is the forward pass with x and dy exchanged and the
// taps in reverse order. A linear layer is the case H = W = R = S = 1.
//
// Arrays lie channels last (NHWC, KRSC). Forward, channels are innermost in both factors, so four
// k's are 16 bytes to copy. For dx the filters are outermost in the weights, so their tile lies
// MN_MAJOR, and no transposed copy is made (fc6: 151 MB to read and 151 to write), but where T has
// WEIGHTS_ALONG_K. For dweight the sum is outermost in both.
//
// AlexNet's conv2, ungrouped, of 128 images: 729 x 128 pixels by 256 filters by 2400 k's, 115 GFLOP
// in each pass; x 35.8, weights 2.5, y 95.6 MB. Tiles of 128 x 128: forward 1458 of them, each
// reading 75 k-tiles of 32 KB, mostly from the L2 cache. dweight is small and its sum long: 38
// tiles for 132 multiprocessors, 2916 k-tiles. So that sum is split (split-K): each part writes a
// dweight of its own, and split_sum adds them in order.
//
// T is a Tile (tensor_tile.cuh; conv_mma.cu) or a WarpgroupTile (conv_wgmma.cu), each with a
// `product`. tensor_fetch.cuh: where the elements come from.
#pragma once
#include "tensor_fetch.cuh"

// x [N,H,W,C], weight [K,R,S,C/groups], bias [K] or null, y [N,Ho,Wo,K]; relu is 0 or 1. C / groups
// is a multiple of what a thread copies at once. A sum in several parts wants room for them, parts
// [groups,tiles,parts,M,N], and `arrived`, a zero for each tile of each group; else both are null.
template <class T>
__global__ void __launch_bounds__(T::THREADS, T::BLOCKS)
conv_forward(const typename T::E* __restrict__ x, const typename T::E* __restrict__ weight,
             typename T::E* __restrict__ y, ConvShape shape, int split_k_tiles,
             const float* __restrict__ bias, int relu, float* parts, unsigned* arrived) {
  const int filters = shape.K / shape.groups, channels = shape.C / shape.groups;
  const int depth = shape.R * shape.S * channels, group = blockIdx.y, first = group * filters;
  const Place<T> at(shape.N * shape.Ho * shape.Wo, filters, depth, split_k_tiles);
  WindowRows<typename T::A> a(x, group * channels, windows_of_y(shape), at.row, at.rows, at.k);
  MatrixRows<typename T::B> b(weight, first, depth, at.column, filters, at.k);
  product(at, a, b, y + first, shape.K, bias ? bias + first : nullptr, relu != 0, {parts, arrived});
}

// dy [N,Ho,Wo,K], weight [K,R,S,C/groups], or [groups,C/groups,R,S,K/groups] if T has
// WEIGHTS_ALONG_K; dx [N,H,W,C], or [parts,N,H,W,C] where T's last block does not add up the
// parts. K / groups and C / groups are multiples of 16 bytes.
template <class T>
__global__ void __launch_bounds__(T::THREADS, T::BLOCKS)
conv_input_grad(const typename T::E* __restrict__ dy, const typename T::E* __restrict__ weight,
                typename T::E* __restrict__ dx, ConvShape shape, int split_k_tiles, float* parts,
                unsigned* arrived) {
  const int filters = shape.K / shape.groups, channels = shape.C / shape.groups;
  const int depth = shape.R * shape.S * filters, group = blockIdx.y, first = group * channels;
  const Place<T> at(shape.N * shape.H * shape.W, channels, depth, split_k_tiles);
  const Parts own = T::LAST_BLOCK_ADDS ? Parts{parts, arrived} : Parts{};
  if (!T::LAST_BLOCK_ADDS) dx += blockIdx.z * (at.rows * shape.C);
  WindowRows<typename T::A> a(dy, group * filters, windows_of_dx(shape), at.row, at.rows, at.k);
  if constexpr (T::WEIGHTS_ALONG_K) {
    MatrixRows<typename T::B> b(weight, first, depth, at.column, channels, at.k);
    product(at, a, b, dx + first, shape.C, nullptr, false, own);
  } else {
    FilterColumns<typename T::B> b(weight, group * filters, filters, shape.R, shape.S, channels,
                                   at.column, at.k);
    product(at, a, b, dx + first, shape.C, nullptr, false, own);
  }
}

// dy [N,Ho,Wo,K], x [N,H,W,C], dweight [parts,K,R,S,C/groups]. K / groups and C / groups are
// multiples of what a thread copies at once.
template <class T>
__global__ void __launch_bounds__(T::THREADS, T::BLOCKS)
conv_weight_grad(const typename T::E* __restrict__ dy, const typename T::E* __restrict__ x,
                 float* __restrict__ dweight, ConvShape shape, int split_k_tiles) {
  const int filters = shape.K / shape.groups, channels = shape.C / shape.groups;
  const int pixels = shape.N * shape.Ho * shape.Wo, width = shape.R * shape.S * channels;
  const int group = blockIdx.y;
  const Place<T> at(filters, width, pixels, split_k_tiles);
  PixelColumns<typename T::A> a(dy, group * filters, shape.K, at.row, filters, at.k, pixels);
  WindowColumns<typename T::B> b(x, group * channels, shape.N, windows_of_y(shape), at.column,
                                 at.k);
  float* part = dweight + blockIdx.z * (shape.K * width) + group * filters * width;
  product(at, a, b, part, width, nullptr, false, {});
}
