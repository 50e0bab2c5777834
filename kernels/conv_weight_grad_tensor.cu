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

// dy [N,Ho,Wo,K], x [N,H,W,C], dweight [parts,K,R,S,C/groups]. K / groups and C / groups are
// multiples of 4.
template <class Precision, int M, int N>
__global__ void __launch_bounds__(Tile<Precision, M, N>::THREADS, Tile<Precision, M, N>::BLOCKS)
    conv_weight_grad(const float* __restrict__ dy, const float* __restrict__ x,
                     float* __restrict__ dweight, ConvShape shape, int split_k_tiles) {
  using T = Tile<Precision, M, N>;
  const int filters = shape.K / shape.groups, channels = shape.C / shape.groups;
  const int pixels = shape.N * shape.Ho * shape.Wo, width = shape.R * shape.S * channels;
  const int group = blockIdx.y, channel = group * channels;
  const Place<T> at(filters, width, pixels, split_k_tiles);
  PixelColumns<typename T::A> a(dy, group * filters, shape.K, at.row, filters, at.k, pixels);
  WindowColumns<typename T::B> b(x, channel, shape.N, windows_of_y(shape), at.column, at.k);
  float* part = dweight + blockIdx.z * (shape.K * width) + group * filters * width;
  product(at, a, b, part, width);
}
