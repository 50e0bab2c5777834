// Convolution, the gradient of the weights: each output's gradient times the window that it saw.
//
//   dweight[k,r,s,c] = sum over n, i, j of dy[n,i,j,k]
//                                          * x[n, i*stride + r*dilation - top,
//                                                 j*stride + s*dilation - left, g*C/G + c]
//
// where pixels outside the image count as 0, and g = k / (K/G) is the group of filter k. Arrays lie
// channels last: dy [N,Ho,Wo,K], x [N,H,W,C], dweight [K,R,S,C/G].
//
// Cost, for the paper's conv2 at a batch of 128 (27x27 pixels, 96 -> 256 channels, 5x5,
// two groups):
//   2 * 256*5*5*48 weights * 128*27*27 terms = 57.3 GFLOP, as in the forward pass
//   dy 128*27*27*256*4 = 95.6 MB, x 128*27*27*96*4 = 35.8 MB, dweight 256*5*5*48*4 = 1.2 MB
// The shape is what differs: few results, each the sum of 128*27*27 = 93312 products.
//
// Here it is, one thread per weight. The next rung, on tensor cores, splits the sums among many
// blocks: conv_mma.cu.

#include "convolution.cuh"
#include "kernel.cuh"

// conv2 has 307200 weights, so 307200 threads: about what one GPU runs at a time (an H100 has 132
// multiprocessors for 2048 threads each: 270336). But each reads 2 * 93312 values, most of them
// fetched by hundreds of others as well. And in float32 one long sum loses accuracy: each addition
// rounds to the size that the sum has by then.

KERNEL_FOR(float, double) __launch_bounds__(256)
conv_weight_grad_naive(const T* grad, const T* x, T* dweight, ConvShape p) {
  const int channels = p.C / p.groups;
  const int index = blockIdx.x * blockDim.x + threadIdx.x;
  if (index >= p.K * p.R * p.S * channels) return;
  const int c = index % channels, s = index / channels % p.S, r = index / channels / p.S % p.R;
  const int k = index / channels / p.S / p.R, first = k / (p.K / p.groups) * channels;
  T sum = 0;
  for (int n = 0; n < p.N; ++n) {
    for (int i = 0; i < p.Ho; ++i) {
      const int h = i * p.stride_h + r * p.dilation_h - p.top;
      if (h < 0 || h >= p.H) continue;
      for (int j = 0; j < p.Wo; ++j) {
        const int w = j * p.stride_w + s * p.dilation_w - p.left;
        if (w < 0 || w >= p.W) continue;
        sum += grad[((n * p.Ho + i) * p.Wo + j) * p.K + k] *
               x[((n * p.H + h) * p.W + w) * p.C + first + c];
      }
    }
  }
  dweight[index] = sum;
}
