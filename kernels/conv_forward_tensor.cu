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

// x [N,H,W,C], weight [K,R,S,C/groups], bias [K] or null, y [N,Ho,Wo,K]; relu is 0 or 1. C / groups
// is a multiple of 4. A sum in several parts wants room for them, parts [groups,tiles,parts,M,N],
// and `arrived`, a zero for each tile of each group; else both are null.
template <class Precision, int M, int N>
__global__ void __launch_bounds__(Tile<Precision, M, N>::THREADS, Tile<Precision, M, N>::BLOCKS)
    conv_forward(const float* __restrict__ x, const float* __restrict__ weight,
                 float* __restrict__ y, ConvShape shape, int split_k_tiles,
                 const float* __restrict__ bias, int relu, float* parts, unsigned* arrived) {
  using T = Tile<Precision, M, N>;
  const int filters = shape.K / shape.groups, channels = shape.C / shape.groups;
  const int depth = shape.R * shape.S * channels, group = blockIdx.y;
  const Place<T> at(shape.N * shape.Ho * shape.Wo, filters, depth, split_k_tiles);
  WindowRows<typename T::A> a(x, group * channels, windows_of_y(shape), at.row, at.rows, at.k);
  MatrixRows<typename T::B> b(weight, group * filters, depth, at.column, filters, at.k);
  const int first = group * filters;
  product(at, a, b, y + first, shape.K, bias ? bias + first : nullptr, relu != 0,
          {parts, arrived});
}
