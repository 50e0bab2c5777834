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

template <class T>
__device__ __forceinline__ void relu(const T* x, T* y, unsigned count) {
  const unsigned first = first_of_four();
  if (first >= count) return;
  Four<Compute<T>> four = load_four(x, first, count);
#pragma unroll
  for (Compute<T>& value : four.at) value = value <= 0 ? 0 : value;
  store_four(y, first, count, four);
}

template <class T>
__device__ __forceinline__ void input_grad(const T* grad, const T* y, T* dx, unsigned count) {
  const unsigned first = first_of_four();
  if (first >= count) return;
  const Four<Compute<T>> output = load_four(y, first, count);
  Four<Compute<T>> four = load_four(grad, first, count);
#pragma unroll
  for (int i = 0; i < 4; ++i)
    if (output.at[i] <= 0) four.at[i] = 0;
  store_four(dx, first, count, four);
}

extern "C" __global__ void __launch_bounds__(THREADS)
relu_float(const float* x, float* y, int count) {
  relu(x, y, count);
}

extern "C" __global__ void __launch_bounds__(THREADS)
relu_double(const double* x, double* y, int count) {
  relu(x, y, count);
}

extern "C" __global__ void __launch_bounds__(THREADS)
relu_bfloat16(const bfloat16* x, bfloat16* y, int count) {
  relu(x, y, count);
}

extern "C" __global__ void __launch_bounds__(THREADS)
relu_input_grad_float(const float* grad, const float* y, float* dx, int count) {
  input_grad(grad, y, dx, count);
}

extern "C" __global__ void __launch_bounds__(THREADS)
relu_input_grad_double(const double* grad, const double* y, double* dx, int count) {
  input_grad(grad, y, dx, count);
}

extern "C" __global__ void __launch_bounds__(THREADS)
relu_input_grad_bfloat16(const bfloat16* grad, const bfloat16* y, bfloat16* dx, int count) {
  input_grad(grad, y, dx, count);
}
