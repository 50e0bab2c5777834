// bfloat16, the upper half of a float: its sign, its 8 bits of exponent, 7 of its 23 of mantissa.
//
// It is how numbers lie in memory, at half of a float's bytes; nothing is computed in it. Loaded,
// it becomes a float by 16 zeros at its end, which is exact. Stored, a float is rounded to nearest,
// ties to even: finite numbers that are too large become infinite, NaN stays NaN. `Compute<T>` is
// the type in which a kernel computes what lies in memory as T.
//
// Plain C++, six instructions where sm_80 has one for two numbers: kernels that wait for memory
// have them to spare, and those that do not round pairs (ptx.cuh).
#pragma once
#include "kernel.cuh"

struct bfloat16 {
  unsigned short bits;

  bfloat16() = default;  // not initialised, as a float is not
  __device__ __forceinline__ bfloat16(float x) {
    const unsigned whole = __float_as_uint(x);
    bits = x != x ? 0x7fff : (whole + 0x7fff + (whole >> 16 & 1)) >> 16;
  }
  __device__ __forceinline__ operator float() const {
    return __uint_as_float(static_cast<unsigned>(bits) << 16);
  }
};

template <class T>
struct ComputeType {
  using type = T;
};
template <>
struct ComputeType<bfloat16> {
  using type = float;
};
template <class T>
using Compute = typename ComputeType<T>::type;
