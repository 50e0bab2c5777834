// Convolution on Hopper's tensor cores, forward, TF32: conv_forward_tensor.cu with other
// multiplications. There each warp loads fragments into registers and multiplies 16 x 8 at a time,
// an instruction of Ampere that does not reach Hopper's full rate. Here four warps give one order
// for 64 x 128, and its factors come from shared memory directly (wgmma.cuh): less to do for the
// threads, and no registers for factors. The rest (the gather, the ring, the result) is the same.
//
// Its price: TF32 by cutting bits off instead of rounding, an error about 2.6 times as large
// (7e-4 of the result, in norm), for no thread has the factors in registers to round; and it runs
// on Hopper only (sm_90a). It is not chosen by itself: its speed is not yet measured on hardware.
#include "tensor_fetch.cuh"
#include "wgmma.cuh"

using HopperSide = Side<128, 128>;
constexpr int HOPPER_STAGES = 3, HOPPER_TILE = HopperSide::SIDE * K_TILE;
constexpr int HOPPER_TABLE = 2048 / 4;  // floats: the rows of WindowRows, 16 bytes each

// Stage of the ring: a tile of A and one of B, each at a multiple of 1024 bytes.
__device__ __forceinline__ float* hopper_stage(int stage) {
  return shared_memory() + HOPPER_TABLE + stage * 2 * HOPPER_TILE;
}

// x [N,H,W,C], weight [K,R,S,C/groups], y [N,Ho,Wo,K], bias [K] or null; relu is 0 or 1. C / groups
// is a multiple of 4. Block: x counts the tiles, along the filters first; y the groups.
extern "C" __global__ void __launch_bounds__(HopperSide::THREADS, 2)
    conv_forward_hopper(const float* __restrict__ x, const float* __restrict__ weight,
                        float* __restrict__ y, ConvShape shape, const float* __restrict__ bias,
                        int relu) {
  constexpr int SIDE = HopperSide::SIDE, AHEAD = HOPPER_STAGES - 1;
  const int filters = shape.K / shape.groups, channels = shape.C / shape.groups;
  const int pixels = shape.N * shape.Ho * shape.Wo, depth = shape.R * shape.S * channels;
  const int tiles = (filters + SIDE - 1) / SIDE, group = blockIdx.y;
  const int pixel = blockIdx.x / tiles * SIDE, filter = blockIdx.x % tiles * SIDE;
  const int k_tiles = (depth + K_TILE - 1) / K_TILE;

  const Windows windows = windows_of_y(shape);
  WindowRows<HopperSide, SWIZZLED> rows(x, group * channels, windows, pixel, pixels, 0);
  MatrixRows<HopperSide, SWIZZLED> columns(weight, group * filters, depth, filter, filters, 0);
#pragma unroll
  for (int stage = 0; stage < AHEAD; ++stage) {
    if (stage < k_tiles) {
      rows.fetch(hopper_stage(stage));
      columns.fetch(hopper_stage(stage) + HOPPER_TILE);
    }
    cp_async_commit();
  }

  Row64x128 sums[2] = {};  // rows 0..63 and 64..127
  Multiplication work;
  int reading = 0;
  for (int left = k_tiles; left > 0; --left) {
    cp_async_wait<AHEAD - 1>();
    make_visible();
    work.wait(sums[0], sums[1]);
    // All threads' copies have arrived, and the tensor cores are done with the stage before.
    __syncthreads();
    const float* a = hopper_stage(reading);
    work.begin();
#pragma unroll
    for (int k = 0; k < K_TILE; k += 8)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        work.multiply_add(sums[half], a + half * 64 * K_TILE + k, a + HOPPER_TILE + k);
    work.commit();
    // While they multiply, the next copies begin.
    if (left > AHEAD) {
      const int writing = reading == 0 ? AHEAD : reading - 1;  // (reading + AHEAD) % STAGES
      rows.fetch(hopper_stage(writing));
      columns.fetch(hopper_stage(writing) + HOPPER_TILE);
    }
    cp_async_commit();
    reading = reading == AHEAD ? 0 : reading + 1;
  }
  work.wait(sums[0], sums[1]);

  const int row = pixel + threadIdx.x / 32 * 16;
  add_bias_and_rectify(sums, bias ? bias + group * filters : nullptr, filter, filters, relu != 0);
  store_tile<64>(sums, y + group * filters, shape.K, row, pixels, filter, filters);
}
