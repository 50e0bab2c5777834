// The main loop of all convolutions on tensor cores: a tile of C = A B, SIDE x SIDE large,
//
//   C[row, column] = sum over k of A[row, k] B[k, column]
//
// with the letters that matrix products have: C is the result, and k counts the terms of a sum here
// and in the files that build on this one (a filter is called a filter). What A and B are is left
// to two objects that fetch their tiles (tensor_fetch.cuh). The sum is taken in k-tiles of K_TILE =
// 32 k's:
//
//   global memory --cp.async--> ring of stages in shared memory --> registers --> tensor cores
//
// The copies of the next STAGES - 1 k-tiles are always under way: the multiplications seldom wait
// for memory. Each warp computes a share of the tile, 64 x 64, 64 x 32 or 32 x 32 (`Tile`).
//
// Its bound, for 64 x 64: a warp reads (64 + 64) x 32 floats of shared memory per k-tile, 128
// cycles at 128 bytes per cycle, the four warps 512; they multiply 128 x 128 x 32 numbers, in
// 1024 cycles of an A100's tensor cores in TF32, 512 of an H100's, if they are fed. In bf16 it
// is half of that, and shared memory is the bound: floats lie there. The ring of a block takes
// 3 stages x 2 factors x 128 lines x 36 floats = 108 KB. So two blocks share a multiprocessor of an
// H100, with 227 KB for them, and one multiplies while the other waits; an A100's 163 KB hold one.
#pragma once
#include "tensor_precision.cuh"

constexpr int K_TILE = 32;  // k's whose products are taken from one stage of shared memory

// The warps of a block. They stand in two lines; a warp's share is ROWS x COLUMNS.
template <int SIDE_, int THREADS_>
struct Tile {
  static constexpr int SIDE = SIDE_, THREADS = THREADS_, STAGES = SIDE == 128 ? 3 : 4;
  static constexpr int ROWS = SIDE / 2, COLUMNS = SIDE / (THREADS / 64);
  static constexpr int FLOATS = SIDE * (K_TILE + 4);  // of one factor in a stage, in any layout
};
using LargeTile = Tile<128, 128>;
using WideTile = Tile<128, 256>;  // for Tf32x3, whose factors take twice the registers
using SmallTile = Tile<64, 128>;

// A tile [SIDE rows, K_TILE k's] lies in shared memory as in global memory, so that 16 bytes here
// are 16 bytes there: with k innermost (K_MAJOR) or with rows innermost (MN_MAJOR). B counts its
// columns as rows here. A few unused floats after each line keep the banks apart:
//
//   K_MAJOR, lines of 36: eight rows of a matrix (ldmatrix) begin 4 banks apart and are 4 wide;
//   MN_MAJOR, lines of SIDE + 8: lane (g, t) reads bank 8 t + g.
//
// Or K-major and SWIZZLED, as Hopper's own instructions want it: lines of 32 without a gap, in
// which the number of the row, modulo 8, exchanges groups of 4 floats.
enum Layout { K_MAJOR, MN_MAJOR, SWIZZLED };

template <int SIDE, Layout LAYOUT>
__device__ __forceinline__ int place_in_tile(int row, int k) {
  if (LAYOUT == K_MAJOR) return row * (K_TILE + 4) + k;
  if (LAYOUT == MN_MAJOR) return k * (SIDE + 8) + row;
  return row * K_TILE + (k ^ (row % 8 * 4));
}

// Dynamic shared memory, for which the host has to ask: four ints for each row (WindowRows), then
// the ring.
__device__ __forceinline__ float* shared_memory() {
  extern __shared__ __align__(1024) float memory[];  // SWIZZLED counts on it
  return memory;
}

template <class T>
__device__ __forceinline__ float* stage_of_ring(int stage) {
  return shared_memory() + 4 * T::SIDE + stage * 2 * T::FLOATS;
}

// A fragment is made of four matrices of 8 rows x 4 k's. In A (16 x 8) they count down first, then
// along k; two fragments of B (16 columns x 8) together the other way round, first along k.
enum Operand { OPERAND_A, OPERAND_B };

