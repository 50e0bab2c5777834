// What the tiles of tensor_tile.cuh hold: five ways to look at an array as a matrix, each an object
// that copies one tile after the other. Nobody builds the matrix itself (im2col): where an element
// lies is computed when it is fetched, and what does not exist (padding, or beyond the matrix) is
// zero.
//
//   WindowRows     [windows, (r, s, channel)]   pixels under windows                   y, dx
//   MatrixRows     [rows, k]                    an ordinary matrix                     y
//   FilterColumns  [channels, (r, s, filter)]   weights, reduced over filters          dx
//   PixelColumns   [channels, pixels]           an ordinary matrix, transposed         dweight
//   WindowColumns  [(r, s, channel), windows]   pixels under windows, transposed       dweight
//
// The first two lie K_INSIDE, the others K_OUTSIDE. A thread copies groups of 4 floats: always at
// the same place across a line of the tile (so that neighbouring threads copy neighbouring groups),
// in several lines. Its place along the reduction is worked out once and then moved on: division is
// slow. `group` is the group's first channel or filter in an array of all groups.
#pragma once
#include "convolution.cuh"
#include "tensor_tile.cuh"

// Windows over images [N, height, width, channels]: with its tap (r, s), window (n, i, j) meets the
// pixel ((i * stride + first + r * step) / divide, the same along j); none if that leaves a
// remainder or the image. The forward pass looks at x like that, with divide = 1. The gradient of x
// looks at dy like that, with stride 1 and step < 0: line h of x was met by line
// (h + top - r * dilation) / stride of y. (With stride 2, three quarters of its products are with
// zeros: correct, but wasteful.)
struct Windows {
  int height, width, channels, inner;  // of the images; channels that one window meets: a group's
  int R, S;
  int rows, columns;  // windows of an image
  int stride_h, stride_w, first_h, first_w, step_h, step_w, divide_h, divide_w;
};

__device__ __forceinline__ Windows windows_of_y(const ConvShape& s) {
  return {s.H,        s.W,        s.C,    s.C / s.groups, s.R,          s.S,          s.Ho, s.Wo,
          s.stride_h, s.stride_w, -s.top, -s.left,        s.dilation_h, s.dilation_w, 1,    1};
}

__device__ __forceinline__ Windows windows_of_dx(const ConvShape& s) {
  return {s.Ho, s.Wo, s.K,   s.K / s.groups, s.R,           s.S,           s.H,        s.W,
          1,    1,    s.top, s.left,         -s.dilation_h, -s.dilation_w, s.stride_h, s.stride_w};
}

// Divide in place; false if a remainder is left.
__device__ __forceinline__ bool divides(int divide, int& position) {
  int quotient = position / divide;
  bool whole = quotient * divide == position;
  position = quotient;
  return whole;
}

// 0 <= value < size in one comparison: a negative number without its sign is a huge one.
__device__ __forceinline__ bool inside(int value, int size) {
  return static_cast<unsigned>(value) < static_cast<unsigned>(size);
}

// Copy 4 floats at `index`, or zeros. Unsigned, an index needs no sign extension to 64 bits.
__device__ __forceinline__ void copy_group(float* place, const float* array, int index,
                                           bool there) {
  cp_async_16(place, array + (there ? static_cast<unsigned>(index) : 0u), there);
}

// K_INSIDE: 8 threads copy a line of 32 k's, and the block 16 lines at a time.
template <int SIDE>
struct AlongK {
  static constexpr Layout LAYOUT = K_INSIDE;
  static constexpr int LINES = TENSOR_THREADS / 8, VISITS = SIDE / LINES;
  const int row = threadIdx.x / 8, k = threadIdx.x % 8 * 4;  // in the tile

  __device__ __forceinline__ float* place(float* tile, int visit) const {
    return tile + place_in_tile<SIDE, LAYOUT>(row + visit * LINES, k);
  }
};

// K_OUTSIDE: SIDE / 4 threads copy a line, and the block 4 or 8 lines at a time.
template <int SIDE>
struct AlongRows {
  static constexpr Layout LAYOUT = K_OUTSIDE;
  static constexpr int LINES = TENSOR_THREADS / (SIDE / 4), VISITS = DEPTH / LINES;
  const int row = threadIdx.x % (SIDE / 4) * 4, k = threadIdx.x / (SIDE / 4);

  __device__ __forceinline__ float* place(float* tile, int visit) const {
    return tile + place_in_tile<SIDE, LAYOUT>(row, k + visit * LINES);
  }
};

// Which window a row of the tile is, is worked out once, a row a thread, and kept in shared memory:
// in registers it would be in the way of the sums.
template <int SIDE>
struct WindowRows : AlongK<SIDE> {
  using Lines = AlongK<SIDE>;
  static constexpr int NOWHERE = -(1 << 30);  // a line outside of any image

  const float* images;
  Windows windows;
  int group, r, s, channel;

  // Rows from `row` on, of `count` windows in all; the reduction from `k` on.
  __device__ __forceinline__ WindowRows(const float* images, int group, const Windows& windows,
                                        int row, int count, int k)
      : images(images), windows(windows), group(group) {
    if (threadIdx.x < SIDE) {
      int window = row + threadIdx.x;
      int i = window / windows.columns, j = window - i * windows.columns;
      int n = i / windows.rows;
      i -= n * windows.rows;
      int first_h = window < count ? i * windows.stride_h + windows.first_h : NOWHERE;
      int first_w = j * windows.stride_w + windows.first_w;
      table()[threadIdx.x] = make_int4(n * windows.height, first_h, first_w, 0);
    }
    k += Lines::k;
    int tap = k / windows.inner;
    channel = k - tap * windows.inner;
    r = tap / windows.S;
    s = tap - r * windows.S;
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
    channel += DEPTH;
    while (channel >= windows.inner) {
      channel -= windows.inner;
      if (++s == windows.S) {
        s = 0;
        ++r;
      }
    }
  }

