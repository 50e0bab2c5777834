// A factor's tile [SIDE rows, 128 bytes of k's each] in shared memory. B counts its columns as rows
// here. It lies as in global memory, so that 16 bytes here are 16 bytes there: with k innermost
// (K_MAJOR) or with rows innermost (MN_MAJOR). A few unused floats after each line keep the banks
// apart:
//
//   K_MAJOR, lines of 36: eight rows of a matrix (ldmatrix) begin 4 banks apart and are 4 wide;
//   MN_MAJOR, lines of SIDE + 8: lane (g, t) reads bank 8 t + g.
//
// Hopper's own instructions want lines of 128 bytes without a gap, in which the number of the line,
// modulo 8, exchanges groups of 16 bytes: SWIZZLED, a line for each row, or SWIZZLED_MN (of numbers
// of 16 bits), in blocks of 64 rows, with a line for each k. So the same group of eight lines lies
// in eight different places of four banks:
//
//   line 0:  0 1 2 3 4 5 6 7      line 1:  1 0 3 2 5 4 7 6      line 2:  2 3 0 1 6 7 4 5
//
// and k = 8 of row 5, in bf16, at 5 * 64 + (8 ^ 40) = 352.
#pragma once
#include "bfloat16.cuh"

constexpr int LINE_BYTES = 128;
constexpr int K_TILE = LINE_BYTES / sizeof(float);  // k's of floats in one stage of shared memory

enum Layout { K_MAJOR, MN_MAJOR, SWIZZLED, SWIZZLED_MN };

template <int SIDE, Layout LAYOUT, class E = float>
__device__ __forceinline__ int place_in_tile(int row, int k) {
  constexpr int LINE = LINE_BYTES / sizeof(E), GROUP = 16 / sizeof(E);
  if (LAYOUT == K_MAJOR) return row * (K_TILE + 4) + k;
  if (LAYOUT == MN_MAJOR) return k * (SIDE + 8) + row;
  if (LAYOUT == SWIZZLED) return row * LINE + (k ^ row % 8 * GROUP);
  return (row / LINE * LINE + k) * LINE + (row % LINE ^ k % 8 * GROUP);
}

// What Hopper's instructions ask for in place of a pointer to a SWIZZLED or SWIZZLED_MN tile, for a
// pointer does not tell where the next eight lines begin, or how groups are exchanged: its
// address / 16, which is a multiple of 1024 but for steps along k; from bit 16 on, bytes / 16 from
// 64 rows of SWIZZLED_MN to the next 64 (of SWIZZLED a distance that means nothing, 1); from bit
// 32, bytes / 16 from 8 lines to the next 8; from bit 62, 1 for exchanges within 128 bytes.
template <Layout LAYOUT, class E>
__device__ __forceinline__ unsigned long long descriptor(const E* tile) {
  constexpr unsigned long long LEADING = LAYOUT == SWIZZLED ? 1 : 64 * LINE_BYTES / 16;
  constexpr unsigned long long STRIDE = 8 * LINE_BYTES / 16;
  const unsigned long long address = static_cast<unsigned>(__cvta_generic_to_shared(tile));
  return (address & 0x3ffff) >> 4 | LEADING << 16 | STRIDE << 32 | 1ull << 62;
}
