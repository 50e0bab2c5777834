// The three passes of a convolution on Hopper's own tensor-core instructions, of numbers that are
// bfloat16 in memory, or floats that the tensor cores cut to TF32 (there is no weight gradient of
// those). The products are those of conv_forward_tensor.cu, conv_input_grad_tensor.cu and
// conv_weight_grad_tensor.cu, and so are the gather, the parts of a split sum and the result
// (tensor_fetch.cuh, tensor_tile.cuh). What differs is the multiplication: there each warp loads
// fragments into registers and multiplies 16 x 8 at a time, an instruction of Ampere that reaches
// less than two thirds of Hopper's rate. Here four warps give one order for 64 x N, and its factors
// come from shared memory (wgmma.cuh): no registers for factors, so that the sums of a tile of
// 192 x 256 have room.
//
// That is what pays: a block reads M + N numbers for M x N products, mostly from the L2 cache, of
// which a multiprocessor gets 26 bytes per cycle (estimated, as in tensor_tile.cuh). Cycles for 64
// k's, by L2 and by the tensor cores, at the rates of tiles.py:
//
//   128 x 128, mma.sync, TF32  2520  1638      128 x 128, mma.sync, bf16 from floats  2520   819
//   192 x 256, wgmma, TF32     4411  3836      192 x 256, wgmma, bf16 in memory       2206  1918
//
// So the products per cycle are 1.7 times as many in TF32, and 3.4 times in bf16.
//
// TF32 here is cut off, not rounded, for no thread has the factors in registers: an error about
// 2.6 times as large, 8e-4 of the result, in norm, nearly all of it a shrinking by 7e-4. Not yet
// measured on hardware.
#include "tensor_fetch.cuh"
#include "wgmma.cuh"

// The tile of C that a block computes: a warpgroup for each 64 of the M rows, with all N columns. A
// thread copies GROUP_A or GROUP_B elements of a factor at once.
template <class E, int M, int N, int GROUP_A = 16 / sizeof(E), int GROUP_B = GROUP_A>
struct WarpgroupTile {
  static constexpr int THREADS = 2 * M, STAGES = 4;
  static constexpr int WARP_M = 16, WARP_N = N, ACROSS = 1;
  using A = Side<E, M, THREADS, LINE_BYTES / sizeof(E), GROUP_A>;
  using B = Side<E, N, THREADS, LINE_BYTES / sizeof(E), GROUP_B>;
};

// As `product` of tensor_tile.cuh. The products of a k-tile are issued before those of the k-tile
// before it have ended, so that the tensor cores always have something to do. Of the ring one stage
// is read, the one before it may still be, and the copies of two more are on their way.
template <class T, class Rows, class Columns, class C>
__device__ __forceinline__ void product_of_warpgroups(const Place<T>& at, Rows& rows,
                                                      Columns& columns, C* c, int pitch,
                                                      const float* bias = nullptr,
                                                      bool relu = false, const Parts& parts = {}) {
  using E = typename T::A::E;
  constexpr int AHEAD = T::STAGES - 2, STEP = 32 / sizeof(E);
  constexpr Layout A = Rows::LAYOUT, B = Columns::LAYOUT;
#pragma unroll
  for (int stage = 0; stage < AHEAD; ++stage) {
    if (stage < at.k_tiles) {
      rows.fetch(stage_of_ring<T>(stage));
      columns.fetch(stage_of_ring<T>(stage) + T::A::SIZE);
    }
    cp_async_commit();
  }
  Sums<T> sums = {};
  Multiplication work;
  hold(sums[0]);  // zeros, before begin
  const int first = place_in_tile<T::A::SIDE, A, E>(threadIdx.x / 128 * 64, 0);  // its warpgroup's
  int reading = 0;
  for (int left = at.k_tiles; left > 0; --left) {
    cp_async_wait<AHEAD - 1>();
    make_visible();
    // All threads' copies have arrived, and the tensor cores are done with the k-tile two before
    // this one (by the last wait), whose stage is the next to be written.
    __syncthreads();
    const E* stage = stage_of_ring<T>(reading);
    work.begin();
#pragma unroll
    for (int k = 0; k < T::A::DEPTH; k += STEP)
      work.multiply_add<E, A, B>(
          sums[0], descriptor<A>(stage + first + place_in_tile<T::A::SIDE, A, E>(0, k)),
          descriptor<B>(stage + T::A::SIZE + place_in_tile<T::B::SIDE, B, E>(0, k)));
    work.commit();
    // While they multiply, the next copies begin.
    if (left > AHEAD) {
      E* writing = stage_of_ring<T>((reading + AHEAD) % T::STAGES);
      rows.fetch(writing);
      columns.fetch(writing + T::A::SIZE);
    }
    cp_async_commit();
    work.wait<1>();
    reading = (reading + 1) % T::STAGES;
  }
  work.wait<0>();
  hold(sums[0]);
  finish(at, sums, c, pitch, bias, relu, parts);
}

