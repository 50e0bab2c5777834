// The pixels under the windows of a convolution: the arithmetic behind tensor_fetch.cuh.
#pragma once
#include "convolution.cuh"

// Windows over images [N, height, width, channels]: with its tap (r, s), window (n, i, j) meets the
// pixel ((i * stride + first + r * step) / divide, the same along j); none if that leaves a
// remainder or the image. The forward pass looks at x like that, with divide = 1. The gradient of x
// looks at dy like that, with stride 1 and step < 0: line h of x was met by line
// (h + top - r * dilation) / stride of y. (With stride 2, three quarters of its products are with
// zeros: correct, but wasteful.)
struct Windows {
  int height, width, channels, inner;  // of the images; channels that one window meets: a group's
  int filled;                          // channels of a pixel that count; the others read as zeros
  int R, S;
  int rows, columns;  // windows of an image
  int stride_h, stride_w, first_h, first_w, step_h, step_w, divide_h, divide_w;
};

__device__ __forceinline__ Windows windows_of_y(const ConvShape& s) {
  return {s.H,        s.W,        s.C,    s.C / s.groups, s.filled, s.R, s.S, s.Ho, s.Wo,
          s.stride_h, s.stride_w, -s.top, -s.left,        s.dilation_h, s.dilation_w, 1,    1};
}

__device__ __forceinline__ Windows windows_of_dx(const ConvShape& s) {
  return {s.Ho, s.Wo, s.K,   s.K / s.groups, s.K, s.R, s.S, s.H, s.W,
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

// A number in mixed radix, a base for each digit: (high * middles + middle) * lows + low. Divisions
// are slow: places along the reduction are taken apart once, then added to.
struct MixedRadix {
  int high, middle, low;

  static __device__ __forceinline__ MixedRadix of(int number, int middles, int lows) {
    int upper = number / lows, high = upper / middles;
    return {high, upper - high * middles, number - upper * lows};
  }

  __device__ __forceinline__ void add(const MixedRadix& step, int middles, int lows) {
    low += step.low;
    middle += step.middle;
    high += step.high;
    if (low >= lows) {
      low -= lows;
      ++middle;
    }
    if (middle >= middles) {
      middle -= middles;
      ++high;
    }
  }
};

// A line of pixels outside of any image, and still so when a tap is added, or another such line.
constexpr int NOWHERE = -(1 << 30);
