// Weights with the filters innermost, as the gradient of the input sums over them: for tensor
// cores that read factors along the sum (conv_wgmma.cu).
//
//   transposed[g, c, r, s, k] = weight[g * filters + k, r, s, c]
//
// A matrix [filters, channels] is transposed for each group and tap, in squares of 32 through
// shared memory, so that reads and writes both have neighbours side by side. An odd number of words
// to a line keeps the banks apart. conv2 to conv5 have 15 MB as floats, read and written in 10
// microseconds of an H100.
#include "bfloat16.cuh"

KERNEL_FOR(float, bfloat16) __launch_bounds__(256)
transpose_filters(const T* __restrict__ weight, T* __restrict__ transposed, int filters,
                  int channels, int taps) {
  __shared__ T square[32][32 + 4 / sizeof(T)];
  const int across = (channels + 31) / 32, squares = (filters + 31) / 32 * across;
  const int at = blockIdx.x % squares, filter = at / across * 32, channel = at % across * 32;
  const int group = blockIdx.x / squares / taps, tap = blockIdx.x / squares % taps;
  const int lane = threadIdx.x % 32;
  for (int line = threadIdx.x / 32; line < 32; line += 8)
    if (filter + line < filters && channel + lane < channels)
      square[line][lane] =
          weight[((group * filters + filter + line) * taps + tap) * channels + channel + lane];
  __syncthreads();
  for (int line = threadIdx.x / 32; line < 32; line += 8)
    if (channel + line < channels && filter + lane < filters)
      transposed[((group * channels + channel + line) * taps + tap) * filters + filter + lane] =
          square[lane][line];
}
