// Convolution on Hopper's own tensor-core instructions, of numbers that are bfloat16 in memory, or
// floats that the tensor cores cut to TF32 (there is no weight gradient of those):
// conv_forward<WarpgroupTile<bfloat16, 192, 256>> and its like.
//
// The kernels are those of conv_mma.cu. What differs is the multiplication: there each warp loads
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
#include "tensor_tile.cuh"
#include "wgmma.cuh"

// The tile of C that a block computes: a warpgroup for each 64 of the M rows, with all N columns. A
// thread copies GROUP_A or GROUP_B elements of a factor at once: 16 bytes, or 4 bfloat16 of images
// with room for so many channels. The tensor cores want floats along k; bfloat16 they also take
// along the columns, in blocks of 64.
template <class E_, int M, int N, int GROUP_A = 16 / sizeof(E_), int GROUP_B = GROUP_A>
struct WarpgroupTile {
  using E = E_;
  static constexpr int THREADS = 2 * M, BLOCKS = 1, STAGES = 4;
  static constexpr int WARP_M = 16, WARP_N = N, ACROSS = 1;
  static constexpr bool WEIGHTS_ALONG_K = sizeof(E) == 4 || N % 64 != 0, LAST_BLOCK_ADDS = true;
  using A = Side<E, M, THREADS, true, GROUP_A>;
  using B = Side<E, N, THREADS, true, GROUP_B>;
};

// As `product` of tensor_tile.cuh. The products of a k-tile are issued before those of the k-tile
// before it have ended, so that the tensor cores always have something to do. Of the ring one stage
// is read, the one before it may still be, and the copies of two more are on their way.
template <class E, int M, int N, int GROUP_A, int GROUP_B, class Rows, class Columns, class C>
__device__ __forceinline__ void product(const Place<WarpgroupTile<E, M, N, GROUP_A, GROUP_B>>& at,
                                        Rows& rows, Columns& columns, C* c, int pitch,
                                        const float* bias, bool relu, const Parts& parts) {
  using T = WarpgroupTile<E, M, N, GROUP_A, GROUP_B>;
  constexpr int AHEAD = T::STAGES - 2, STEP = 32 / sizeof(E);
  constexpr Layout A = Rows::LAYOUT, B = Columns::LAYOUT;
#pragma unroll
  for (int stage = 0; stage < AHEAD; ++stage)
    fetch_k_tile<T>(rows, columns, stage, stage < at.k_tiles);
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
    fetch_k_tile<T>(rows, columns, (reading + AHEAD) % T::STAGES, left > AHEAD);
    work.wait<1>();
    reading = (reading + 1) % T::STAGES;
  }
  work.wait<0>();
  hold(sums[0]);
  finish(at, sums, c, pitch, bias, relu, parts);
}

#include "conv_passes.cuh"  // whose kernels call it
