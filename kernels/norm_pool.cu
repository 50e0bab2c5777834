// Local response normalisation and the max-pooling after it, in one pass each way; and the gradient
// of ReLU before them with it.
//
//   forward:   x -> z = local_response_norm(x) -> y, taps = max_pool(z)
//   gradient:  dy, taps -> dz (as in max_pool.cu) -> dx (as in local_response_norm.cu)
//   with ReLU: where x is the output of ReLU, the gradient before it is dx where not x <= 0, else 0
//              (x > 0 exactly where ReLU's input is), and that of a bias added before it is, for
//              each channel, the sum of this over images and pixels
//
// Formulas: window.cuh and response_norm.cuh. Neither z nor dz ever goes to memory.
//
// Bytes, float32, N = 128, layer 1 (x 55 x 55 x 96 = 290,400 values per image, 148.7 MB in all;
// y 27 x 27 x 96, 35.8 MB; taps one byte each, 9.0 MB):
//
//   forward:   x read, y and taps written:           148.7 + 35.8 + 9.0         = 193.5 MB
//              apart (norm, then pool):              297.4 + 193.5              = 490.9 MB
//   gradient:  x, dy and taps read, dx written:      2 * 148.7 + 35.8 + 9.0     = 342.2 MB
//              apart (pool, norm, ReLU with bias):   193.5 + 446.1 + 446.1      = 1085.7 MB
//              The bias costs 128 * 55 rows of 96 partial sums more, 2.7 MB.
//
// Layer 2 (x 27 x 27 x 256, 95.6 MB; y 13 x 13 x 256, 22.2 MB; taps 5.5 MB): 123.2 MB forward,
// 218.8 MB for the gradient. At the 3.35 TB/s of an H100's data sheet layer 1 takes 58 us and
// 102 us at the least, layer 2 37 us and 65 us. Not yet measured on hardware.
//
// s is computed anew everywhere, from x, which is read anyway: see response_norm.cuh.
//
// v1  One thread per element of the result. Forward, it normalises its window's pixels: a pixel
//     in four windows is normalised four times. The gradient asks, for each of `size` channels, the
//     windows that hold it, and computes s from that channel's neighbours.
// v2  Four channels per thread (no double, a multiple of 4 in a group), shared memory between
//     the two operations. Forward: a block normalises the pixels under a tile of windows into
//     shared memory, and pools from there; only pixels at the tile's rim are normalised again, by
//     the next block. A tile of 5 x 14 of the paper's windows lies on 11 * 29 pixels, where
//     10 * 28 would be its share: 1.14 times the work, and not 9 / 4 = 2.25 times.
//     Gradient: a block does one row of an image, some pixels with all their channels at a time.
#include "response_norm.cuh"
#include "window_quad.cuh"

constexpr int THREADS = 256;

// --- v1: one thread per element ------------------------------------------------------------------

KERNEL_FOR(float, double, bfloat16) __launch_bounds__(THREADS)
norm_max_pool(const T* x, T* y, unsigned char* taps, int width, int size, Compute<T> ratio,
              Compute<T> beta, Compute<T> k, PoolShape shape) {
  const Norm<Compute<T>> norm = {width, size, ratio, beta, k};
  const int index = blockIdx.x * THREADS + threadIdx.x;
  if (index >= shape.N * shape.Ho * shape.Wo * shape.C) return;
  const int c = index % shape.C, j = index / shape.C % shape.Wo;
  const int row = index / shape.C / shape.Wo, i = row % shape.Ho, n = row / shape.Ho;
  const int place = c % norm.width;  // in its line
  const auto winner = max_of_window<Compute<T>>(shape, i, j, [&](int h, int w) {
    return normalised(x + ((n * shape.H + h) * shape.W + w) * shape.C + c - place, place, norm);
  });
  y[index] = winner.value;
  taps[index] = winner.tap;
}

