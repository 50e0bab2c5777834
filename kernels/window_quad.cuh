// The functions of window.cuh for four channels at once: as few instructions per channel as can be.
#pragma once
#include "four.cuh"
#include "window.cuh"

struct QuadWinner {
  Quad value;
  int tap[4];
};

// As `max_of_window`; `value(h, w)` returns four channels of a pixel. The caller passes the taps
// that lie inside, so that no pixel has to be looked at twice.
template <typename Value>
__device__ __forceinline__ QuadWinner max_of_window(const PoolShape& shape, int i, int j,
                                                    Range rows, Range columns, Value value) {
  const bool none = rows.first >= rows.stop || columns.first >= columns.stop;
  const int first = none ? 0 : rows.first * shape.S + columns.first;
  const float lowest = -1 / 0.0f;  // minus infinity: where all values are, the first tap keeps it
  QuadWinner best = {{{lowest, lowest, lowest, lowest}}, {first, first, first, first}};
  for (int r = rows.first; r < rows.stop; ++r) {
    const int h = i * shape.stride_h - shape.top + r * shape.dilation_h;
    for (int s = columns.first; s < columns.stop; ++s) {
      const Quad candidate = value(h, j * shape.stride_w - shape.left + s * shape.dilation_w);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const bool wins = takes(candidate.at[e], best.value.at[e]);
        best.value.at[e] = wins ? candidate.at[e] : best.value.at[e];
        best.tap[e] = wins ? r * shape.S + s : best.tap[e];
      }
    }
  }
  return best;
}

// Four winning taps are four bytes: one word, the first channel's byte the lowest.
__device__ __forceinline__ void store_taps(unsigned char* to, const int (&tap)[4]) {
  *reinterpret_cast<unsigned*>(to) = tap[0] | tap[1] << 8 | tap[2] << 16 | tap[3] << 24;
}

// As `gradient_of_pixel`, without dilation. (down, right) is the pixel's place, counted with the
// padding; `last_i` is the last window above it, which is the same for a whole row.
template <class T>
__device__ __forceinline__ Quad gradient_of_pixel(const PoolShape& shape, const T* grad,
                                                  const unsigned char* taps, int n, int last_i,
                                                  int down, int right, int c) {
  const int last_j = last_window(right, shape.stride_w, shape.Wo);
  const int last_r = down - last_i * shape.stride_h, last_s = right - last_j * shape.stride_w;
  Quad sum = {};
  for (int i = last_i, r = last_r; i >= 0 && r < shape.R; --i, r += shape.stride_h) {
    const int row = (n * shape.Ho + i) * shape.Wo;
    for (int j = last_j, s = last_s; j >= 0 && s < shape.S; --j, s += shape.stride_w) {
      const int window = (row + j) * shape.C + c, tap = r * shape.S + s;
      const unsigned winners = *reinterpret_cast<const unsigned*>(taps + window);
      const Quad slope = load(grad + window);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        if ((winners >> 8 * e & 255) == tap) sum.at[e] += slope.at[e];
      }
    }
  }
  return sum;
}
