// Gradient of a convolution's input on tensor cores: again one product per group,
//
//   dx[pixel, channel] = sum over k = (r, s, filter) of A[pixel, k] weight[filter, r, s, channel],
//
// A[(n, h, w), (r, s, filter)] being the element of dy whose window met pixel (h, w) with its tap
// (r, s). For stride 1 that is the forward pass with x and dy exchanged and the taps in reverse
// order. The weights are read as they lie: filters outermost, so their tile lies MN_MAJOR, and no
// transposed copy of them is made (fc6: 151 MB to read and 151 to write).
//
// AlexNet's conv2, ungrouped, of 128 images: 729 x 128 pixels by 96 channels by 6400 k's, 115
// GFLOP. conv1, the one layer with a stride, needs no gradient of its input.
#include "tensor_fetch.cuh"

// Blocks as in the forward pass, with channels in place of filters.
template <class Precision, class T>
__device__ __forceinline__ void input_grad(const float* dy, const float* weight, float* dx,
                                           const ConvShape& shape, int split_k_tiles) {
  const int filters = shape.K / shape.groups, channels = shape.C / shape.groups;
  const int pixels = shape.N * shape.H * shape.W, taps = shape.R * shape.S;
  const int tiles = (channels + T::SIDE - 1) / T::SIDE, group = blockIdx.y;
  const int pixel = blockIdx.x / tiles * T::SIDE, channel = blockIdx.x % tiles * T::SIDE;
  const int first = blockIdx.z * split_k_tiles;
  const int k_tiles = min(split_k_tiles, (taps * filters + K_TILE - 1) / K_TILE - first);

  WindowRows<T> rows(dy, group * filters, windows_of_dx(shape), pixel, pixels, first * K_TILE);
  FilterColumns<T> columns(weight, group * filters, filters, shape.R, shape.S, channels, channel,
                              first * K_TILE);
  Sums<T> sums = {};
  sum_products<Precision, T>(sums, rows, columns, k_tiles);
  float* part = dx + blockIdx.z * (pixels * shape.C) + group * channels;
  store_tile<16>(sums, part, shape.C, pixel + warp_row<T>(), pixels,
                 channel + warp_column<T>(), channels);
}

// dy [N,Ho,Wo,K], weight [K,R,S,C/groups], dx [parts,N,H,W,C]. K / groups and C / groups are
// multiples of 4.
extern "C" __global__ void __launch_bounds__(WideTile::THREADS, 1)
    conv_input_grad_tf32x3_128(const float* __restrict__ dy, const float* __restrict__ weight,
                               float* __restrict__ dx, ConvShape shape, int split_k_tiles) {
  input_grad<Tf32x3, WideTile>(dy, weight, dx, shape, split_k_tiles);
}

extern "C" __global__ void __launch_bounds__(LargeTile::THREADS, 2)
    conv_input_grad_tf32_128(const float* __restrict__ dy, const float* __restrict__ weight,
                             float* __restrict__ dx, ConvShape shape, int split_k_tiles) {
  input_grad<Tf32, LargeTile>(dy, weight, dx, shape, split_k_tiles);
}

extern "C" __global__ void __launch_bounds__(LargeTile::THREADS, 2)
    conv_input_grad_bf16_128(const float* __restrict__ dy, const float* __restrict__ weight,
                             float* __restrict__ dx, ConvShape shape, int split_k_tiles) {
  input_grad<Bf16, LargeTile>(dy, weight, dx, shape, split_k_tiles);
}

extern "C" __global__ void __launch_bounds__(SmallTile::THREADS, 3)
    conv_input_grad_tf32x3_64(const float* __restrict__ dy, const float* __restrict__ weight,
                              float* __restrict__ dx, ConvShape shape, int split_k_tiles) {
  input_grad<Tf32x3, SmallTile>(dy, weight, dx, shape, split_k_tiles);
}

extern "C" __global__ void __launch_bounds__(SmallTile::THREADS, 3)
    conv_input_grad_tf32_64(const float* __restrict__ dy, const float* __restrict__ weight,
                            float* __restrict__ dx, ConvShape shape, int split_k_tiles) {
  input_grad<Tf32, SmallTile>(dy, weight, dx, shape, split_k_tiles);
}

extern "C" __global__ void __launch_bounds__(SmallTile::THREADS, 3)
    conv_input_grad_bf16_64(const float* __restrict__ dy, const float* __restrict__ weight,
                            float* __restrict__ dx, ConvShape shape, int split_k_tiles) {
  input_grad<Bf16, SmallTile>(dy, weight, dx, shape, split_k_tiles);
}
