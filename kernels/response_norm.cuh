// The arithmetic of local response normalisation, shared by the kernels that do it alone, with the
// pooling after it, and within one channel.
//
//   y_c = x_c s_c^-beta,    s_c = k + ratio * sum of x_j^2 over the window of c
//   dx_j = dy_j s_j^-beta - 2 beta ratio x_j * sum of dy_c x_c s_c^(-beta-1) over all c whose
//          window holds j
//
// Across channels, ratio = alpha / size and the window of c is c - size / 2 .. c + (size - 1) / 2,
// cut at the borders of c's group; the windows that hold j are those of the mirrored window of j.
// Channels lie last, so a group of a pixel's channels is a *line*: `width` neighbours in memory.
//
// s is computed anew wherever it is needed, from values that must be read anyway: storing it would
// write, and read back in the gradient, as many bytes again as x has; computing it costs `size`
// multiply-adds a value, which an arithmetic unit that waits for memory has to spare.
#pragma once
#include "four.cuh"

template <typename T>
struct Norm {
  int width, size;  // channels of a line, channels of a window
  T ratio, beta, k;
};

__device__ __forceinline__ float inverse_root(float s) { return rsqrtf(s); }
__device__ __forceinline__ double inverse_root(double s) { return 1 / sqrt(s); }
__device__ __forceinline__ float power(float s, float exponent) { return powf(s, exponent); }
__device__ __forceinline__ double power(double s, double exponent) { return pow(s, exponent); }

template <typename T>
struct Powers {
  T value;  // s^-beta
  T slope;  // s^(-beta-1)
};

template <typename T>
__device__ __forceinline__ Powers<T> powers(T s, T beta) {
  if (beta == T(0.75)) {  // the paper's: two roots, for which there is an instruction
    const T root = inverse_root(s);
    // An infinite s has the root 0, whose own inverse root is infinite; 0 * infinity would be NaN.
    const T value = root > 0 ? root * (root * inverse_root(root)) : root;
    return {value, value * root * root};
  }
  const T value = power(s, -beta);
  return {value, value / s};
}

// s of channel c of a line.
template <typename T>
__device__ Compute<T> scale(const T* line, int c, const Norm<Compute<T>>& norm) {
  const int first = max(0, c - norm.size / 2);
  const int last = min(norm.width - 1, c + (norm.size - 1) / 2);
  Compute<T> energy = 0;
  for (int j = first; j <= last; ++j) energy += line[j] * line[j];
  return norm.k + norm.ratio * energy;
}

template <typename T>
__device__ Compute<T> normalised(const T* line, int c, const Norm<Compute<T>>& norm) {
  return line[c] * powers(scale(line, c, norm), norm.beta).value;
}

// dx of channel c, where `grad(c)` is the gradient of the line's normalised channel c.
template <typename T, typename Grad>
__device__ Compute<T> normalised_grad(const T* line, int c, const Norm<Compute<T>>& norm,
                                      Grad grad) {
  const int first = max(0, c - (norm.size - 1) / 2);
  const int last = min(norm.width - 1, c + norm.size / 2);
  Compute<T> spread = 0;
  for (int j = first; j <= last; ++j) {
    spread += grad(j) * line[j] * powers(scale(line, j, norm), norm.beta).slope;
  }
  return grad(c) * powers(scale(line, c, norm), norm.beta).value -
         2 * norm.beta * norm.ratio * line[c] * spread;
}

// --- four channels at once -----------------------------------------------------------------------

// For each channel c of quad `q` of a line: the sum of the channels c - before .. c + after, or of
// their squares. Each quad of the line that they reach into is read once. Every sum adds anew: a
// running sum, which subtracts what leaves the window, would keep the rounding error of the largest
// value for good.
template <bool SQUARES, class T>
__device__ __forceinline__ Quad sums_around(const T* line, int q, int quads, int before,
                                            int after) {
  Quad sum = {};
#pragma unroll
  for (int step = -((before + 3) / 4); step <= (after + 3) / 4; ++step) {
    // Step 0 is never outside; a test that says so lets its load be shared with the caller's.
    if ((step < 0 && q + step < 0) || (step > 0 && q + step >= quads)) continue;
    const Quad other = load(line + 4 * (q + step));
#pragma unroll
    for (int e = 0; e < 4; ++e) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int distance = 4 * step + e - i;
        if (-before <= distance && distance <= after) {
          sum.at[i] += SQUARES ? other.at[e] * other.at[e] : other.at[e];
        }
      }
    }
  }
  return sum;
}

// As above; with the paper's five channels the compiler knows every distance and unrolls it all.
template <bool SQUARES, class T>
__device__ __forceinline__ Quad sums_of_window(const T* line, int q, const Norm<float>& norm,
                                               int before, int after) {
  return norm.size == 5 ? sums_around<SQUARES>(line, q, norm.width / 4, 2, 2)
                        : sums_around<SQUARES>(line, q, norm.width / 4, before, after);
}

// s of the four channels of quad q.
template <class T>
__device__ __forceinline__ Quad scales(const T* line, int q, const Norm<float>& norm) {
  Quad s = sums_of_window<true>(line, q, norm, norm.size / 2, (norm.size - 1) / 2);
#pragma unroll
  for (int e = 0; e < 4; ++e) s.at[e] = norm.k + norm.ratio * s.at[e];
  return s;
}

// The sum of dy x s^(-beta-1) that the gradient of the four channels of quad q takes.
__device__ __forceinline__ Quad spreads(const float* products, int q, const Norm<float>& norm) {
  return sums_of_window<false>(products, q, norm, (norm.size - 1) / 2, norm.size / 2);
}
