// Max-pooling and its gradient (paper, section 3.4).
//
//   y[n,i,j,c] = max over the window's taps (r, s) inside the image of x[n,h,w,c]
//   taps[n,i,j,c] = r * S + s of the tap that held it
//   dx[n,h,w,c] = sum of dy[n,i,j,c] over the windows (i, j) whose winning tap lies on (h, w)
//
// where taps lie is said in window.cuh. The paper's windows are 3 x 3, two pixels apart: they
// overlap, and a pixel lies in one, two or four of them. The gradient is therefore a gather: each
// pixel asks the windows over it whether it won. Scattering from windows to pixels would read less,
// but two windows may hit one pixel at once, and atomic additions come in any order: the sum's last
// bits would differ from run to run.
//
// Bytes, float32, N = 128. Nothing but comparisons is computed: time is bytes.
//
//   pool 1: x 55 x 55 x 96 = 290,400 values per image, y 27 x 27 x 96 = 69,984
//     forward:  128 * (4 * 290,400 read + (4 + 1) * 69,984 written) = 193.5 MB
//     gradient: 128 * ((4 + 1) * 69,984 read + 4 * 290,400 written) = 193.5 MB
//   pool 2: x 27 x 27 x 256 = 186,624, y 13 x 13 x 256 = 43,264: likewise 123.2 MB each way
//
// An H100's memory moves 3.35 TB/s by its data sheet: at the least 58 us and 37 us each way. Not
// yet measured on hardware.
//
// v1  One thread per element of the result; it finds its place by division and looks at each tap.
// v2  Four channels per thread (no double, C a multiple of 4, taps of one byte, in the gradient no
//     dilation). What is the same for all channels of a pixel (place, border, windows over it) is
//     worked out once for four, and loads are four values wide. A block works on one row of the
//     result, so that the row's share of that is worked out once for all the pixels of a thread.
#include "window_quad.cuh"

constexpr int THREADS = 256;

// --- v1: one thread per element ------------------------------------------------------------------

template <class T, class Tap>
__device__ __forceinline__ void pool(const T* x, T* y, Tap* taps, const PoolShape& shape) {
  const int index = blockIdx.x * THREADS + threadIdx.x;
  if (index >= shape.N * shape.Ho * shape.Wo * shape.C) return;
  const int c = index % shape.C, j = index / shape.C % shape.Wo;
  const int row = index / shape.C / shape.Wo, i = row % shape.Ho, n = row / shape.Ho;
  const auto winner = max_of_window<Compute<T>>(shape, i, j, [&](int h, int w) {
    return x[((n * shape.H + h) * shape.W + w) * shape.C + c];
  });
  y[index] = winner.value;
  taps[index] = winner.tap;
}

KERNEL_FOR(float, double, bfloat16) __launch_bounds__(THREADS)
max_pool(const T* x, T* y, unsigned char* taps, PoolShape shape) {
  pool(x, y, taps, shape);
}

// Windows of more than 256 taps.
KERNEL_FOR(float, double, bfloat16) __launch_bounds__(THREADS)
max_pool_large(const T* x, T* y, unsigned short* taps, PoolShape shape) {
  pool(x, y, taps, shape);
}

template <class T, class Tap>
__device__ __forceinline__ void pool_grad(const T* grad, const Tap* taps, T* dx,
                                          const PoolShape& shape) {
  const int index = blockIdx.x * THREADS + threadIdx.x;
  if (index >= shape.N * shape.H * shape.W * shape.C) return;
  const int c = index % shape.C, w = index / shape.C % shape.W;
  const int row = index / shape.C / shape.W, h = row % shape.H, n = row / shape.H;
  dx[index] = gradient_of_pixel(shape, grad, taps, n, h, w, c);
}

KERNEL_FOR(float, double, bfloat16) __launch_bounds__(THREADS)
max_pool_grad(const T* grad, const unsigned char* taps, T* dx, PoolShape shape) {
  pool_grad(grad, taps, dx, shape);
}

KERNEL_FOR(float, double, bfloat16) __launch_bounds__(THREADS)
max_pool_grad_large(const T* grad, const unsigned short* taps, T* dx, PoolShape shape) {
  pool_grad(grad, taps, dx, shape);
}

// --- v2: four channels per thread, one row of the result per block -------------------------------
//
// threadIdx.x counts the quads of a pixel, threadIdx.y the pixels of the row.

KERNEL_FOR(float, bfloat16) __launch_bounds__(THREADS)
max_pool_quads(const T* __restrict__ x, T* __restrict__ y, unsigned char* __restrict__ taps,
               PoolShape shape) {
  const int n = blockIdx.x / shape.Ho, i = blockIdx.x % shape.Ho;
  const Range rows =
      taps_inside(i * shape.stride_h - shape.top, shape.dilation_h, shape.R, shape.H);
  for (int j = threadIdx.y; j < shape.Wo; j += blockDim.y) {
    const Range columns =
        taps_inside(j * shape.stride_w - shape.left, shape.dilation_w, shape.S, shape.W);
    for (int c = 4 * threadIdx.x; c < shape.C; c += 4 * blockDim.x) {
      const QuadWinner winner = max_of_window(shape, i, j, rows, columns, [&](int h, int w) {
        return load(x + ((n * shape.H + h) * shape.W + w) * shape.C + c);
      });
      const int index = (blockIdx.x * shape.Wo + j) * shape.C + c;
      store(y + index, winner.value);
      store_taps(taps + index, winner.tap);
    }
  }
}

KERNEL_FOR(float, bfloat16) __launch_bounds__(THREADS)
max_pool_grad_quads(const T* __restrict__ grad, const unsigned char* __restrict__ taps,
                    T* __restrict__ dx, PoolShape shape) {
  const int n = blockIdx.x / shape.H, down = blockIdx.x % shape.H + shape.top;
  const int last_i = last_window(down, shape.stride_h, shape.Ho);
  for (int w = threadIdx.y; w < shape.W; w += blockDim.y) {
    for (int c = 4 * threadIdx.x; c < shape.C; c += 4 * blockDim.x) {
      store(dx + (blockIdx.x * shape.W + w) * shape.C + c,
            gradient_of_pixel(shape, grad, taps, n, last_i, down, w + shape.left, c));
    }
  }
}