template <Operand OPERAND>
__device__ constexpr int matrix_row(int matrix) {
  return 8 * (OPERAND == OPERAND_A ? matrix % 2 : matrix / 2);
}

template <Operand OPERAND>
__device__ constexpr int matrix_k(int matrix) {
  return 4 * (OPERAND == OPERAND_A ? matrix / 2 : matrix % 2);
}

// The place where a lane begins to read a tile, if its warp begins at `row`: the line of a matrix
// that it names to ldmatrix, or its own element of matrix 0.
template <int SIDE, Layout LAYOUT, Operand OPERAND>
__device__ __forceinline__ int place_of_lane(int row) {
  const int lane = threadIdx.x % 32, matrix = lane / 8;
  return LAYOUT == K_MAJOR
             ? place_in_tile<SIDE, LAYOUT>(row + matrix_row<OPERAND>(matrix) + lane % 8,
                                           matrix_k<OPERAND>(matrix))
             : place_in_tile<SIDE, LAYOUT>(row + lane / 4, lane % 4);
}

// The lane's part of four matrices that begin at (row, k) from where the warp begins.
template <int SIDE, Layout LAYOUT, Operand OPERAND>
__device__ __forceinline__ void load_fragment(float (&part)[4], const float* lane, int row, int k) {
  if constexpr (LAYOUT == K_MAJOR) {
    ldmatrix(part, lane + place_in_tile<SIDE, LAYOUT>(row, k));
  } else {  // ldmatrix can transpose numbers of 16 bits only
#pragma unroll
    for (int i = 0; i < 4; ++i)
      part[i] = lane[place_in_tile<SIDE, LAYOUT>(row + matrix_row<OPERAND>(i),
                                                  k + matrix_k<OPERAND>(i))];
  }
}

// A warp's share of C: [m][n] is the fragment of 16 x 8 at row 16 m and column 8 n.
template <class T>
using Sums = float[T::ROWS / 16][T::COLUMNS / 8][4];

// The first row or column of the warp in the tile.
template <class T>
__device__ __forceinline__ int warp_row() {
  return threadIdx.x / (T::THREADS / 2) * T::ROWS;
}
template <class T>
__device__ __forceinline__ int warp_column() {
  return threadIdx.x % (T::THREADS / 2) / 32 * T::COLUMNS;
}

// Multiply one stage. `rows` and `columns` are its two tiles, at the place of the lane.
template <class Precision, class T, Layout A, Layout B>
__device__ __forceinline__ void multiply_stage(Sums<T>& sums, const float* rows,
                                               const float* columns) {
  constexpr int STEPS = Precision::STEP / 8, M = T::ROWS / 16, N = T::COLUMNS / 8;
#pragma unroll Precision::UNROLL
  for (int k = 0; k < K_TILE; k += Precision::STEP) {
    typename Precision::template Fragment<4> a[M];
#pragma unroll
    for (int m = 0; m < M; ++m) {
      float raw[STEPS][4];
#pragma unroll
      for (int step = 0; step < STEPS; ++step)
        load_fragment<T::SIDE, A, OPERAND_A>(raw[step], rows, 16 * m, k + 8 * step);
      a[m] = Precision::pack(raw);
    }
#pragma unroll
    for (int n = 0; n < N; n += 2) {
      float raw[2][STEPS][2];
#pragma unroll
      for (int step = 0; step < STEPS; ++step) {
        float part[4];
        load_fragment<T::SIDE, B, OPERAND_B>(part, columns, 8 * n, k + 8 * step);
#pragma unroll
        for (int i = 0; i < 4; ++i) raw[i / 2][step][i % 2] = part[i];
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        auto b = Precision::pack(raw[i]);
#pragma unroll
        for (int m = 0; m < M; ++m) Precision::multiply_add(sums[m][n + i], a[m], b);
      }
    }
  }
}

