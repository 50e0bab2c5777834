// The second half of a product whose reduction was split among blocks (split-K): add what each part
// found. Always in the same order, so that the result is the same bits in every run, which atomic
// additions would not give.
//
//   y[i] = parts[0][i] + parts[1][i] + ...
//
// There is nothing to climb here: it reads every part once, neighbouring threads neighbouring
// floats. For the weights of conv1, 96 x 11 x 11 x 4 in 66 parts, that is 12.3 MB. The sums of a
// forward pass and of Hopper's input gradient, of fewer parts, are finished by the last block to
// arrive (last_block.cuh).
extern "C" __global__ void __launch_bounds__(256)
split_sum(const float* __restrict__ parts, float* __restrict__ y, int splits, int size) {
  const int i = blockIdx.x * 256 + threadIdx.x;
  if (i >= size) return;
  float sum = 0;
  for (int split = 0; split < splits; ++split) sum += parts[split * size + i];
  y[i] = sum;
}
