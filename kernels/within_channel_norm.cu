// Response normalisation within each channel (the 2012 source's rnorm) and its gradient.
//
//   y = x s^-beta,    s = k + alpha / size^2 * sum of x^2 over the size x size pixels around it
//   dx_j = dy_j s_j^-beta - 2 beta alpha / size^2 * x_j * sum of dy_i x_i s_i^(-beta-1)
//          over all i whose window holds j, which are the pixels of the window around j
//
// `size` is odd, pixels outside the image count as zero. The gradient's sum needs s of all pixels
// around, and so does each of theirs: to compute those anew takes size^4 reads per value. Instead
// there are two kernels. The first leaves dy x s^(-beta-1) in memory, and the first term in dx; the
// second subtracts the sum.
//
// Bytes, float32, N = 128, x 27 x 27 x 256 (95.6 MB per array):
//
//   forward:  x read, y written                                    2 * 95.6 = 191.1 MB
//   gradient: dy, x read, products, dx written; products, x, dx read, dx written
//                                                                  8 * 95.6 = 764.4 MB
//
// At the 3.35 TB/s of an H100's data sheet: at the least 57 us and 228 us. That counts each array
// once: a value is read size^2 times, by the threads of the pixels around it, mostly from caches.
// Not yet measured on hardware.
//
// v1  One thread per value.
// v2  Four channels per thread (float, C a multiple of 4): a quarter of the loads, 16 bytes each,
//     and a block does one row of an image, so that places are not found by division. The network
//     of the paper does not have this layer, so here the climb ends.
#include "response_norm.cuh"

constexpr int THREADS = 256;

struct Images {
  int N, H, W, C;
};

// Call `visit(pixel)` for the pixels of the window around pixel (h, w) of image n.
template <typename Visit>
__device__ __forceinline__ void for_pixels_around(const Images& images, int n, int h, int w,
                                                  int size, Visit visit) {
  const int reach = size / 2;
  const int bottom = min(images.H - 1, h + reach), right = min(images.W - 1, w + reach);
  for (int row = max(0, h - reach); row <= bottom; ++row) {
    for (int column = max(0, w - reach); column <= right; ++column) {
      visit((n * images.H + row) * images.W + column);
    }
  }
}

// --- v1: one thread per value --------------------------------------------------------------------

// The sum over the window around value `index` of `values`, or of their squares.
template <bool SQUARES, typename T>
__device__ __forceinline__ T sum_around(const T* values, const Images& images, int index,
                                        int size) {
  const int c = index % images.C, w = index / images.C % images.W;
  const int row = index / images.C / images.W, h = row % images.H, n = row / images.H;
  T sum = 0;
  for_pixels_around(images, n, h, w, size, [&](int pixel) {
    const T value = values[pixel * images.C + c];
    sum += SQUARES ? value * value : value;
  });
  return sum;
}

KERNEL_FOR(float, double) __launch_bounds__(THREADS)
within_channel_norm(const T* x, T* y, int size, T ratio, T beta, T k, Images images) {
  const int index = blockIdx.x * THREADS + threadIdx.x;
  if (index >= images.N * images.H * images.W * images.C) return;
  const T s = k + ratio * sum_around<true>(x, images, index, size);
  y[index] = x[index] * powers(s, beta).value;
}

KERNEL_FOR(float, double) __launch_bounds__(THREADS)
within_channel_products(const T* grad, const T* x, T* products, T* dx, int size, T ratio, T beta,
                        T k, Images images) {
  const int index = blockIdx.x * THREADS + threadIdx.x;
  if (index >= images.N * images.H * images.W * images.C) return;
  const T s = k + ratio * sum_around<true>(x, images, index, size);
  const Powers<T> p = powers(s, beta);
  products[index] = grad[index] * x[index] * p.slope;
  dx[index] = grad[index] * p.value;
}

// `factor` is 2 beta alpha / size^2.
KERNEL_FOR(float, double) __launch_bounds__(THREADS)
within_channel_grad(const T* products, const T* x, T* dx, int size, T factor, Images images) {
  const int index = blockIdx.x * THREADS + threadIdx.x;
  if (index >= images.N * images.H * images.W * images.C) return;
  dx[index] -= factor * x[index] * sum_around<false>(products, images, index, size);
}

// --- v2: four channels per thread, one row of an image per block ---------------------------------
//
// threadIdx.x counts the quads of a pixel, threadIdx.y the pixels of the row.

// Call `work(index, sum)` for each quad of the block's row, with the index of its first value and
// the sums over the windows around its four values of `values`, or of their squares.
template <bool SQUARES, typename Work>
__device__ __forceinline__ void for_quads_of_row(const float* values, const Images& images,
                                                 int size, Work work) {
  const int n = blockIdx.x / images.H, h = blockIdx.x % images.H;
  for (int w = threadIdx.y; w < images.W; w += blockDim.y) {
    for (int c = 4 * threadIdx.x; c < images.C; c += 4 * blockDim.x) {
      Quad sum = {};
      for_pixels_around(images, n, h, w, size, [&](int pixel) {
        const Quad value = load(values + pixel * images.C + c);
#pragma unroll
        for (int e = 0; e < 4; ++e) sum.at[e] += SQUARES ? value.at[e] * value.at[e] : value.at[e];
      });
      work((blockIdx.x * images.W + w) * images.C + c, sum);
    }
  }
}

extern "C" __global__ void __launch_bounds__(THREADS)
within_channel_norm_quads(const float* __restrict__ x, float* __restrict__ y, int size, float ratio,
                          float beta, float k, Images images) {
  for_quads_of_row<true>(x, images, size, [&](int index, const Quad& sum) {
    Quad value = load(x + index);
#pragma unroll
    for (int e = 0; e < 4; ++e) value.at[e] *= powers(k + ratio * sum.at[e], beta).value;
    store(y + index, value);
  });
}

extern "C" __global__ void __launch_bounds__(THREADS)
within_channel_products_quads(const float* __restrict__ grad, const float* __restrict__ x,
                              float* __restrict__ products, float* __restrict__ dx, int size,
                              float ratio, float beta, float k, Images images) {
  for_quads_of_row<true>(x, images, size, [&](int index, const Quad& sum) {
    const Quad value = load(x + index);
    Quad slope = load(grad + index), product;
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const Powers<float> p = powers(k + ratio * sum.at[e], beta);
      product.at[e] = slope.at[e] * value.at[e] * p.slope;
      slope.at[e] *= p.value;
    }
    store(products + index, product);
    store(dx + index, slope);
  });
}

extern "C" __global__ void __launch_bounds__(THREADS)
within_channel_grad_quads(const float* __restrict__ products, const float* __restrict__ x,
                          float* __restrict__ dx, int size, float factor, Images images) {
  for_quads_of_row<false>(products, images, size, [&](int index, const Quad& sum) {
    const Quad value = load(x + index);
    Quad slope = load(dx + index);
#pragma unroll
    for (int e = 0; e < 4; ++e) slope.at[e] -= factor * value.at[e] * sum.at[e];
    store(dx + index, slope);
  });
}
