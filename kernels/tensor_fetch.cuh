// Views of arrays as matrices for the tiles of tensor_tile.cuh: five objects, each of which copies
// one tile after the other. The matrix itself (im2col) is never built: the address of an element is
// computed when it is fetched; padding, and what is beyond the matrix, is zero.
//
//   object         as a matrix                  what it fetches                        for
//   WindowRows     [windows, (r, s, channel)]   pixels under windows                   y, dx
//   MatrixRows     [rows, k]                    an ordinary matrix                     y, dx
//   FilterColumns  [channels, (r, s, filter)]   weights, reduced over filters          dx
//   PixelColumns   [channels, pixels]           an ordinary matrix, transposed         dweight
//   WindowColumns  [(r, s, channel), windows]   pixels under windows, transposed       dweight
//
// `...Rows` have a line of the tile for each row, `...Columns` for each k; either can be A or B.
// (For dx read "filter" where WindowRows says channel.)
//
// The first two lie K_MAJOR (or SWIZZLED), the others MN_MAJOR (or SWIZZLED_MN). A thread copies
// groups of elements, 16 bytes in all (or 8, of images with room for four bfloat16 channels):
// always at the same place across a line of the tile (so that neighbouring threads copy
// neighbouring groups), in several lines. `group` is the group's first channel or filter, among
// those of all groups. T is the Side that is copied.
#pragma once
#include "tensor_tile.cuh"
#include "tensor_windows.cuh"

// Copy the group at `index`, or zeros; of it perhaps only some bytes. Indices are unsigned: where
// nothing is there, they may wrap.
template <class T, class E>
__device__ __forceinline__ void copy_group(E* place, const E* array, unsigned index, bool there,
                                           int bytes = T::GROUP_BYTES) {
  cp_async<T::GROUP_BYTES>(place, array + (there ? index : 0), there ? bytes : 0);
}

// That of a pixel, whose line is counted through all images, from `channel` on.
template <class T, class E>
__device__ __forceinline__ void copy_pixel(E* place, const E* images, const Windows& windows,
                                           unsigned line, int w, int channel, bool there) {
  copy_group<T>(place, images, (line * windows.width + w) * windows.channels + channel, there,
                min(T::GROUP_BYTES, static_cast<int>(sizeof(E)) * (windows.filled - channel)));
}

// K_MAJOR, SWIZZLED: ACROSS threads copy a line, so the block several lines at a time.
template <class T>
struct KMajor {
  using E = typename T::E;
  static constexpr Layout LAYOUT = T::ALONG_K;
  static constexpr int ACROSS = T::DEPTH / T::GROUP, LINES = T::THREADS / ACROSS;
  static constexpr int VISITS = (T::SIDE + LINES - 1) / LINES;
  const int row = threadIdx.x / ACROSS, k = threadIdx.x % ACROSS * T::GROUP;  // in the tile

  // The last visit may have too few lines for all threads.
  __device__ __forceinline__ bool idle(int visit) const {
    return (visit + 1) * LINES > T::SIDE && row + visit * LINES >= T::SIDE;
  }

  __device__ __forceinline__ E* place(E* tile, int visit) const {
    return tile + place_in_tile<T::SIDE, LAYOUT, E>(row + visit * LINES, k);
  }
};

// The largest power of two that is no more than `count`.
__device__ constexpr int power_of_two_in(int count) {
  return count < 2 ? 1 : 2 * power_of_two_in(count / 2);
}

// MN_MAJOR, SWIZZLED_MN: ACROSS threads copy a line, the block a power of two of lines at a time;
// for tiles of 96 or 192 that leaves whole warps idle. Each line has a k of its own, and a warp's
// lines are no more than it has lanes: so each lane works out the place of one k, `own_k`, and
// hands it to the others. Of 128 rows and 128 threads, warp 2 copies k = 2, 6, ... 30, and lane 12
// works out k = 14, of visit 3.
template <class T>
struct MnMajor {
  using E = typename T::E;
  static constexpr Layout LAYOUT = T::ALONG_SIDE;
  static constexpr int ACROSS = T::SIDE / T::GROUP, LINES = power_of_two_in(T::THREADS / ACROSS);
  static constexpr int VISITS = T::DEPTH / LINES, OWN = 32 / VISITS;  // k's of a visit, at most
  const int row = threadIdx.x % ACROSS * T::GROUP, k = threadIdx.x / ACROSS;

