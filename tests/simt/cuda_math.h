// CUDA's mathematical functions and intrinsics that C++ lacks, with C++'s own accuracy.
// Of atomic operations there is atomicAdd to an unsigned alone (simt.h): sums of floats would depend
// on the order of the blocks.
#pragma once
#include <cmath>
#include <cstring>

template <class To, class From>
inline To simt_same_bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "a reinterpretation keeps the size");
  To to;
  __builtin_memcpy(&to, &from, sizeof to);
  return to;
}

// Reinterpretations.
inline int __float_as_int(float x) { return simt_same_bits<int>(x); }
inline unsigned __float_as_uint(float x) { return simt_same_bits<unsigned>(x); }
inline float __int_as_float(int x) { return simt_same_bits<float>(x); }
inline float __uint_as_float(unsigned x) { return simt_same_bits<float>(x); }
inline long long __double_as_longlong(double x) { return simt_same_bits<long long>(x); }
inline double __longlong_as_double(long long x) { return simt_same_bits<double>(x); }

// Minimum and maximum: of a number and a NaN, CUDA (like C's fmax) returns the number.
inline float max(float a, float b) { return fmaxf(a, b); }
inline float min(float a, float b) { return fminf(a, b); }
inline double max(double a, double b) { return fmax(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
#define SIMT_INTEGER_MIN_MAX(T)                            \
  inline T max(T a, T b) { return a < b ? b : a; }         \
  inline T min(T a, T b) { return b < a ? b : a; }
SIMT_INTEGER_MIN_MAX(int)
SIMT_INTEGER_MIN_MAX(unsigned)
SIMT_INTEGER_MIN_MAX(long)
SIMT_INTEGER_MIN_MAX(unsigned long)
SIMT_INTEGER_MIN_MAX(long long)
SIMT_INTEGER_MIN_MAX(unsigned long long)

// Floating point.
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __powf(float x, float y) { return powf(x, y); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __saturatef(float x) { return fminf(fmaxf(x, 0.0f), 1.0f); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
// Products and sums that the compiler may not contract into a fused multiply-add.
inline float __fmul_rn(float a, float b) {
  volatile float product = a * b;
  return product;
}
inline float __fadd_rn(float a, float b) {
  volatile float sum = a + b;
  return sum;
}
inline float __fsub_rn(float a, float b) { return __fadd_rn(a, -b); }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline int __float2int_rn(float x) { return static_cast<int>(rintf(x)); }
inline int __float2int_rz(float x) { return static_cast<int>(x); }
inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline float __uint2float_rn(unsigned x) { return static_cast<float>(x); }

// Integers.
inline int __mulhi(int a, int b) { return static_cast<int>((long long)a * b >> 32); }
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>((unsigned long long)a * b >> 32);
}
inline long long __mul64hi(long long a, long long b) {
  return static_cast<long long>((__int128)a * b >> 64);
}
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return static_cast<unsigned long long>((unsigned __int128)a * b >> 64);
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }

// Loads and stores with a hint for the cache.
template <class T> inline T __ldg(const T* p) { return *p; }
template <class T> inline T __ldcs(const T* p) { return *p; }
template <class T> inline T __ldcg(const T* p) { return *p; }
template <class T> inline void __stcs(T* p, const T& value) { *p = value; }
template <class T> inline void __stcg(T* p, const T& value) { *p = value; }
inline void __threadfence_block() {}