// Asked for no more than 4 blocks per multiprocessor, the compiler keeps doubles in registers.
KERNEL_FOR(float, double, bfloat16) __launch_bounds__(THREADS, 4)
norm_max_pool_grad(const T* grad, const unsigned char* taps, const T* x, T* dx, int width, int size,
                   Compute<T> ratio, Compute<T> beta, Compute<T> k, PoolShape shape) {
  const Norm<Compute<T>> norm = {width, size, ratio, beta, k};
  const int index = blockIdx.x * THREADS + threadIdx.x;
  if (index >= shape.N * shape.H * shape.W * shape.C) return;
  const int c = index % shape.C, w = index / shape.C % shape.W;
  const int row = index / shape.C / shape.W, h = row % shape.H, n = row / shape.H;
  const int place = c % norm.width;  // in its line
  dx[index] = normalised_grad(x + index - place, place, norm, [&](int j) {
    return gradient_of_pixel(shape, grad, taps, n, h, w, c - place + j);
  });
}

// --- v2, forward: a tile of windows a block ------------------------------------------------------
//
// A block has `tile_h` x `tile_w` windows, and a slice of eight quads of the channels, of which
// threadIdx.x is one. Eight times 16 bytes are a line of the cache, and one access to all banks of
// shared memory: windows may lie as they will, no two threads of an access want the same bank.
// threadIdx.y first counts the columns of pixels under the tile, and each thread walks down its
// column: all that is the same for a column is worked out once. Then it counts windows; blockDim.y
// is at least `tile_w`.

constexpr int SLICE = 8;  // quads

KERNEL_FOR(float, bfloat16) __launch_bounds__(THREADS)
norm_max_pool_quads(const T* __restrict__ x, T* __restrict__ y, unsigned char* __restrict__ taps,
                    int width, int size, float ratio, float beta, float k, int tile_h, int tile_w,
                    PoolShape shape) {
  const Norm<float> norm = {width, size, ratio, beta, k};
  extern __shared__ float4 tile[];  // [rows][columns][SLICE], normalised
  const int slices = (shape.C / 4 + SLICE - 1) / SLICE;
  const int tiles_w = (shape.Wo + tile_w - 1) / tile_w, tiles_h = (shape.Ho + tile_h - 1) / tile_h;
  int block = blockIdx.x;
  const int c = 4 * (block % slices * SLICE + threadIdx.x);
  block /= slices;
  const int left_window = block % tiles_w * tile_w;
  block /= tiles_w;
  const int top_window = block % tiles_h * tile_h, n = block / tiles_h;

  // The windows that the image has of this tile, and the pixels under them, from (top, left) on.
  const int windows_h = min(tile_h, shape.Ho - top_window);
  const int windows_w = min(tile_w, shape.Wo - left_window);
  const int top = top_window * shape.stride_h - shape.top;
  const int left = left_window * shape.stride_w - shape.left;
  const int bottom = top + (windows_h - 1) * shape.stride_h + shape.R;
  const int columns = (windows_w - 1) * shape.stride_w + shape.S;
  const int q = c % norm.width / 4;  // the quad in its line

  for (int column = threadIdx.y; column < columns && c < shape.C; column += blockDim.y) {
    const int w = left + column;
    if (w < 0 || w >= shape.W) continue;  // padding, where no window looks
    for (int h = max(0, top); h < min(bottom, shape.H); ++h) {
      const T* const line = x + ((n * shape.H + h) * shape.W + w) * shape.C + c - 4 * q;
      const Quad s = scales(line, q, norm);
      Quad value = load(line + 4 * q);
#pragma unroll
      for (int e = 0; e < 4; ++e) value.at[e] *= powers(s.at[e], norm.beta).value;
      const int place = ((h - top) * columns + column) * SLICE + threadIdx.x;
      store(reinterpret_cast<float*>(tile + place), value);
    }
  }
  __syncthreads();

  const int rows_at_once = blockDim.y / windows_w;
  const int j = left_window + threadIdx.y % windows_w;
  if (threadIdx.y >= rows_at_once * windows_w) return;  // too few are left for one more row
  const Range across = taps_inside(j * shape.stride_w - shape.left, 1, shape.S, shape.W);
  for (int row = threadIdx.y / windows_w; row < windows_h && c < shape.C; row += rows_at_once) {
    const int i = top_window + row;
    const Range down = taps_inside(i * shape.stride_h - shape.top, 1, shape.R, shape.H);
    const QuadWinner winner = max_of_window(shape, i, j, down, across, [&](int h, int w) {
      const int place = ((h - top) * columns + w - left) * SLICE + threadIdx.x;
      return load(reinterpret_cast<const float*>(tile + place));
    });
    const int index = ((n * shape.Ho + i) * shape.Wo + j) * shape.C + c;
    store(y + index, winner.value);
    store_taps(taps + index, winner.tap);
  }
}

