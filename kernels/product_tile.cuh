// A 128 x 128 tile of a matrix product, computed by one block of 256 threads.
//
//   sum[row][column] += a[depth][row] * b[depth][column]    for each depth
//
// A convolution is such a product of huge matrices that are never written down: where their
// elements come from is in conv_forward.cu. Here are the tiles in shared memory, the products, and
// the way back to memory.
//
// Two levels of reuse make it fast. An element that came from memory serves 128 products, because
// it lies in shared memory, where all threads see it. An element that came from shared memory
// serves 8 products, because each thread holds 8 x 8 sums in registers: 16 reads for 64 products.
//
// Thread t owns the rows 4 * (t / 16) + 0..3 of the upper half and the same four of the lower half,
// and in the same manner the columns 4 * (t % 16) + 0..3 of both halves. Eight rows in one run
// would be simpler, but then neighbouring threads would read 32 bytes apart, and every second read
// would wait for a bank of shared memory that its neighbour is using.
#pragma once

#include "four.cuh"

constexpr int TILE = 128;          // rows, and columns, of a tile
constexpr int DEPTH = 8;           // terms of each sum that lie in shared memory at a time
constexpr int TILE_THREADS = 256;  // 16 x 16
constexpr int OWN = 8;             // rows, and columns, that a thread owns

// Rows are 132 floats apart, not 128: a warp in `keep_terms` writes to two rows at once, 16 floats
// each, and with 128 both would begin at the same bank.
struct alignas(16) Tiles {
  float a[DEPTH][TILE + 4];
  float b[DEPTH][TILE + 4];
};

// Number `i` of the eight rows (or columns) that belong to one of 16 rows (or columns) of threads.
__device__ __forceinline__ int own(int thread, int i) {
  return i / 4 * (TILE / 2) + thread * 4 + i % 4;
}

// Four neighbouring terms of the sum of one row (or column), fetched along the depth.
__device__ __forceinline__ void keep_terms(float (*tile)[TILE + 4], int depth, int line,
                                           const Quad& terms) {
  for (int e = 0; e < 4; ++e) tile[depth + e][line] = terms.at[e];
}

__device__ __forceinline__ void add_products(const Tiles& tiles, float (&sum)[OWN][OWN]) {
  const int row = threadIdx.x / 16, column = threadIdx.x % 16;
#pragma unroll 2  // all eight at once need more registers than two blocks per multiprocessor leave
  for (int d = 0; d < DEPTH; ++d) {
    const Quad a[] = {load(tiles.a[d] + own(row, 0)), load(tiles.a[d] + own(row, 4))};
    const Quad b[] = {load(tiles.b[d] + own(column, 0)), load(tiles.b[d] + own(column, 4))};
#pragma unroll
    for (int i = 0; i < OWN; ++i) {
#pragma unroll
      for (int j = 0; j < OWN; ++j)
        sum[i][j] = fmaf(a[i / 4].at[i % 4], b[j / 4].at[j % 4], sum[i][j]);
    }
  }
}

// Store the tile to `to[row * pitch + column]`, without what lies beyond the matrix's edge.
__device__ __forceinline__ void store_tile(float* to, int pitch, int rows, int columns,
                                           const float (&sum)[OWN][OWN]) {
#pragma unroll
  for (int i = 0; i < OWN; ++i) {
    const int row = own(threadIdx.x / 16, i);
#pragma unroll
    for (int j = 0; j < OWN; j += 4) {
      const int column = own(threadIdx.x % 16, j);
      if (row >= rows || column >= columns) continue;
      store(to + row * pitch + column, {sum[i][j], sum[i][j + 1], sum[i][j + 2], sum[i][j + 3]});
    }
  }
}
