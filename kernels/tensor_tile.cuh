// The product of all convolutions on tensor cores: a tile of C = A B, M x N large,
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
// for memory. Each warp computes a share of the tile, such as 64 x 64 (`Tile`). With three stages:
//
//   k-tile   waits for   then copies           and multiplies
//     0      stage 0     k-tile 2 to stage 2   stage 0
//     1      stage 1     k-tile 3 to stage 0   stage 1
//     2      stage 2     k-tile 4 to stage 1   stage 2
//
// Its bound, for 128 x 128 on an H100, in cycles of a multiprocessor per k-tile (estimated, as in
// tinyalex/backends/cuda/conv/tiles.py): the factors, 32 KB, take 1260 from the L2 cache, at
// 26 bytes per cycle; multiplying takes 819 in TF32, half of that in bf16; reading shared memory,
// (64 + 64) x 32 floats for each of four warps at 128 bytes per cycle, 512. So L2 is the bound, and
// larger tiles, with more products per byte, are the way up. (In 3xTF32 the products are, with
// 2621.)
//
// The ring of a block takes 3 stages x 2 factors x 128 lines x 36 floats = 108 KB. So two blocks
// (of Tf32x3, with eight warps, one) share a multiprocessor of an H100, with 227 KB for them, and
// one multiplies while the other waits; an A100's 163 KB hold one.
#pragma once
#include "last_block.cuh"
#include "tensor_precision.cuh"
#include "tile_layout.cuh"

// A factor's tile in a stage: rows of A, or columns of B, with DEPTH k's each, in one of two
// layouts; and the threads that copy it, GROUP elements at once.
template <class E_, int SIDE_, int THREADS_, bool SWIZZLE, int GROUP_ = 16 / sizeof(E_)>
struct Side {
  using E = E_;
  static constexpr int SIDE = SIDE_, THREADS = THREADS_, DEPTH = LINE_BYTES / sizeof(E);
  static constexpr int GROUP = GROUP_, GROUP_BYTES = GROUP * sizeof(E);
  static constexpr int SIZE = SIDE * (DEPTH + (SWIZZLE ? 0 : 4));  // the larger layout's
  static constexpr Layout ALONG_K = SWIZZLE ? SWIZZLED : K_MAJOR;
  static constexpr Layout ALONG_SIDE = SWIZZLE ? SWIZZLED_MN : MN_MAJOR;
};

// The tile of C that a block computes, M x N. The warps stand in lines, DOWN of them, with a share
// of WARP_M x WARP_N each. BLOCKS fit on a multiprocessor, by registers and shared memory. The same
// rules are in tinyalex/backends/cuda/conv/tiles.py.
template <class Precision_, int M, int N>
struct Tile {
  using Precision = Precision_;
  using E = float;
  static constexpr int THREADS = M * N > 4 * Precision::SUMS ? 256 : 128, WARPS = THREADS / 32;
  static constexpr int BLOCKS = THREADS == 256 ? 1 : M * N > 64 * 64 ? 2 : 3;
  static constexpr int STAGES = M * N > 64 * 64 ? 3 : 4;
  static constexpr int DOWN = THREADS == 256 && M % 64 == 0 ? 4 : 2, ACROSS = WARPS / DOWN;
  static constexpr int WARP_M = M / DOWN, WARP_N = N / ACROSS;
  static constexpr bool WEIGHTS_ALONG_K = false, LAST_BLOCK_ADDS = false;  // for dx
  using A = Side<E, M, THREADS, false>;
  using B = Side<E, N, THREADS, false>;
};

// Dynamic shared memory, for which the host has to ask: four ints for each row (WindowRows), then
// the ring.
__device__ __forceinline__ float* shared_memory() {
  extern __shared__ __align__(1024) float memory[];  // SWIZZLED counts on it
  return memory;
}

template <class T>
__device__ __forceinline__ typename T::E* stage_of_ring(int stage) {
  return reinterpret_cast<typename T::E*>(shared_memory() + 4 * T::A::SIDE) +
         stage * (T::A::SIZE + T::B::SIZE);
}

