// Softmax cross-entropy of logits x [rows, classes] against class indices t [rows]:
//
//   log p_c = x_c - m - log(sum over j of exp(x_j - m)),    m the largest logit of the row
//   loss    = -(sum over c of q_c log p_c),    q_c = (1 - e) [c = t] + e / classes
//   dx_c    = (p_c - q_c) * grad / rows        (the mean; without the division, the sum)
//
// with label smoothing e, 0 in the paper. Rows whose index is `ignored` have neither loss nor
// gradient, and the mean does not count them. An index that is no class makes loss and gradients
// NaN: the host cannot look at it without waiting for the GPU.
//
// Three small kernels, where a chain of element-wise ones would take ten: a loss per row; their
// total; and, later, the gradient. Forward keeps m and the logarithm of the sum per row, from
// which backward has p by one exponential. (Their sum alone would do in exact arithmetic, but for
// logits about 10,000 it is rounded to 0.001.)
//
// At the paper's 128 x 1000 the logits are 512 KB, read by forward and backward, dx 512 KB: 1.5 MB,
// less time than the launches take. One version; a warp per row keeps it short.
#include "kernel.cuh"

constexpr int WARP = 32;
constexpr int THREADS = 128;  // of the kernels in which a whole block has one task
constexpr int WARPS = THREADS / WARP;

__device__ __forceinline__ float exponential(float x) { return expf(x); }
__device__ __forceinline__ double exponential(double x) { return exp(x); }
__device__ __forceinline__ float logarithm(float x) { return logf(x); }
__device__ __forceinline__ double logarithm(double x) { return log(x); }

// The sum over the threads of a warp. Every thread gets it, and with the same bits: in each round
// two threads add the same two numbers.
template <class T>
__device__ __forceinline__ T warp_sum(T value) {
  for (int distance = WARP / 2; distance > 0; distance /= 2)
    value += __shfl_xor_sync(0xffffffffu, value, distance);
  return value;
}

template <class T>
__device__ __forceinline__ T warp_maximum(T value) {
  for (int distance = WARP / 2; distance > 0; distance /= 2) {
    const T other = __shfl_xor_sync(0xffffffffu, value, distance);
    if (other > value) value = other;
  }
  return value;
}

// Indices are unsigned, so that a negative one is greater than any class.
KERNEL_FOR(float, double) __launch_bounds__(WARP)
row_losses(const T* logits, const unsigned long long* targets, T* losses, T* maxima, T* log_sums,
           unsigned classes, unsigned long long ignored, T smoothing) {
  const unsigned row = blockIdx.x;
  const T* x = logits + row * classes;
  T largest = x[0];
  for (unsigned c = threadIdx.x; c < classes; c += WARP)
    if (x[c] > largest) largest = x[c];
  largest = warp_maximum(largest);

  T sum = 0, below = 0;  // below: how far all logits together lie below the largest
  for (unsigned c = threadIdx.x; c < classes; c += WARP) {
    sum += exponential(x[c] - largest);
    below += largest - x[c];
  }
  const T log_sum = logarithm(warp_sum(sum));
  below = warp_sum(below);
  if (threadIdx.x != 0) return;

  const unsigned long long target = targets[row];
  T loss = 0;
  if (target != ignored && target < classes) {
    loss = log_sum;
    // A class without a share in q may have the probability 0: 0 times its infinity is meant as 0.
    if (smoothing < 1) loss += (1 - smoothing) * (largest - x[target]);
    if (smoothing > 0) loss += smoothing * (below / classes);
  } else if (target != ignored) {
    loss = largest = T(0) / T(0);  // NaN, and so is what backward makes of it
  }
  losses[row] = loss;
  maxima[row] = largest;
  log_sums[row] = log_sum;
}

// One block adds up all rows, each thread every 128th of them: the same order in every run.
KERNEL_FOR(float, double) __launch_bounds__(THREADS)
total_loss(const T* losses, const unsigned long long* targets, T* loss, T* divisor, int rows,
           unsigned long long ignored, int mean) {
  __shared__ T sums[WARPS];
  __shared__ int counts[WARPS];
  T sum = 0;
  int count = 0;
  for (int row = threadIdx.x; row < rows; row += THREADS) {
    sum += losses[row];
    count += targets[row] != ignored;
  }
  sum = warp_sum(sum);
  count = warp_sum(count);
  if (threadIdx.x % WARP == 0) {
    sums[threadIdx.x / WARP] = sum;
    counts[threadIdx.x / WARP] = count;
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int warp = 1; warp < WARPS; ++warp) {
    sum += sums[warp];
    count += counts[warp];
  }
  *divisor = mean ? T(count) : T(1);
  *loss = sum / *divisor;  // of no rows at all: 0 / 0, which is NaN, as in torch
}

KERNEL_FOR(float, double) __launch_bounds__(THREADS)
row_grads(const T* grad, const T* logits, const unsigned long long* targets, const T* maxima,
          const T* log_sums, const T* divisor, T* dx, unsigned classes,
          unsigned long long ignored, T smoothing) {
  const unsigned row = blockIdx.x;
  const unsigned long long target = targets[row];
  const T scale = *grad / *divisor, largest = maxima[row], log_sum = log_sums[row];
  for (unsigned c = threadIdx.x; c < classes; c += THREADS) {
    const unsigned i = row * classes + c;
    const T p = exponential(logits[i] - largest - log_sum);
    const T q = (c == target ? 1 - smoothing : 0) + smoothing / classes;
    dx[i] = target == ignored ? T(0) : (p - q) * scale;
  }
}
