// The second half of a product whose reduction was split among blocks (split-K): add what each part
// found. Always in the same order, so that the result is the same bits in every run, which atomic
// additions would not give.
//
//   y[i] = ReLU(parts[0][i] + parts[1][i] + ... + bias[i % channels])
//
// There is nothing to climb here: it reads every part once, neighbouring threads neighbouring
// floats. For fc6 of 128 images in 8 parts that is 8 x 128 x 4096 floats = 16.8 MB, a ninth of the
// weights' 151 MB.

// `bias` [channels] or null; `relu` is 0 or 1. A NaN stays one.
extern "C" __global__ void __launch_bounds__(256)
    split_sum(const float* __restrict__ parts, const float* __restrict__ bias,
              float* __restrict__ y, int splits, int size, int channels, int relu) {
  const int i = blockIdx.x * 256 + threadIdx.x;
  if (i >= size) return;
  float sum = 0;
  for (int split = 0; split < splits; ++split) sum += parts[split * size + i];
  if (bias) sum += bias[i % channels];
  y[i] = relu && sum <= 0 ? 0.f : sum;
}