  __device__ __forceinline__ bool idle() const {
    return ACROSS * LINES < T::THREADS && k >= LINES;
  }

  __device__ __forceinline__ E* place(E* tile, int visit) const {
    return tile + place_in_tile<T::SIDE, LAYOUT, E>(row, k + visit * LINES);
  }

  static __device__ __forceinline__ int first_k() { return threadIdx.x / 32 * 32 / ACROSS; }

  static __device__ __forceinline__ int own_k() {
    const int lane = threadIdx.x % 32;
    return first_k() + lane % OWN + lane / OWN * LINES;
  }

  // What the lane responsible for this visit's k found.
  __device__ __forceinline__ int ask(int found, int visit) const {
    return __shfl_sync(~0u, found, k - first_k() + visit * OWN);
  }
};

// The window of each row of the tile is computed once, one row per thread, into shared memory:
// in registers it would be in the way of the sums.
template <class T>
struct WindowRows : KMajor<T> {
  using Lines = KMajor<T>;
  using E = typename T::E;

  const E* images;
  Windows windows;
  int group;
  MixedRadix tap, step;  // (r, s, channel)

  // Rows from `row` on, of `count` windows in all; the reduction from `first` on.
  __device__ __forceinline__ WindowRows(const E* images, int group, const Windows& windows,
                                        int row, int count, int first)
      : images(images), windows(windows), group(group),
        tap(MixedRadix::of(first + Lines::k, windows.S, windows.inner)),
        step(MixedRadix::of(T::DEPTH, windows.S, windows.inner)) {
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

  __device__ __forceinline__ void fetch(E* tile) {
    if (windows.divide_h == 1 && windows.divide_w == 1)
      copy<false>(tile);
    else
      copy<true>(tile);
    tap.add(step, windows.S, windows.inner);
  }

  template <bool DIVIDE>
  __device__ __forceinline__ void copy(E* tile) const {
    const int tap_h = tap.high < windows.R ? tap.high * windows.step_h : NOWHERE;
    const int tap_w = tap.middle * windows.step_w, channel = group + tap.low;
#pragma unroll
    for (int visit = 0; visit < Lines::VISITS; ++visit) {
      if (Lines::idle(visit)) break;
      const int4 window = table()[Lines::row + visit * Lines::LINES];
      int h = window.y + tap_h, w = window.z + tap_w;
      bool there = true;
      if (DIVIDE) there = divides(windows.divide_h, h) & divides(windows.divide_w, w);
      there &= inside(h, windows.height) & inside(w, windows.width);
      copy_pixel<T>(Lines::place(tile, visit), images, windows, window.x + h, w, channel, there);
    }
  }
};

template <class T>
struct MatrixRows : KMajor<T> {
  using Lines = KMajor<T>;
  using E = typename T::E;

  const E* matrix;
  int k, length, left;  // rows, from the thread's first on
  unsigned next;  // element to copy

  // Rows from `row` on, of `rows` of `length` that begin at row `group`; the reduction from `first`
  // on.
  __device__ __forceinline__ MatrixRows(const E* matrix, int group, int length, int row,
                                        int rows, int first)
      : matrix(matrix), k(first + Lines::k), length(length), left(rows - row - Lines::row),
        next((group + row + Lines::row) * length + k) {}

  __device__ __forceinline__ void fetch(E* tile) {
#pragma unroll
    for (int visit = 0; visit < Lines::VISITS; ++visit) {
      if (Lines::idle(visit)) break;
      const bool there = (visit * Lines::LINES < left) & (k < length);
      copy_group<T>(Lines::place(tile, visit), matrix, next + visit * Lines::LINES * length, there);
    }
    k += T::DEPTH;
    next += T::DEPTH;
  }
};

template <class T>
struct FilterColumns : MnMajor<T> {
  using Lines = MnMajor<T>;
  using E = typename T::E;

  const E* weight;  // [filters of all groups, R, S, channels]
  int group, filters, R, S, channels, channel;
  MixedRadix tap, step;  // (r, s, filter) of the lane's k

