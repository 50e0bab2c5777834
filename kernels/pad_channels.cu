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
template <class T>
__device__ __forceinline__ void pad_channels(const float* x, T* wide, int size, int channels,
                                             int wanted, int pixels, int image_step,
                                             int channel_step, int pixel_step) {
  const int index = blockIdx.x * blockDim.x + threadIdx.x;
  if (index >= size) return;
  const int place = index / wanted, c = index % wanted;
  const int n = place / pixels, p = place % pixels;
  wide[index] = c < channels ? x[image_step * n + channel_step * c + pixel_step * p] : 0.0f;
}

extern "C" __global__ void __launch_bounds__(256)
pad_channels_float(const float* __restrict__ x, float* __restrict__ wide, int size, int channels,
                   int wanted, int pixels, int image_step, int channel_step, int pixel_step) {
  pad_channels(x, wide, size, channels, wanted, pixels, image_step, channel_step, pixel_step);
}

extern "C" __global__ void __launch_bounds__(256)
pad_channels_bfloat16(const float* __restrict__ x, bfloat16* __restrict__ wide, int size,
                      int channels, int wanted, int pixels, int image_step, int channel_step,
                      int pixel_step) {
  pad_channels(x, wide, size, channels, wanted, pixels, image_step, channel_step, pixel_step);
}
