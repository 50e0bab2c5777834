// The windows of max-pooling: the pixels of a window, and the windows of a pixel.
//
// Images are [N,H,W,C], pooled images [N,Ho,Wo,C]. Window (i, j) has R x S taps; tap (r, s), whose
// number is r * S + s, lies on the pixel
//
//   h = i * stride_h - top + r * dilation_h,    w = j * stride_w - left + s * dilation_w
//
// if that is inside the image; else it lies on padding, which takes no part.
#pragma once
#include "bfloat16.cuh"

struct PoolShape {
  int N, H, W, C;          // images, their height, width and channels
  int Ho, Wo;              // height and width of the pooled images
  int R, S;                // height and width of a window
  int stride_h, stride_w;  // pixels from one window to the next
  int top, left;           // rows and columns of padding before the image
  int dilation_h, dilation_w;
};

struct Range {
  int first, stop;
};

// The taps of one axis that lie inside: tap t is at `start + t * dilation`, of `size` pixels.
__device__ __forceinline__ Range taps_inside(int start, int dilation, int taps, int size) {
  Range inside = {0, taps};
  // Divisions are slow, and only windows at the border need them.
  if (start < 0) inside.first = (dilation - 1 - start) / dilation;
  if (start + (taps - 1) * dilation >= size) inside.stop = (size - 1 - start + dilation) / dilation;
  return inside;
}

// The last window of one axis that begins at or before a place, which is counted from the padding's
// beginning. The windows that hold the place are this one and those before it that reach so far.
__device__ __forceinline__ int last_window(unsigned place, unsigned stride, int windows) {
  return min(windows - 1, static_cast<int>(place / stride));  // unsigned divisions are shorter
}

// True if a value beats the best so far: a larger one does, so that the first of equal values wins;
// and NaN beats anything but NaN.
template <typename T>
__device__ __forceinline__ bool takes(T value, T best) {
  return !(value <= best) && best == best;
}

template <typename T>
struct Winner {
  T value;
  int tap;
};

// The maximum of window (i, j) and the tap that holds it. `value(h, w)` returns the pixel's value.
template <typename T, typename Value>
__device__ Winner<T> max_of_window(const PoolShape& shape, int i, int j, Value value) {
  const int top = i * shape.stride_h - shape.top, left = j * shape.stride_w - shape.left;
  Winner<T> best = {-1 / T(0), -1};  // minus infinity, at no tap yet
  for (int r = 0; r < shape.R; ++r) {
    for (int s = 0; s < shape.S; ++s) {
      const int h = top + r * shape.dilation_h, w = left + s * shape.dilation_w;
      if (h < 0 || h >= shape.H || w < 0 || w >= shape.W) continue;
      const T candidate = value(h, w);
      if (best.tap < 0 || takes(candidate, best.value)) best = {candidate, r * shape.S + s};
    }
  }
  // A dilated window can have all its taps in the padding.
  return {best.value, max(best.tap, 0)};
}

// The gradient of pixel (h, w) of image n: the sum over the windows that it won, the last first.
template <typename T, typename Tap>
__device__ Compute<T> gradient_of_pixel(const PoolShape& shape, const T* grad, const Tap* taps,
                                        int n, int h, int w, int c) {
  const int down = h + shape.top, right = w + shape.left;  // places counted with the padding
  const int last_i = last_window(down, shape.stride_h, shape.Ho);
  const int last_j = last_window(right, shape.stride_w, shape.Wo);
  Compute<T> sum = 0;
  for (int i = last_i; i >= 0; --i) {
    const int below = down - i * shape.stride_h;
    if (below > (shape.R - 1) * shape.dilation_h) break;  // this window ends above the pixel
    for (int j = last_j; j >= 0; --j) {
      const int beside = right - j * shape.stride_w;
      if (beside > (shape.S - 1) * shape.dilation_w) break;
      if (below % shape.dilation_h || beside % shape.dilation_w) continue;  // between two taps
      const int tap = below / shape.dilation_h * shape.S + beside / shape.dilation_w;
      const int window = ((n * shape.Ho + i) * shape.Wo + j) * shape.C + c;
      if (taps[window] == tap) sum += grad[window];
    }
  }
  return sum;
}