// y [N,Ho,Wo,K] of x [N,H,W,C] and weight [K,R,S,C/groups], as `conv_forward`. C / groups is a
// multiple of GROUP: 8 of bfloat16 (4 of images with room for so many), 4 of float.
template <class E, int M, int N, int GROUP = 16 / sizeof(E)>
__global__ void __launch_bounds__(2 * M, 1)
    conv_forward_wgmma(const E* __restrict__ x, const E* __restrict__ weight, E* __restrict__ y,
                       ConvShape shape, int split_k_tiles, const float* __restrict__ bias, int relu,
                       float* parts, unsigned* arrived) {
  using T = WarpgroupTile<E, M, N, GROUP>;
  const int filters = shape.K / shape.groups, channels = shape.C / shape.groups;
  const int depth = shape.R * shape.S * channels, group = blockIdx.y, first = group * filters;
  const Place<T> at(shape.N * shape.Ho * shape.Wo, filters, depth, split_k_tiles);
  WindowRows<typename T::A, SWIZZLED> a(x, group * channels, windows_of_y(shape), at.row, at.rows,
                                        at.k);
  MatrixRows<typename T::B, SWIZZLED> b(weight, first, depth, at.column, filters, at.k);
  product_of_warpgroups(at, a, b, y + first, shape.K, bias ? bias + first : nullptr, relu != 0,
                        {parts, arrived});
}

// dx [N,H,W,C] of dy [N,Ho,Wo,K] and weight [K,R,S,C/groups], as `conv_input_grad`; but parts of a
// sum are added up as in the forward pass. Of floats, which the tensor cores want along k, and for
// columns that are no blocks of 64, the weights are [groups,C/groups,R,S,K/groups]. C / groups and
// K / groups are multiples of 16 bytes.
template <class E, int M, int N>
__global__ void __launch_bounds__(2 * M, 1)
    conv_input_grad_wgmma(const E* __restrict__ dy, const E* __restrict__ weight,
                          E* __restrict__ dx, ConvShape shape, int split_k_tiles, float* parts,
                          unsigned* arrived) {
  using T = WarpgroupTile<E, M, N>;
  const int filters = shape.K / shape.groups, channels = shape.C / shape.groups;
  const int depth = shape.R * shape.S * filters, group = blockIdx.y, first = group * channels;
  const Place<T> at(shape.N * shape.H * shape.W, channels, depth, split_k_tiles);
  WindowRows<typename T::A, SWIZZLED> a(dy, group * filters, windows_of_dx(shape), at.row, at.rows,
                                        at.k);
  if constexpr (sizeof(E) == 4 || N % 64 != 0) {
    MatrixRows<typename T::B, SWIZZLED> b(weight, first, depth, at.column, channels, at.k);
    product_of_warpgroups(at, a, b, dx + first, shape.C, nullptr, false, {parts, arrived});
  } else {
    FilterColumns<typename T::B, SWIZZLED_MN> b(weight, group * filters, filters, shape.R, shape.S,
                                                channels, at.column, at.k);
    product_of_warpgroups(at, a, b, dx + first, shape.C, nullptr, false, {parts, arrived});
  }
}

// dweight [parts,K,R,S,C/groups] of dy [N,Ho,Wo,K] and x [N,H,W,C], as `conv_weight_grad`.
// K / groups is a multiple of 8, C / groups of GROUP.
template <class E, int M, int N, int GROUP = 16 / sizeof(E)>
__global__ void __launch_bounds__(2 * M, 1)
    conv_weight_grad_wgmma(const E* __restrict__ dy, const E* __restrict__ x,
                           float* __restrict__ dweight, ConvShape shape, int split_k_tiles) {
  static_assert(sizeof(E) == 2, "tensor cores want TF32 along the sum");
  using T = WarpgroupTile<E, M, N, 16 / sizeof(E), GROUP>;
  const int filters = shape.K / shape.groups, channels = shape.C / shape.groups;
  const int pixels = shape.N * shape.Ho * shape.Wo, width = shape.R * shape.S * channels;
  const int group = blockIdx.y;
  const Place<T> at(filters, width, pixels, split_k_tiles);
  PixelColumns<typename T::A, SWIZZLED_MN> a(dy, group * filters, shape.K, at.row, filters, at.k,
                                             pixels);
  WindowColumns<typename T::B, SWIZZLED_MN> b(x, group * channels, shape.N, windows_of_y(shape),
                                              at.column, at.k);
  float* part = dweight + blockIdx.z * (shape.K * width) + group * filters * width;
  product_of_warpgroups(at, a, b, part, width);
}