  // Columns from `channel` on; the reduction, over the `filters` from `group` on, from `first` on.
  __device__ __forceinline__ FilterColumns(const E* weight, int group, int filters, int R,
                                           int S, int channels, int channel, int first)
      : weight(weight), group(group), filters(filters), R(R), S(S), channels(channels),
        channel(channel + Lines::row), tap(MixedRadix::of(first + Lines::own_k(), S, filters)),
        step(MixedRadix::of(T::DEPTH, S, filters)) {}

  __device__ __forceinline__ void fetch(E* tile) {
    if (Lines::idle()) return;
    int line = (((group + tap.low) * R + tap.high) * S + tap.middle) * channels;
    if (tap.high >= R) line = NOWHERE;
#pragma unroll
    for (int visit = 0; visit < Lines::VISITS; ++visit) {
      const int asked = Lines::ask(line, visit);
      copy_group<T>(Lines::place(tile, visit), weight, asked + channel,
                    (asked >= 0) & (channel < channels));
    }
    tap.add(step, S, filters);
  }
};

template <class T>
struct PixelColumns : MnMajor<T> {
  using Lines = MnMajor<T>;
  using E = typename T::E;

  const E* matrix;  // [pixels, channels of all groups]
  int all_channels, left;  // pixels, from the next on
  unsigned next;  // element to copy
  bool channel_there;

  // Columns from `channel` on, of `channels`; the reduction from `first` on, over `pixels`.
  __device__ __forceinline__ PixelColumns(const E* matrix, int group, int all_channels,
                                          int channel, int channels, int first, int pixels)
      : matrix(matrix), all_channels(all_channels), left(pixels - first - Lines::k),
        next((first + Lines::k) * all_channels + group + channel + Lines::row),
        channel_there(channel + Lines::row < channels) {}

  __device__ __forceinline__ void fetch(E* tile) {
    if (Lines::idle()) return;
#pragma unroll
    for (int visit = 0; visit < Lines::VISITS; ++visit) {
      copy_group<T>(Lines::place(tile, visit), matrix, next, channel_there & (left > 0));
      left -= Lines::LINES;
      next += Lines::LINES * all_channels;
    }
  }
};

template <class T>
struct WindowColumns : MnMajor<T> {
  using Lines = MnMajor<T>;
  using E = typename T::E;

  const E* images;
  Windows windows;            // with divide = 1
  int count;                  // images
  int tap_h, tap_w, channel;  // of the thread's column: the same in all k-tiles
  MixedRadix window, step;    // (n, i, j), the lane's own

  // Columns from `column` on, of R S inner; the reduction from window `first` on.
  __device__ __forceinline__ WindowColumns(const E* images, int group, int count,
                                           const Windows& windows, int column, int first)
      : images(images), windows(windows), count(count),
        window(MixedRadix::of(first + Lines::own_k(), windows.rows, windows.columns)),
        step(MixedRadix::of(T::DEPTH, windows.rows, windows.columns)) {
    const MixedRadix tap = MixedRadix::of(column + Lines::row, windows.S, windows.inner);
    tap_h = tap.high < windows.R ? tap.high * windows.step_h : NOWHERE;
    tap_w = tap.middle * windows.step_w;
    channel = group + tap.low;
  }

  __device__ __forceinline__ void fetch(E* tile) {
    if (Lines::idle()) return;
    const int first_h = window.middle * windows.stride_h + windows.first_h;
    const int window_h = window.high < count ? first_h : NOWHERE;
    const int window_w = window.low * windows.stride_w + windows.first_w;
    const int line = window.high * windows.height;
#pragma unroll 4  // more places at a time want too many registers
    for (int visit = 0; visit < Lines::VISITS; ++visit) {
      const int h = Lines::ask(window_h, visit) + tap_h, w = Lines::ask(window_w, visit) + tap_w;
      const bool there = inside(h, windows.height) & inside(w, windows.width);
      copy_pixel<T>(Lines::place(tile, visit), images, windows, Lines::ask(line, visit) + h, w,
                    channel, there);
    }
    window.add(step, windows.rows, windows.columns);
  }
};
