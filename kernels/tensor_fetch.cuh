// Views of arrays as matrices for the tiles of tensor_tile.cuh: five objects, each of which copies
// one tile after the other. The matrix itself (im2col) is never built: the address of an element is
// computed when it is fetched; padding, and what is beyond the matrix, is zero.
//
//   WindowRows     [windows, (r, s, channel)]   pixels under windows                   y, dx
//   MatrixRows     [rows, k]                    an ordinary matrix                     y
//   FilterColumns  [channels, (r, s, filter)]   weights, reduced over filters          dx
//   PixelColumns   [channels, pixels]           an ordinary matrix, transposed         dweight
//   WindowColumns  [(r, s, channel), windows]   pixels under windows, transposed       dweight
//
// The first two lie K_MAJOR (or SWIZZLED), the others MN_MAJOR. A thread copies groups of 4
// floats: always at the same place across a line of the tile (so that neighbouring threads copy
// neighbouring groups), in several lines. `group` is the group's first channel or filter, among
// those of all groups.
#pragma once
#include "tensor_tile.cuh"
#include "tensor_windows.cuh"

// Copy 4 floats at `index`, or zeros; of the 4 perhaps only some bytes. Indices are unsigned: where
// nothing is there, they may wrap.
__device__ __forceinline__ void copy_group(float* place, const float* array, unsigned index,
                                           bool there, int bytes = 16) {
  cp_async_16(place, array + (there ? index : 0), there ? bytes : 0);
}

// Those of a pixel, whose line is counted through all images, from `channel` on.
__device__ __forceinline__ void copy_pixel(float* place, const float* images,
                                           const Windows& windows, unsigned line, int w,
                                           int channel, bool there) {
  copy_group(place, images, (line * windows.width + w) * windows.channels + channel, there,
             min(16, 4 * (windows.filled - channel)));
}

// K_MAJOR, SWIZZLED: 8 threads copy a line of 32 k's, so the block several lines at a time.
template <class T, Layout L = K_MAJOR>
struct KMajor {
  static constexpr Layout LAYOUT = L;
  static constexpr int LINES = T::THREADS / 8, VISITS = T::SIDE / LINES;
  const int row = threadIdx.x / 8, k = threadIdx.x % 8 * 4;  // in the tile

  __device__ __forceinline__ float* place(float* tile, int visit) const {
    return tile + place_in_tile<T::SIDE, LAYOUT>(row, k) +
           place_in_tile<T::SIDE, LAYOUT>(visit * LINES, 0);
  }
};

// The largest power of two that is no more than `count`.
__device__ constexpr int power_of_two_in(int count) {
  return count < 2 ? 1 : 2 * power_of_two_in(count / 2);
}

// MN_MAJOR: SIDE / 4 threads copy a line, the block a power of two of lines at a time; for tiles of
// 96 or 192 that leaves whole warps idle. Each line has a k of its own, but a warp has as many
// lanes as a k-tile has k's: so each lane works out the place of one k, and hands it to the others.
template <class T>
struct MnMajor {
  static constexpr Layout LAYOUT = MN_MAJOR;
  static constexpr int ACROSS = T::SIDE / 4, LINES = power_of_two_in(T::THREADS / ACROSS);
  static constexpr int VISITS = K_TILE / LINES;
  const int row = threadIdx.x % ACROSS * 4, k = threadIdx.x / ACROSS;

  __device__ __forceinline__ bool idle() const {
    return ACROSS * LINES < T::THREADS && k >= LINES;
  }

  __device__ __forceinline__ float* place(float* tile, int visit) const {
    return tile + place_in_tile<T::SIDE, LAYOUT>(row, k) +
           place_in_tile<T::SIDE, LAYOUT>(0, visit * LINES);
  }

  // What the lane responsible for this visit's k found.
  __device__ __forceinline__ int ask(int found, int visit) const {
    return __shfl_sync(~0u, found, k + visit * LINES);
  }
};

