// Convolution by way of columns: every window written out as a row, then one matrix product.
//
//   im2col:  columns[g, (n,i,j), (r,s,c)] = x[n, i*stride + r*dilation - top,
//                                                j*stride + s*dilation - left, g*C/G + c]
//   col2im:  dx[n,h,w,c] = sum of columns over all places to which im2col copies x[n,h,w,c]
//
// Pixels outside the image count as 0. With them, and weight as the matrix filters x (r,s,c):
//   y = columns @ weight^T,   dx = col2im(dy @ weight),   dweight = dy^T @ columns
// for each group g. This is how Caffe computed AlexNet: the product is left to a library that does
// it as well as can be done, and what remains are two copies that anyone can write.
//
// Its cost is the columns. conv2 of the paper at a batch of 128 (27x27 pixels, 96 channels, 5x5)
// has 128*27*27 windows of 5*5*96 values: 896 MB in float32, for images of 36 MB, written by im2col
// and read by the product. The tiled kernel of conv_forward.cu never writes them down. Here,
// columns are made for a few images at a time.
//
// tinyalex computes convolutions this way in float64, where a library's exact product is what is
// wanted, and in float32 where a group's channels or filters are no multiple of four. There is one
// version: a copy has nothing to climb. Neighbouring threads copy neighbouring channels, so that
// memory is read and written in long runs.

#include "convolution.cuh"
#include "kernel.cuh"

KERNEL_FOR(float, double) __launch_bounds__(256)
im2col(const T* x, T* columns, ConvShape p) {
  const int channels = p.C / p.groups;
  const int index = blockIdx.x * blockDim.x + threadIdx.x;
  if (index >= p.groups * p.N * p.Ho * p.Wo * p.R * p.S * channels) return;
  const int c = index % channels, tap = index / channels % (p.R * p.S);
  const int window = index / channels / (p.R * p.S);
  const int j = window % p.Wo, i = window / p.Wo % p.Ho, n = window / p.Wo / p.Ho % p.N;
  const int group = window / p.Wo / p.Ho / p.N;
  const int h = i * p.stride_h + tap / p.S * p.dilation_h - p.top;
  const int w = j * p.stride_w + tap % p.S * p.dilation_w - p.left;
  const bool inside = 0 <= h && h < p.H && 0 <= w && w < p.W;
  columns[index] = inside ? x[((n * p.H + h) * p.W + w) * p.C + group * channels + c] : T(0);
}

// One thread per channel of a pixel: it collects what im2col scattered. With one thread per element
// of a column, several threads would add to one pixel at once.
KERNEL_FOR(float, double) __launch_bounds__(256)
col2im(const T* columns, T* dx, ConvShape p) {
  const int index = blockIdx.x * blockDim.x + threadIdx.x;
  if (index >= p.N * p.H * p.W * p.C) return;
  const int c = index % p.C, w = index / p.C % p.W, h = index / p.C / p.W % p.H;
  const int n = index / p.C / p.W / p.H;
  const int channels = p.C / p.groups, group = c / channels;
  T sum = 0;
  for (int r = 0; r < p.R; ++r) {
    const int down = h + p.top - r * p.dilation_h, i = down / p.stride_h;
    if (down < 0 || down % p.stride_h || i >= p.Ho) continue;
    for (int s = 0; s < p.S; ++s) {
      const int across = w + p.left - s * p.dilation_w, j = across / p.stride_w;
      if (across < 0 || across % p.stride_w || j >= p.Wo) continue;
      const int window = ((group * p.N + n) * p.Ho + i) * p.Wo + j;
      sum += columns[((window * p.R + r) * p.S + s) * channels + c % channels];
    }
  }
  dx[index] = sum;
}