// Sum up `k_tiles` k-tiles. `rows.fetch(tile)` and `columns.fetch(tile)` begin to copy the tiles of
// the next k-tile, and step on by K_TILE k's.
template <class Precision, class T, class Rows, class Columns>
__device__ __forceinline__ void sum_products(Sums<T>& sums, Rows& rows, Columns& columns,
                                             int k_tiles) {
  constexpr int AHEAD = T::STAGES - 1;
  constexpr Layout A = Rows::LAYOUT, B = Columns::LAYOUT;
#pragma unroll
  for (int stage = 0; stage < AHEAD; ++stage) {
    if (stage < k_tiles) {
      rows.fetch(stage_of_ring<T>(stage));
      columns.fetch(stage_of_ring<T>(stage) + T::FLOATS);
    }
    cp_async_commit();
  }
  const int row = place_of_lane<T::SIDE, A, OPERAND_A>(warp_row<T>());
  const int column = T::FLOATS + place_of_lane<T::SIDE, B, OPERAND_B>(warp_column<T>());
  int reading = 0;
  for (int left = k_tiles; left > 0; --left) {
    // A group is closed for every k-tile, empty or not: so the newest AHEAD - 1 are of later ones.
    cp_async_wait<AHEAD - 1>();
    // Now all threads' copies have arrived, and all are done with the stage read before, which
    // is the one to be written next.
    __syncthreads();
    if (left > AHEAD) {
      const int writing = reading == 0 ? AHEAD : reading - 1;
      rows.fetch(stage_of_ring<T>(writing));
      columns.fetch(stage_of_ring<T>(writing) + T::FLOATS);
    }
    cp_async_commit();
    const float* stage = stage_of_ring<T>(reading);
    multiply_stage<Precision, T, A, B>(sums, stage + row, stage + column);
    reading = reading == AHEAD ? 0 : reading + 1;
  }
}

// The result. A lane has fragments of 16 x 8: [m][n] is at row ROW_STEP m and column 8 n from where
// its warp begins, (`row`, `column`); the lane itself has two neighbours in row g and two in g + 8.

// sum = ReLU(sum + bias), where `bias` is null or has a number for each of `columns` columns.
template <int M, int N>
__device__ __forceinline__ void add_bias_and_rectify(float (&sums)[M][N][4], const float* bias,
                                                     int column, int columns, bool rectify) {
  column += threadIdx.x % 4 * 2;
#pragma unroll
  for (int n = 0; n < N; ++n)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int c = column + 8 * n + i;
      const float b = bias && c < columns ? bias[c] : 0.f;
#pragma unroll
      for (int half = 0; half < 2 * M; ++half) {
        float& sum = sums[half / 2][n][half % 2 * 2 + i];
        sum += b;
        if (rectify && sum <= 0) sum = 0;  // not so a NaN
      }
    }
}

// Write them to a matrix of rows x columns whose lines begin `pitch` floats apart: two neighbours
// at once where all addresses allow it, and nothing beyond the matrix.
template <int ROW_STEP, int M, int N>
__device__ __forceinline__ void store_tile(const float (&sums)[M][N][4], float* matrix, int pitch,
                                           int row, int rows, int column, int columns) {
  const bool in_pairs = columns % 2 == 0 && pitch % 2 == 0;
  row += threadIdx.x % 32 / 4;
  column += threadIdx.x % 4 * 2;
#pragma unroll
  for (int half = 0; half < 2 * M; ++half) {
    const int r = row + half / 2 * ROW_STEP + half % 2 * 8;
    if (r >= rows) break;
    float* line = matrix + (r * pitch + column);
#pragma unroll
    for (int n = 0; n < N; ++n) {
      const float* pair = sums[half / 2][n] + half % 2 * 2;
      const int there = columns - column - 8 * n;
      float* place = line + 8 * n;
      if (in_pairs && there > 0) *reinterpret_cast<float2*>(place) = make_float2(pair[0], pair[1]);
      if (!in_pairs && there > 0) place[0] = pair[0];
      if (!in_pairs && there > 1) place[1] = pair[1];
    }
  }
}
