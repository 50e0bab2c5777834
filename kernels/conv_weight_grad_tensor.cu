// Gradient of a convolution's weights on tensor cores: a product per group, summed over pixels,
//
//   dweight[filter, k] = sum over pixels (n, i, j) of y of dy[pixel, filter] A[pixel, k],
//
// with k = (r, s, channel), and A as in the forward pass: the pixel of x that tap (r, s) of window
// (i, j) meets. Both factors lie with the reduction outermost (MN_MAJOR).
//
// The result is small and the sum long: AlexNet's conv2 of 128 images has 256 x 2400 weights, 38
// tiles for 132 multiprocessors, and sums over 93312 pixels, 2916 k-tiles. So the sum is split
// (split-K): each part writes a dweight of its own, and split_sum adds them in order.
#include "tensor_fetch.cuh"

// Block: x counts the tiles, neighbours along (r, s, channel) first; y the groups; z the parts of
// the reduction, `split_k_tiles` k-tiles each.
template <class Precision, class T>
__device__ __forceinline__ void weight_grad(const float* dy, const float* x, float* dweight,
                                            const ConvShape& shape, int split_k_tiles) {
  const int filters = shape.K / shape.groups, channels = shape.C / shape.groups;
  const int pixels = shape.N * shape.Ho * shape.Wo, width = shape.R * shape.S * channels;
  const int tiles = (width + T::SIDE - 1) / T::SIDE, group = blockIdx.y;
  const int filter = blockIdx.x / tiles * T::SIDE, column = blockIdx.x % tiles * T::SIDE;
  const int first = blockIdx.z * split_k_tiles;
  const int k_tiles = min(split_k_tiles, (pixels + K_TILE - 1) / K_TILE - first);

  PixelColumns<T> rows(dy, group * filters, shape.K, filter, filters, first * K_TILE, pixels);
  WindowColumns<T> columns(x, group * channels, shape.N, windows_of_y(shape), column,
                              first * K_TILE);
  Sums<T> sums = {};
  sum_products<Precision, T>(sums, rows, columns, k_tiles);
  float* part = dweight + blockIdx.z * (shape.K * width) + group * filters * width;
  store_tile<16>(sums, part, width, filter + warp_row<T>(), filters,
                 column + warp_column<T>(), width);
}

// dy [N,Ho,Wo,K], x [N,H,W,C], dweight [parts,K,R,S,C/groups]. K / groups and C / groups are
// multiples of 4.
extern "C" __global__ void __launch_bounds__(WideTile::THREADS, 1)
    conv_weight_grad_tf32x3_128(const float* __restrict__ dy, const float* __restrict__ x,
                                float* __restrict__ dweight, ConvShape shape, int split_k_tiles) {
  weight_grad<Tf32x3, WideTile>(dy, x, dweight, shape, split_k_tiles);
}

extern "C" __global__ void __launch_bounds__(LargeTile::THREADS, 2)
    conv_weight_grad_tf32_128(const float* __restrict__ dy, const float* __restrict__ x,
                              float* __restrict__ dweight, ConvShape shape, int split_k_tiles) {
  weight_grad<Tf32, LargeTile>(dy, x, dweight, shape, split_k_tiles);
}

extern "C" __global__ void __launch_bounds__(LargeTile::THREADS, 2)
    conv_weight_grad_bf16_128(const float* __restrict__ dy, const float* __restrict__ x,
                              float* __restrict__ dweight, ConvShape shape, int split_k_tiles) {
  weight_grad<Bf16, LargeTile>(dy, x, dweight, shape, split_k_tiles);
}

extern "C" __global__ void __launch_bounds__(SmallTile::THREADS, 3)
    conv_weight_grad_tf32x3_64(const float* __restrict__ dy, const float* __restrict__ x,
                               float* __restrict__ dweight, ConvShape shape, int split_k_tiles) {
  weight_grad<Tf32x3, SmallTile>(dy, x, dweight, shape, split_k_tiles);
}

extern "C" __global__ void __launch_bounds__(SmallTile::THREADS, 3)
    conv_weight_grad_tf32_64(const float* __restrict__ dy, const float* __restrict__ x,
                             float* __restrict__ dweight, ConvShape shape, int split_k_tiles) {
  weight_grad<Tf32, SmallTile>(dy, x, dweight, shape, split_k_tiles);
}

extern "C" __global__ void __launch_bounds__(SmallTile::THREADS, 3)
    conv_weight_grad_bf16_64(const float* __restrict__ dy, const float* __restrict__ x,
                             float* __restrict__ dweight, ConvShape shape, int split_k_tiles) {
  weight_grad<Bf16, SmallTile>(dy, x, dweight, shape, split_k_tiles);
}
