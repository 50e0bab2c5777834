// CUDA's built-in vector types: dim3, float4 and its family, make_float4 and its family.
#pragma once

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// A GPU stores a vector in one access. In the build that counts accesses, so does the CPU: else
// the compiler would write each element of make_float4(...) to its place.
#ifdef SIMT_TRACE
#define SIMT_STORED_WHOLE(Name, bytes)                                     \
  typedef char Whole __attribute__((vector_size(bytes), may_alias));       \
  Name& operator=(const Name& other) {                                     \
    *(Whole*)this = *(const Whole*)&other;                                 \
    return *this;                                                          \
  }
#else
#define SIMT_STORED_WHOLE(Name, bytes)
#endif

#define SIMT_VECTOR_1_TO_3(T, name)                                        \
  struct name##1 { T x; };                                                 \
  struct alignas(2 * sizeof(T)) name##2 {                                  \
    T x, y;                                                                \
    SIMT_STORED_WHOLE(name##2, 2 * sizeof(T))                              \
  };                                                                       \
  struct name##3 { T x, y, z; };                                           \
  inline name##1 make_##name##1(T x) { return {x}; }                       \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; }               \
  inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }

#define SIMT_VECTOR(T, name)                                               \
  SIMT_VECTOR_1_TO_3(T, name)                                              \
  struct alignas(4 * sizeof(T)) name##4 {                                  \
    T x, y, z, w;                                                          \
    SIMT_STORED_WHOLE(name##4, 4 * sizeof(T))                              \
  };                                                                       \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }

SIMT_VECTOR(signed char, char)
SIMT_VECTOR(unsigned char, uchar)
SIMT_VECTOR(short, short)
SIMT_VECTOR(unsigned short, ushort)
SIMT_VECTOR(int, int)
SIMT_VECTOR(unsigned, uint)
SIMT_VECTOR(float, float)
// Four elements of eight bytes are two accesses on the GPU: a kernel had better say so.
SIMT_VECTOR_1_TO_3(long long, longlong)
SIMT_VECTOR_1_TO_3(unsigned long long, ulonglong)
SIMT_VECTOR_1_TO_3(double, double)
