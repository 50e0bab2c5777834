// Convolution, the gradient of the images: each output's gradient goes back through its window.
//
//   dx[n,h,w,c] = sum over r, s, k of dy[n,i,j,k] * weight[k,r,s,c % (C/G)]
//
// with k over the filters of c's group, number c / (C/G), and i, j those outputs whose tap (r, s)
// lies on (h, w):
//   i * stride + r * dilation - top = h,   j * stride + s * dilation - left = w,
// if there is such an output. Arrays lie channels last: dy [N,Ho,Wo,K], weight [K,R,S,C/G],
// dx [N,H,W,C].
//
// Written as "each output adds to the pixels of its window", windows that overlap would add to one
// pixel at once. Written as above, each pixel collects its own sum: no two threads write to one
// place, and the order of the additions is always the same.
//
// Cost, for the paper's conv2 at a batch of 128 (27x27 pixels, 96 -> 256 channels, 5x5,
// two groups):
//   2 * 128*27*27 pixels * 96 channels * 5*5*128 terms = 57.3 GFLOP, as in the forward pass
//   dy 128*27*27*256*4 = 95.6 MB, weight 256*5*5*48*4 = 1.2 MB, dx 128*27*27*96*4 = 35.8 MB
//
// Here it is, one thread per element of dx. As tiles it is the forward pass with dy in place of x:
// so the next rung is on tensor cores, in conv_mma.cu.

#include "convolution.cuh"
#include "kernel.cuh"

// The output, along one axis, whose tap at `offset` lies on pixel `at`; -1 if there is none.
__device__ __forceinline__ int output_at(int at, int offset, int stride, int outputs) {
  const int distance = at - offset;
  const int output = distance / stride;
  return distance < 0 || distance % stride || output >= outputs ? -1 : output;
}

// Neighbouring threads have neighbouring channels c: they read the same gradient, and weights that
// lie side by side. What is left to gain is reuse: two reads for every product.

KERNEL_FOR(float, double) __launch_bounds__(256)
conv_input_grad_naive(const T* grad, const T* weight, T* dx, ConvShape p) {
  const int index = blockIdx.x * blockDim.x + threadIdx.x;
  if (index >= p.N * p.H * p.W * p.C) return;
  const int c = index % p.C, w = index / p.C % p.W, h = index / p.C / p.W % p.H;
  const int n = index / p.C / p.W / p.H;
  const int channels = p.C / p.groups, filters = p.K / p.groups;
  const int first = c / channels * filters;
  T sum = 0;
  for (int r = 0; r < p.R; ++r) {
    for (int s = 0; s < p.S; ++s) {
      const int i = output_at(h, r * p.dilation_h - p.top, p.stride_h, p.Ho);
      const int j = output_at(w, s * p.dilation_w - p.left, p.stride_w, p.Wo);
      if (i < 0 || j < 0) continue;
      const T* output = grad + ((n * p.Ho + i) * p.Wo + j) * p.K;
      for (int k = first; k < first + filters; ++k) {
        sum += output[k] * weight[((k * p.R + r) * p.S + s) * channels + c % channels];
      }
    }
  }
  dx[index] = sum;
}