// The window of each row of the tile is computed once, one row per thread, into shared memory:
// in registers it would be in the way of the sums.
template <class T, Layout L = K_MAJOR>
struct WindowRows : KMajor<T, L> {
  using Lines = KMajor<T, L>;

  const float* images;
  Windows windows;
  int group;
  MixedRadix tap, step;  // (r, s, channel)

  // Rows from `row` on, of `count` windows in all; the reduction from `first` on.
  __device__ __forceinline__ WindowRows(const float* images, int group, const Windows& windows,
                                        int row, int count, int first)
      : images(images), windows(windows), group(group),
        tap(MixedRadix::of(first + Lines::k, windows.S, windows.inner)),
        step(MixedRadix::of(K_TILE, windows.S, windows.inner)) {
    if (threadIdx.x < T::SIDE) {
      const int number = row + threadIdx.x;
      const MixedRadix window = MixedRadix::of(number, windows.rows, windows.columns);
      int h = window.middle * windows.stride_h + windows.first_h;
      int w = window.low * windows.stride_w + windows.first_w;
      int line = window.high * windows.height;
      table()[threadIdx.x] = make_int4(line, number < count ? h : NOWHERE, w, 0);
    }
    __syncthreads();
  }

  // Of each row: the image's first line, counted through all images; the window's first pixel.
  static __device__ __forceinline__ int4* table() {
    return reinterpret_cast<int4*>(shared_memory());
  }

  __device__ __forceinline__ void fetch(float* tile) {
    if (windows.divide_h == 1 && windows.divide_w == 1)
      copy<false>(tile);
    else
      copy<true>(tile);
    tap.add(step, windows.S, windows.inner);
  }

  template <bool DIVIDE>
  __device__ __forceinline__ void copy(float* tile) const {
    const int tap_h = tap.high < windows.R ? tap.high * windows.step_h : NOWHERE;
    const int tap_w = tap.middle * windows.step_w, channel = group + tap.low;
#pragma unroll
    for (int visit = 0; visit < Lines::VISITS; ++visit) {
      const int4 window = table()[Lines::row + visit * Lines::LINES];
      int h = window.y + tap_h, w = window.z + tap_w;
      bool there = true;
      if (DIVIDE) there = divides(windows.divide_h, h) & divides(windows.divide_w, w);
      there &= inside(h, windows.height) & inside(w, windows.width);
      copy_pixel(Lines::place(tile, visit), images, windows, window.x + h, w, channel, there);
    }
  }
};

template <class T, Layout L = K_MAJOR>
struct MatrixRows : KMajor<T, L> {
  using Lines = KMajor<T, L>;

  const float* matrix;
  int k, length, left;  // rows, from the thread's first on
  unsigned next;  // float to copy

  // Rows from `row` on, of `rows` of `length` that begin at row `group`; the reduction from `first`
  // on.
  __device__ __forceinline__ MatrixRows(const float* matrix, int group, int length, int row,
                                        int rows, int first)
      : matrix(matrix), k(first + Lines::k), length(length), left(rows - row - Lines::row),
        next((group + row + Lines::row) * length + k) {}

  __device__ __forceinline__ void fetch(float* tile) {
#pragma unroll
    for (int visit = 0; visit < Lines::VISITS; ++visit) {
      const bool there = (visit * Lines::LINES < left) & (k < length);
      copy_group(Lines::place(tile, visit), matrix, next + visit * Lines::LINES * length, there);
    }
    k += K_TILE;
    next += K_TILE;
  }
};

template <class T>
struct FilterColumns : MnMajor<T> {
  using Lines = MnMajor<T>;

  const float* weight;  // [filters of all groups, R, S, channels]
  int group, filters, R, S, channels, channel;
  MixedRadix tap, step;  // (r, s, filter) of the lane's k

