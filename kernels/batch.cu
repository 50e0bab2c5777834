// Crop, mirror and normalise a batch of photographs (paper sections 2 and 4.1).
//
//   y[n, h, w, c] = (x[n, top_n + h, left_n + w', c] - mean[top_n + h, left_n + w', c]
//                    + shift[n, c]) / scale[c],      w' = w, or crop - 1 - w in a mirrored image
//
// The mean image (the paper's) covers the same pixels as x; without one, the mean colour is part of
// the shift, which is minus the mean plus the colour noise of the image. A network for grey images
// sees the luma of the three colours. The arithmetic is that of tinyalex/data/transforms.py, in its
// order, so that both give the same bits, but for the rounding of the luma.
//
// Done here, not on the host, an image travels as bytes: 128 crops of 224 x 224 x 3 floats would be
// 77.1 MB over a bus that is fifty times slower than the GPU's memory; the 128 x 256 x 256 x 3
// bytes that they are cut from are 25.2 MB. The kernel reads 19.3 MB of those and writes 77.1 MB,
// 102.8 MB where a fourth channel of zeros is wanted (then a pixel is one load of 16 bytes for the
// first convolution).
//
// One version. A block does one row of one image, so that only rows need a division; neighbouring
// threads write neighbouring numbers.

constexpr int THREADS = 64;

// The layout of the pixels. Its Python twin is in tinyalex/backends/cuda/batch.py.
struct BatchShape {
  int H, W, C;   // of the images in x; C is 1 or 3
  int crop;      // height and width of the result
  int channels;  // that the network sees: C, or 1 for the luma of 3
  int stored;    // that the result has; those beyond `channels` are zeros
};

// One number of a pixel, or the luma of its three (ITU-R BT.601).
__device__ __forceinline__ float value(const unsigned char* pixel, int c, const BatchShape& shape) {
  if (shape.channels == shape.C) return pixel[c];
  return 0.299f * pixel[0] + 0.587f * pixel[1] + 0.114f * pixel[2];
}

// places[3 n ...] = top, left, mirrored; mean [H, W, channels] or null; shift [images, channels].
extern "C" __global__ void __launch_bounds__(THREADS)
prepare_rows(const unsigned char* x, const int* places, const float* mean, const float* shift,
             const float* scale, float* y, BatchShape shape) {
  const int n = blockIdx.x / shape.crop, h = blockIdx.x % shape.crop;
  const int top = places[3 * n], left = places[3 * n + 1], mirrored = places[3 * n + 2];
  float* row = y + blockIdx.x * shape.crop * shape.stored;
  for (int i = threadIdx.x; i < shape.crop * shape.stored; i += THREADS) {
    const int w = i / shape.stored, c = i % shape.stored;
    float result = 0;
    if (c < shape.channels) {
      const int column = left + (mirrored ? shape.crop - 1 - w : w);
      const int pixel = (top + h) * shape.W + column;
      result = value(x + (n * shape.H * shape.W + pixel) * shape.C, c, shape);
      if (mean) result -= mean[pixel * shape.channels + c];
      result = (result + shift[n * shape.channels + c]) / scale[c];
    }
    row[i] = result;
  }
}
