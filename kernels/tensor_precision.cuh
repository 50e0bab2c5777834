// Three ways to multiply floats on tensor cores, which know no 32-bit floats themselves. The sums
// are 32-bit floats in all of them. `Fragment` is a fragment of A (N = 4 registers) or B (N = 2),
// ready for the tensor core; `STEP` is how many k's it has, `UNROLL` how many steps the compiler
// writes out one after the other (of Tf32x3 just one: more would want too many registers), `SUMS`
// how many sums a warp takes beside its fragments.
//
//   Tf32x3  21 bits of mantissa: a factor is the sum of two TF32 numbers; three products
//   Tf32    10 bits: factors rounded; one product
//   Bf16     7 bits: factors rounded; one product, which takes two steps along k at once
//
// `raw` are the floats as they lie in a TF32 fragment (ptx.cuh), [step of 8 k's][register].
#pragma once
#include "ptx.cuh"

struct Tf32 {
  static constexpr int STEP = 8, UNROLL = 4, SUMS = 64 * 64;

  template <int N>
  struct Fragment {
    unsigned part[N];
  };

  template <int N>
  static __device__ __forceinline__ Fragment<N> pack(const float (&raw)[1][N]) {
    Fragment<N> fragment;
#pragma unroll
    for (int i = 0; i < N; ++i) fragment.part[i] = to_tf32(raw[0][i]);
    return fragment;
  }

  static __device__ __forceinline__ void multiply_add(float (&sum)[4], const Fragment<4>& a,
                                                      const Fragment<2>& b) {
    mma_m16n8k8_tf32(sum, a.part, b.part);
  }
};

// x = big + small, both by cutting bits off: two instructions, where rounding would take seven. The
// tensor core cuts `small` itself. What is lost is at most 2^-21 x, and of the four products of two
// factors small * small is left out, at most 2^-20 of them all.
//
// Tensor cores round their sums towards zero (their twins too). In a long sum these errors
// have one sign and add up: to 2e-5 over 2400 normal products, relative to the result. So each step
// is summed up on its own, the small products first, and an ordinary addition, which rounds to
// nearest, adds it to the total: 5e-7, near float32's 3e-7 (in the twins; Ootomo and Yokota 2022,
// "Recovering single precision accuracy from Tensor Cores while surpassing the FP32 theoretical
// peak performance").
//
// A NaN stays one, and an infinity becomes one (infinity - infinity); no other float does.
struct Tf32x3 {
  static constexpr int STEP = 8, UNROLL = 1, SUMS = 64 * 32;

  template <int N>
  struct Fragment {
    Tf32::Fragment<N> big, small;
  };

  template <int N>
  static __device__ __forceinline__ Fragment<N> pack(const float (&raw)[1][N]) {
    Fragment<N> fragment;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const float big = tf32_value(__float_as_uint(raw[0][i]));
      fragment.big.part[i] = __float_as_uint(big);
      fragment.small.part[i] = __float_as_uint(raw[0][i] - big);
    }
    return fragment;
  }

  static __device__ __forceinline__ void multiply_add(float (&sum)[4], const Fragment<4>& a,
                                                      const Fragment<2>& b) {
    float step[4] = {0, 0, 0, 0};
    Tf32::multiply_add(step, a.small, b.big);
    Tf32::multiply_add(step, a.big, b.small);
    Tf32::multiply_add(step, a.big, b.big);
#pragma unroll
    for (int i = 0; i < 4; ++i) sum[i] += step[i];
  }
};

// A bf16 fragment wants neighbours along k in one register, but the floats come as t and t + 4. As
// a sum may be taken in any order, the k's of a fragment may be any k's if A and B agree: so
// fragment k's 2t, 2t + 1 are the tile's t, t + 4, and 2t + 8, 2t + 9 are t + 8, t + 12.
struct Bf16 {
  static constexpr int STEP = 16, UNROLL = 2, SUMS = 64 * 64;

  template <int N>
  struct Fragment {
    unsigned part[N];
  };

  template <int N>
  static __device__ __forceinline__ Fragment<N> pack(const float (&raw)[2][N]) {
    constexpr int ROWS = N / 2;  // of a fragment, in one lane
    Fragment<N> fragment;
#pragma unroll
    for (int i = 0; i < N; ++i)
      fragment.part[i] = to_bf16x2(raw[i / ROWS][i % ROWS], raw[i / ROWS][i % ROWS + ROWS]);
    return fragment;
  }

  static __device__ __forceinline__ void multiply_add(float (&sum)[4], const Fragment<4>& a,
                                                      const Fragment<2>& b) {
    mma_m16n8k16_bf16(sum, a.part, b.part);
  }
};
