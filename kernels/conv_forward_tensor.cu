// Convolution on tensor cores, forward: a product of matrices per group, none of which is built,
//
//   y[pixel, filter] = sum over k = (r, s, channel) of A[pixel, k] weight[filter, k],
//
// A[(n, i, j), (r, s, channel)] being the pixel of x that tap (r, s) of window (i, j) meets. The
// channels are innermost in both factors (NHWC, KRSC), so four k's are 16 bytes to copy. A linear
// layer is the case H = W = R = S = 1.
//
// AlexNet's conv2, ungrouped, of 128 images: 729 x 128 pixels by 256 filters by 2400 k's, 115
// GFLOP; x 35.8, weights 2.5, y 95.6 MB. Tiles of 128 x 128: 1458 of them, each reading 75 k-tiles
// of 32 KB, mostly from the L2 cache.
//
// The versions for study are in conv_forward.cu; this one is the same product, tiled for tensor
// cores. How: tensor_tile.cuh (main loop), tensor_fetch.cuh (where the elements come from),
// tensor_precision.cuh (TF32 three times, TF32, bf16).
#include "tensor_fetch.cuh"

// Block: x counts the tiles, neighbours along the filters first, so that they read the same pixels;
// y the groups; z the parts of the reduction, `split_k_tiles` k-tiles each (split-K, for layers
// with too few tiles to fill the GPU: each part writes a y of its own, which split_sum adds up, and
// only then adds the bias: where there are several parts, `bias` is null and `relu` 0 here).
template <class Precision, class T>
__device__ __forceinline__ void forward(const float* x, const float* weight, float* y,
                                        const ConvShape& shape, int split_k_tiles,
                                        const float* bias, int relu) {
  const int filters = shape.K / shape.groups, channels = shape.C / shape.groups;
  const int pixels = shape.N * shape.Ho * shape.Wo, depth = shape.R * shape.S * channels;
  const int tiles = (filters + T::SIDE - 1) / T::SIDE, group = blockIdx.y;
  const int pixel = blockIdx.x / tiles * T::SIDE, filter = blockIdx.x % tiles * T::SIDE;
  const int first = blockIdx.z * split_k_tiles;
  const int k_tiles = min(split_k_tiles, (depth + K_TILE - 1) / K_TILE - first);

  WindowRows<T> rows(x, group * channels, windows_of_y(shape), pixel, pixels, first * K_TILE);
  MatrixRows<T> columns(weight, group * filters, depth, filter, filters, first * K_TILE);
  Sums<T> sums = {};
  sum_products<Precision, T>(sums, rows, columns, k_tiles);
  const int row = pixel + warp_row<T>(), column = filter + warp_column<T>();
  add_bias_and_rectify(sums, bias ? bias + group * filters : nullptr, column, filters, relu != 0);
  float* part = y + blockIdx.z * (pixels * shape.K) + group * filters;
  store_tile<16>(sums, part, shape.K, row, pixels, column, filters);
}

// x [N,H,W,C], weight [K,R,S,C/groups], bias [K] or null, y [parts,N,Ho,Wo,K]; relu is 0 or 1.
// C / groups is a multiple of 4. The numbers are the tile's side.
extern "C" __global__ void __launch_bounds__(WideTile::THREADS, 1)
    conv_forward_tf32x3_128(const float* __restrict__ x, const float* __restrict__ weight,
                            float* __restrict__ y, ConvShape shape, int split_k_tiles,
                            const float* __restrict__ bias, int relu) {
  forward<Tf32x3, WideTile>(x, weight, y, shape, split_k_tiles, bias, relu);
}

extern "C" __global__ void __launch_bounds__(LargeTile::THREADS, 2)
    conv_forward_tf32_128(const float* __restrict__ x, const float* __restrict__ weight,
                          float* __restrict__ y, ConvShape shape, int split_k_tiles,
                          const float* __restrict__ bias, int relu) {
  forward<Tf32, LargeTile>(x, weight, y, shape, split_k_tiles, bias, relu);
}

extern "C" __global__ void __launch_bounds__(LargeTile::THREADS, 2)
    conv_forward_bf16_128(const float* __restrict__ x, const float* __restrict__ weight,
                          float* __restrict__ y, ConvShape shape, int split_k_tiles,
                          const float* __restrict__ bias, int relu) {
  forward<Bf16, LargeTile>(x, weight, y, shape, split_k_tiles, bias, relu);
}

extern "C" __global__ void __launch_bounds__(SmallTile::THREADS, 3)
    conv_forward_tf32x3_64(const float* __restrict__ x, const float* __restrict__ weight,
                           float* __restrict__ y, ConvShape shape, int split_k_tiles,
                           const float* __restrict__ bias, int relu) {
  forward<Tf32x3, SmallTile>(x, weight, y, shape, split_k_tiles, bias, relu);
}

extern "C" __global__ void __launch_bounds__(SmallTile::THREADS, 3)
    conv_forward_tf32_64(const float* __restrict__ x, const float* __restrict__ weight,
                         float* __restrict__ y, ConvShape shape, int split_k_tiles,
                         const float* __restrict__ bias, int relu) {
  forward<Tf32, SmallTile>(x, weight, y, shape, split_k_tiles, bias, relu);
}

extern "C" __global__ void __launch_bounds__(SmallTile::THREADS, 3)
    conv_forward_bf16_64(const float* __restrict__ x, const float* __restrict__ weight,
                         float* __restrict__ y, ConvShape shape, int split_k_tiles,
                         const float* __restrict__ bias, int relu) {
  forward<Bf16, SmallTile>(x, weight, y, shape, split_k_tiles, bias, relu);
}