  template <bool DIVIDE>
  __device__ __forceinline__ void copy(float* tile) const {
    const int tap_h = r < windows.R ? r * windows.step_h : NOWHERE, tap_w = s * windows.step_w;
#pragma unroll
    for (int visit = 0; visit < Lines::VISITS; ++visit) {
      int4 window = table()[Lines::row + visit * Lines::LINES];
      int h = window.y + tap_h, w = window.z + tap_w;
      bool there = true;
      if (DIVIDE) there = divides(windows.divide_h, h) & divides(windows.divide_w, w);
      there &= inside(h, windows.height) & inside(w, windows.width);
      int pixel = (window.x + h) * windows.width + w;
      copy_group(Lines::place(tile, visit), images, pixel * windows.channels + (group + channel),
                 there);
    }
  }
};

template <int SIDE>
struct MatrixRows : AlongK<SIDE> {
  using Lines = AlongK<SIDE>;

  const float* matrix;
  int first, row, rows, k, length;

  // Rows from `row` on, of `rows` of `length` that begin at row `group`.
  __device__ __forceinline__ MatrixRows(const float* matrix, int group, int length, int row,
                                        int rows, int k)
      : matrix(matrix), row(row + Lines::row), rows(rows), k(k + Lines::k), length(length) {
    first = (group + this->row) * length;
  }

  __device__ __forceinline__ void fetch(float* tile) {
#pragma unroll
    for (int visit = 0; visit < Lines::VISITS; ++visit) {
      bool there = (row + visit * Lines::LINES < rows) & (k < length);
      copy_group(Lines::place(tile, visit), matrix, first + k + visit * Lines::LINES * length,
                 there);
    }
    k += DEPTH;
  }
};

template <int SIDE>
struct FilterColumns : AlongRows<SIDE> {
  using Lines = AlongRows<SIDE>;

  const float* weight;  // [filters of all groups, taps, channels]
  int group, filters, taps, channels;
  int channel, filter, tap;

  __device__ __forceinline__ FilterColumns(const float* weight, int group, int filters, int taps,
                                           int channels, int channel, int k)
      : weight(weight), group(group), filters(filters), taps(taps), channels(channels),
        channel(channel + Lines::row) {
    k += Lines::k;
    tap = k / filters;
    filter = k - tap * filters;
  }

  __device__ __forceinline__ void fetch(float* tile) {
#pragma unroll
    for (int visit = 0; visit < Lines::VISITS; ++visit) {
      bool there = (tap < taps) & (channel < channels);
      copy_group(Lines::place(tile, visit), weight,
                 ((group + filter) * taps + tap) * channels + channel, there);
      filter += Lines::LINES;
      while (filter >= filters) {
        filter -= filters;
        ++tap;
      }
    }
  }
};

template <int SIDE>
struct PixelColumns : AlongRows<SIDE> {
  using Lines = AlongRows<SIDE>;

  const float* matrix;  // [pixels, channels of all groups]
  int all_channels, pixels, place, pixel;
  bool channel_there;

  __device__ __forceinline__ PixelColumns(const float* matrix, int group, int all_channels,
                                          int channel, int channels, int pixel, int pixels)
      : matrix(matrix), all_channels(all_channels), pixels(pixels), pixel(pixel + Lines::k),
        channel_there(channel + Lines::row < channels) {
    place = this->pixel * all_channels + group + channel + Lines::row;
  }

  __device__ __forceinline__ void fetch(float* tile) {
#pragma unroll
    for (int visit = 0; visit < Lines::VISITS; ++visit) {
      copy_group(Lines::place(tile, visit), matrix, place, channel_there & (pixel < pixels));
      pixel += Lines::LINES;
      place += Lines::LINES * all_channels;
    }
  }
};

template <int SIDE>
struct WindowColumns : AlongRows<SIDE> {
  using Lines = AlongRows<SIDE>;

  const float* images;
  Windows windows;  // with divide = 1
  int count;        // images
  int first_h, first_w, channel;  // of the thread's tap: the same in all rounds
  bool tap_there;
  int n, i, j;  // the window

  // Columns from `column` on, of R S inner; the reduction from `window` on.
  __device__ __forceinline__ WindowColumns(const float* images, int group, int count,
                                           const Windows& windows, int column, int window)
      : images(images), windows(windows), count(count) {
    column += Lines::row;
    int tap = column / windows.inner, r = tap / windows.S;
    channel = group + column - tap * windows.inner;
    tap_there = r < windows.R;
    first_h = windows.first_h + r * windows.step_h;
    first_w = windows.first_w + (tap - r * windows.S) * windows.step_w;
    window += Lines::k;
    i = window / windows.columns;
    j = window - i * windows.columns;
    n = i / windows.rows;
    i -= n * windows.rows;
  }

  __device__ __forceinline__ void fetch(float* tile) {
#pragma unroll
    for (int visit = 0; visit < Lines::VISITS; ++visit) {
      int h = i * windows.stride_h + first_h, w = j * windows.stride_w + first_w;
      bool there = tap_there & (n < count) & inside(h, windows.height) & inside(w, windows.width);
      int pixel = (n * windows.height + h) * windows.width + w;
      copy_group(Lines::place(tile, visit), images, pixel * windows.channels + channel, there);
      j += Lines::LINES;
      while (j >= windows.columns) {
        j -= windows.columns;
        if (++i == windows.rows) {
          i = 0;
          ++n;
        }
      }
    }
  }
};