// --- v2, gradient: a row of pixels a block -------------------------------------------------------
//
// blockDim.y pixels of the row at a time: threadIdx.x is the quad of the pixel's channels. With
// RELU, each thread also adds up the gradients of its quad of channels over its pixels, and the
// block those of its threads: one row of `bias_sums`, which bias_grad.cu adds up in turn.

template <bool RELU, class T>
__device__ void norm_max_pool_grad_of_row(const T* grad, const unsigned char* taps, const T* x,
                                          T* dx, float* bias_sums, const Norm<float>& norm,
                                          const PoolShape& shape) {
  __shared__ float4 values[THREADS];    // x, then the bias gradients
  __shared__ float4 products[THREADS];  // dz x s^(-beta-1)
  const int c = 4 * threadIdx.x, q = c % norm.width / 4;
  const int own = threadIdx.y * shape.C + c, start = own - 4 * q;  // this quad, and its line
  float* const all_values = reinterpret_cast<float*>(values);
  float* const all_products = reinterpret_cast<float*>(products);
  const int n = blockIdx.x / shape.H, down = blockIdx.x % shape.H + shape.top;
  const int last_i = last_window(down, shape.stride_h, shape.Ho);
  Quad bias = {};

  // All threads make equally many rounds, with or without a pixel: they meet at the barriers.
  for (int first = 0; first < shape.W; first += blockDim.y) {
    const int w = first + threadIdx.y;
    const int index = (blockIdx.x * shape.W + w) * shape.C + c;
    Quad value = {}, slope = {};
    if (w < shape.W) {
      value = load(x + index);
      slope = gradient_of_pixel(shape, grad, taps, n, last_i, down, w + shape.left, c);
    }
    store(all_values + own, value);
    __syncthreads();

    const Quad s = scales(all_values + start, q, norm);
    Quad product;
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const Powers<float> p = powers(s.at[e], norm.beta);
      product.at[e] = slope.at[e] * value.at[e] * p.slope;
      slope.at[e] *= p.value;
    }
    store(all_products + own, product);
    __syncthreads();
    if (w >= shape.W) continue;

    const Quad spread = spreads(all_products + start, q, norm);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      slope.at[e] -= 2 * norm.beta * norm.ratio * value.at[e] * spread.at[e];
      if (RELU) {
        if (value.at[e] <= 0) slope.at[e] = 0;  // a NaN lets it through
        bias.at[e] += slope.at[e];
      }
    }
    store(dx + index, slope);
  }

  if (!RELU) return;
  store(all_values + own, bias);
  __syncthreads();
  if (threadIdx.y > 0) return;
  for (int y = 1; y < blockDim.y; ++y) {
    const Quad other = load(all_values + y * shape.C + c);
#pragma unroll
    for (int e = 0; e < 4; ++e) bias.at[e] += other.at[e];
  }
  store(bias_sums + blockIdx.x * shape.C + c, bias);
}

KERNEL_FOR(float, bfloat16) __launch_bounds__(THREADS)
norm_max_pool_grad_quads(const T* __restrict__ grad, const unsigned char* __restrict__ taps,
                         const T* __restrict__ x, T* __restrict__ dx, int width, int size,
                         float ratio, float beta, float k, PoolShape shape) {
  const Norm<float> norm = {width, size, ratio, beta, k};
  norm_max_pool_grad_of_row<false>(grad, taps, x, dx, nullptr, norm, shape);
}

KERNEL_FOR(float, bfloat16) __launch_bounds__(THREADS)
norm_max_pool_relu_grad_quads(const T* __restrict__ grad, const unsigned char* __restrict__ taps,
                              const T* __restrict__ x, T* __restrict__ dx,
                              float* __restrict__ bias_sums, int width, int size, float ratio,
                              float beta, float k, PoolShape shape) {
  const Norm<float> norm = {width, size, ratio, beta, k};
  norm_max_pool_grad_of_row<true>(grad, taps, x, dx, bias_sums, norm, shape);
}
