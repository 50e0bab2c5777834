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

// dy [N,Ho,Wo,K], weight [K,R,S,C/groups], dx [parts,N,H,W,C]. K / groups and C / groups are
// multiples of 4.
template <class Precision, int M, int N>
__global__ void __launch_bounds__(Tile<Precision, M, N>::THREADS, Tile<Precision, M, N>::BLOCKS)
    conv_input_grad(const float* __restrict__ dy, const float* __restrict__ weight,
                    float* __restrict__ dx, ConvShape shape, int split_k_tiles) {
  using T = Tile<Precision, M, N>;
  const int filters = shape.K / shape.groups, channels = shape.C / shape.groups;
  const int depth = shape.R * shape.S * filters, group = blockIdx.y;
  const Place<T> at(shape.N * shape.H * shape.W, channels, depth, split_k_tiles);
  WindowRows<typename T::A> a(dy, group * filters, windows_of_dx(shape), at.row, at.rows, at.k);
  FilterColumns<typename T::B> b(weight, group * filters, filters, shape.R, shape.S, channels,
                                 at.column, at.k);
  float* part = dx + blockIdx.z * (at.rows * shape.C) + group * channels;
  product(at, a, b, part, shape.C);
}