// Begin to copy the next k-tile, if there is one, to a stage: `fetch(tile)` copies a factor's and
// steps on. Copies are waited for in groups; one is closed for every k-tile, empty or not.
template <class T, class Rows, class Columns>
__device__ __forceinline__ void fetch_k_tile(Rows& rows, Columns& columns, int stage, bool there) {
  if (there) {
    rows.fetch(stage_of_ring<T>(stage));
    columns.fetch(stage_of_ring<T>(stage) + T::A::SIZE);
  }
  cp_async_commit();
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
using Sums = float[T::WARP_M / 16][T::WARP_N / 8][4];

// The first row or column of the warp in the tile.
template <class T>
__device__ __forceinline__ int warp_row() {
  return threadIdx.x / 32 / T::ACROSS * T::WARP_M;
}
template <class T>
__device__ __forceinline__ int warp_column() {
  return threadIdx.x / 32 % T::ACROSS * T::WARP_N;
}

// Multiply one stage. `rows` and `columns` are its two tiles, at the place of the lane.
template <class T, Layout A, Layout B>
__device__ __forceinline__ void multiply_stage(Sums<T>& sums, const float* rows,
                                               const float* columns) {
  using Precision = typename T::Precision;
  constexpr int STEPS = Precision::STEP / 8, M = T::WARP_M / 16, N = T::WARP_N / 8;
#pragma unroll Precision::UNROLL
  for (int k = 0; k < K_TILE; k += Precision::STEP) {
    typename Precision::template Fragment<4> a[M];
#pragma unroll
    for (int m = 0; m < M; ++m) {
      float raw[STEPS][4];
#pragma unroll
      for (int step = 0; step < STEPS; ++step)
        load_fragment<T::A::SIDE, A, OPERAND_A>(raw[step], rows, 16 * m, k + 8 * step);
      a[m] = Precision::pack(raw);
    }
#pragma unroll
    for (int n = 0; n < N; n += 2) {
      float raw[2][STEPS][2];
#pragma unroll
      for (int step = 0; step < STEPS; ++step) {
        float part[4];
        load_fragment<T::B::SIDE, B, OPERAND_B>(part, columns, 8 * n, k + 8 * step);
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

// Sum up `k_tiles` k-tiles.
template <class T, class Rows, class Columns>
__device__ __forceinline__ void sum_products(Sums<T>& sums, Rows& rows, Columns& columns,
                                             int k_tiles) {
  constexpr int AHEAD = T::STAGES - 1;
  constexpr Layout A = Rows::LAYOUT, B = Columns::LAYOUT;
#pragma unroll
  for (int stage = 0; stage < AHEAD; ++stage)
    fetch_k_tile<T>(rows, columns, stage, stage < k_tiles);
  const int row = place_of_lane<T::A::SIDE, A, OPERAND_A>(warp_row<T>());
  const int column =
      T::A::SIZE + place_of_lane<T::B::SIDE, B, OPERAND_B>(warp_column<T>());
  int reading = 0;
  for (int left = k_tiles; left > 0; --left) {
    cp_async_wait<AHEAD - 1>();  // the newest AHEAD - 1 groups are of later k-tiles
    // Now all threads' copies have arrived, and all are done with the stage read before, which
    // is the one to be written next.
    __syncthreads();
    const int writing = reading == 0 ? AHEAD : reading - 1;  // (reading + AHEAD) % STAGES
    fetch_k_tile<T>(rows, columns, writing, left > AHEAD);
    const float* stage = stage_of_ring<T>(reading);
    multiply_stage<T, A, B>(sums, stage + row, stage + column);
    reading = reading == AHEAD ? 0 : reading + 1;
  }
}

// The result. A lane has fragments of 16 x 8: [m][n] is at row 16 m and column 8 n from where its
// warp begins, (`row`, `column`); the lane itself has two neighbours in row g and two in g + 8.

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

__device__ __forceinline__ void store_pair(float* place, float first, float second) {
  *reinterpret_cast<float2*>(place) = make_float2(first, second);
}
__device__ __forceinline__ void store_pair(bfloat16* place, float first, float second) {
  *reinterpret_cast<unsigned*>(place) = to_bf16x2(first, second);
}

// Write the lane's pairs to a matrix of rows x columns whose lines begin `pitch` elements apart;
// what is beyond it is left out. A pair at once, where all are whole and begin at multiples of two.
template <int M, int N, class E>
__device__ __forceinline__ void store_tile(const float (&sums)[M][N][4], E* matrix, int pitch,
                                           int row, int rows, int column, int columns) {
  const bool in_pairs = columns % 2 == 0 && pitch % 2 == 0;
  row += threadIdx.x % 32 / 4;
  column += threadIdx.x % 4 * 2;
#pragma unroll
  for (int half = 0; half < 2 * M; ++half) {
    const int r = row + half / 2 * 16 + half % 2 * 8;
    if (r >= rows) break;
#pragma unroll
    for (int n = 0; n < N; ++n) {
      const float* pair = sums[half / 2][n] + half % 2 * 2;
      const int c = column + 8 * n;
      E* place = matrix + (r * pitch + c);
      if (in_pairs) {
        if (c < columns) store_pair(place, pair[0], pair[1]);
      } else {
        if (c < columns) place[0] = pair[0];
        if (c + 1 < columns) place[1] = pair[1];
      }
    }
  }
}

// A part of a split sum lies as its threads hold it: 16 bytes per fragment and thread, neighbouring
// threads side by side. So there are no edges to ask for, and all loads of a part go out together.
template <class T>
__device__ __forceinline__ int place_in_part(int m, int n) {
  return 4 * ((m * (T::WARP_N / 8) + n) * T::THREADS + threadIdx.x);
}

template <class T>
__device__ __forceinline__ void store_part(const Sums<T>& sums, float* part) {
#pragma unroll
  for (int m = 0; m < T::WARP_M / 16; ++m)
#pragma unroll
    for (int n = 0; n < T::WARP_N / 8; ++n) {
      const float(&sum)[4] = sums[m][n];
      *reinterpret_cast<float4*>(part + place_in_part<T>(m, n)) =
          make_float4(sum[0], sum[1], sum[2], sum[3]);
    }
}

// sums = the sum of `count` parts, in order.
template <class T>
__device__ __forceinline__ void add_parts(Sums<T>& sums, const float* parts, int count) {
#pragma unroll
  for (auto& row : sums)
#pragma unroll
    for (auto& fragment : row)
#pragma unroll
      for (float& sum : fragment) sum = 0;
  for (; count > 0; --count, parts += T::A::SIDE * T::B::SIDE)
#pragma unroll
    for (int m = 0; m < T::WARP_M / 16; ++m)
#pragma unroll
      for (int n = 0; n < T::WARP_N / 8; ++n) {
        const float4 part = *reinterpret_cast<const float4*>(parts + place_in_part<T>(m, n));
        sums[m][n][0] += part.x;
        sums[m][n][1] += part.y;
        sums[m][n][2] += part.z;
        sums[m][n][3] += part.w;
      }
}

// The tile of this block in C [rows, columns], and its part of the sum over k. Block: x counts the
// tiles, neighbours along the columns first, so that they read the same rows; y the groups, which
// have a C each; z the parts of the sum, `split_k_tiles` each (split-K, for products with too few
// tiles to fill the GPU; they are added up in order, see `Parts`).
template <class T>
struct Place {
  int rows, columns, row, column, k, k_tiles;

  __device__ __forceinline__ Place(int rows, int columns, int depth, int split_k_tiles)
      : rows(rows), columns(columns) {
    const int tiles = (columns + T::B::SIDE - 1) / T::B::SIDE, first = blockIdx.z * split_k_tiles;
    row = blockIdx.x / tiles * T::A::SIDE;
    column = blockIdx.x % tiles * T::B::SIDE;
    k = first * T::A::DEPTH;
    k_tiles = min(split_k_tiles, (depth + T::A::DEPTH - 1) / T::A::DEPTH - first);
  }
};

// Room for all parts of all tiles, if the last block of a tile to arrive adds them up: `sums` has
// [tiles, parts, M x N], `arrived` a zero for each tile. Those of a weight's gradient, and of
// mma.sync's input gradient, are many, which one block would read for too long: they are a larger C
// (with room for all), which split_sum.cu adds.
struct Parts {
  float* sums = nullptr;
  unsigned* arrived = nullptr;
};

// The end of a pass: the sums, or all parts of them, go to C, lines `pitch` apart.
template <class T, class E>
__device__ __forceinline__ void finish(const Place<T>& at, Sums<T>& sums, E* c, int pitch,
                                       const float* bias, bool relu, const Parts& parts) {
  const int row = at.row + warp_row<T>(), column = at.column + warp_column<T>();
  if (parts.sums != nullptr) {
    constexpr int SIZE = T::A::SIDE * T::B::SIDE;
    const int tile = blockIdx.y * gridDim.x + blockIdx.x, count = gridDim.z;
    float* first = parts.sums + tile * count * SIZE;
    store_part<T>(sums, first + blockIdx.z * SIZE);
    if (!last_to_arrive(parts.arrived + tile, count)) return;
    add_parts<T>(sums, first, count);
  }
  // Once, on the whole sum.
  if (bias || relu) add_bias_and_rectify(sums, bias, column, at.columns, relu);
  store_tile(sums, c, pitch, row, at.rows, column, at.columns);
}

// A convolution's pass: `a` and `b` fetch the factors.
template <class Precision, int M, int N, class Rows, class Columns>
__device__ __forceinline__ void product(const Place<Tile<Precision, M, N>>& at, Rows& a, Columns& b,
                                        float* c, int pitch, const float* bias, bool relu,
                                        const Parts& parts) {
  Sums<Tile<Precision, M, N>> sums = {};
  sum_products<Tile<Precision, M, N>>(sums, a, b, at.k_tiles);
  finish(at, sums, c, pitch, bias, relu, parts);
}