  // Columns from `channel` on; the reduction, over the `filters` from `group` on, from `first` on.
  __device__ __forceinline__ FilterColumns(const float* weight, int group, int filters, int R,
                                           int S, int channels, int channel, int first)
      : weight(weight), group(group), filters(filters), R(R), S(S), channels(channels),
        channel(channel + Lines::row), tap(MixedRadix::of(first + threadIdx.x % 32, S, filters)),
        step(MixedRadix::of(K_TILE, S, filters)) {}

  __device__ __forceinline__ void fetch(float* tile) {
    if (Lines::idle()) return;
    int line = (((group + tap.low) * R + tap.high) * S + tap.middle) * channels;
    if (tap.high >= R) line = NOWHERE;
#pragma unroll
    for (int visit = 0; visit < Lines::VISITS; ++visit) {
      const int asked = Lines::ask(line, visit);
      copy_group(Lines::place(tile, visit), weight, asked + channel,
                 (asked >= 0) & (channel < channels));
    }
    tap.add(step, S, filters);
  }
};

template <class T>
struct PixelColumns : MnMajor<T> {
  using Lines = MnMajor<T>;

  const float* matrix;  // [pixels, channels of all groups]
  int all_channels, left;  // pixels, from the next on
  unsigned next;  // float to copy
  bool channel_there;

  // Columns from `channel` on, of `channels`; the reduction from `first` on, over `pixels`.
  __device__ __forceinline__ PixelColumns(const float* matrix, int group, int all_channels,
                                          int channel, int channels, int first, int pixels)
      : matrix(matrix), all_channels(all_channels), left(pixels - first - Lines::k),
        next((first + Lines::k) * all_channels + group + channel + Lines::row),
        channel_there(channel + Lines::row < channels) {}

  __device__ __forceinline__ void fetch(float* tile) {
    if (Lines::idle()) return;
#pragma unroll
    for (int visit = 0; visit < Lines::VISITS; ++visit) {
      copy_group(Lines::place(tile, visit), matrix, next, channel_there & (left > 0));
      left -= Lines::LINES;
      next += Lines::LINES * all_channels;
    }
  }
};

template <class T>
struct WindowColumns : MnMajor<T> {
  using Lines = MnMajor<T>;

  const float* images;
  Windows windows;            // with divide = 1
  int count;                  // images
  int tap_h, tap_w, channel;  // of the thread's column: the same in all k-tiles
  MixedRadix window, step;    // (n, i, j), the lane's own

  // Columns from `column` on, of R S inner; the reduction from window `first` on.
  __device__ __forceinline__ WindowColumns(const float* images, int group, int count,
                                           const Windows& windows, int column, int first)
      : images(images), windows(windows), count(count),
        window(MixedRadix::of(first + threadIdx.x % 32, windows.rows, windows.columns)),
        step(MixedRadix::of(K_TILE, windows.rows, windows.columns)) {
    const MixedRadix tap = MixedRadix::of(column + Lines::row, windows.S, windows.inner);
    tap_h = tap.high < windows.R ? tap.high * windows.step_h : NOWHERE;
    tap_w = tap.middle * windows.step_w;
    channel = group + tap.low;
  }

  __device__ __forceinline__ void fetch(float* tile) {
    if (Lines::idle()) return;
    const int first_h = window.middle * windows.stride_h + windows.first_h;
    const int window_h = window.high < count ? first_h : NOWHERE;
    const int window_w = window.low * windows.stride_w + windows.first_w;
    const int line = window.high * windows.height;
#pragma unroll
    for (int visit = 0; visit < Lines::VISITS; ++visit) {
      const int h = Lines::ask(window_h, visit) + tap_h, w = Lines::ask(window_w, visit) + tap_w;
      const bool there = inside(h, windows.height) & inside(w, windows.width);
      copy_pixel(Lines::place(tile, visit), images, windows, Lines::ask(line, visit) + h, w,
                 channel, there);
    }
    window.add(step, windows.rows, windows.columns);
  }
};
