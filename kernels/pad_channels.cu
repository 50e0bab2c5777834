// Images channels last, their channels made up to a multiple of four with zeros:
//
//   wide[n,p,c] = x[n,c,p] where c < channels, else 0    wide [N,pixels,wanted], x in any layout
//
// Tensor cores are fed four channels at a time. Photographs have three. Batches of the loader lie
// so from the beginning (batch.cu); this is for images from elsewhere, for the weights of the first
// layer, and for those that shall be bfloat16. For 128 photographs of 224x224 pixels it reads
// 128*224*224*3*4 = 77.1 MB and writes 102.8 MB, as bfloat16 51.4 MB; to reorder first, and widen
// then, would move 154.1 MB more; to round first, 77.1 MB.
//
// One version: neighbouring threads write neighbours, and what they read of a plane is neighbours.
#include "bfloat16.cuh"

// x[n,c,p] lies at image_step * n + channel_step * c + pixel_step * p.
KERNEL_FOR(float, bfloat16) __launch_bounds__(256)
pad_channels(const float* __restrict__ x, T* __restrict__ wide, int size, int channels, int wanted,
             int pixels, int image_step, int channel_step, int pixel_step) {
  const int index = blockIdx.x * blockDim.x + threadIdx.x;
  if (index >= size) return;
  const int place = index / wanted, c = index % wanted;
  const int n = place / pixels, p = place % pixels;
  wide[index] = c < channels ? x[image_step * n + channel_step * c + pixel_step * p] : 0.0f;
}
