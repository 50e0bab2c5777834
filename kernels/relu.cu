// ReLU and its gradient (paper section 3.1), element by element:
//
//   y = max(x, 0)        dx = dy where y > 0, else 0
//
// Both are written as a question whether the value is <= 0: for NaN the answer is no, so NaN stays
// NaN and lets its gradient through, and a network that diverged cannot look healthy.
//
// One addition's worth of work for 8 bytes (forward) or 12 bytes (backward) of float32: memory
// decides alone. After the paper's conv1, 128 x 96 x 55 x 55 = 37.2 million elements: 297 MB
// forward, 446 MB backward. So there is one version. The gain lies in not running it at all: the
// convolutions apply the ReLU to sums that they still hold in registers.
#include "four.cuh"

constexpr int THREADS = 256;

KERNEL_FOR(float, double, bfloat16) __launch_bounds__(THREADS)
relu(const T* x, T* y, unsigned count) {
  const unsigned first = first_of_four();
  if (first >= count) return;
  Four<Compute<T>> four = load_four(x, first, count);
#pragma unroll
  for (Compute<T>& value : four.at) value = value <= 0 ? 0 : value;
  store_four(y, first, count, four);
}

KERNEL_FOR(float, double, bfloat16) __launch_bounds__(THREADS)
relu_input_grad(const T* grad, const T* y, T* dx, unsigned count) {
  const unsigned first = first_of_four();
  if (first >= count) return;
  const Four<Compute<T>> output = load_four(y, first, count);
  Four<Compute<T>> four = load_four(grad, first, count);
#pragma unroll
  for (int i = 0; i < 4; ++i)
    if (output.at[i] <= 0) four.at[i] = 0;
  store_four(dx, first, count, four);
}
