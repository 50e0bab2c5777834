// Hopper's tensor cores (sm_90a only). Their inline PTX is not in ptx.cuh, because a source that
// includes this file compiles for no other GPU.
//
// Four warps, a warpgroup, multiply D[64 x N] += A[64 x k] B[k x N] together, of 16 k's in bf16 and
// 8 in TF32, and the factors come from shared memory directly: no loads, no registers for A and B.
// There they lie SWIZZLED, or SWIZZLED_MN if they are bf16 (tile_layout.cuh), at a multiple of 1024
// bytes. TF32 factors are floats whose lower 13 bits are ignored: cut off, unless they were rounded
// before.
//
// D in registers: warp w of the four has rows 16 w .. 16 w + 15, in fragments as in ptx.cuh:
//
//              n = 8 j + 2 t   8 j + 2 t + 1
//   m = 16 w + g     d[j][0]      d[j][1]
//   m = 16 w + g + 8 d[j][2]      d[j][3]
//
// The multiplications run while the threads do something else, until they wait for them:
//
//   make_visible(); __syncthreads();     what threads copied, the tensor cores shall see
//   Multiplication work;
//   work.begin(); work.multiply_add<E, SWIZZLED, SWIZZLED>(...); ...; work.commit();
//   ...                                  neither D nor the tiles may be touched here
//   work.wait<0>(); hold(d);
#pragma once
#include "ptx.cuh"
#include "tile_layout.cuh"

// Makes this thread's writes to shared memory (a cp.async that it has waited for included) visible
// to tensor cores, which read it by another path than threads. A barrier comes after it.
__device__ __forceinline__ void make_visible() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

#define FOUR(j) "+f"(d[j][0]), "+f"(d[j][1]), "+f"(d[j][2]), "+f"(d[j][3])
#define SIXTEEN(j) FOUR(j), FOUR(j + 1), FOUR(j + 2), FOUR(j + 3)

// Nothing on the GPU: the compiler moves no use of d over it, before begin or after a wait.
template <int J>
__device__ __forceinline__ void hold(float (&d)[J][4]) {
#pragma unroll
  for (int j = 0; j < J; ++j) asm volatile("" : FOUR(j));
}

// All but `hold` read shared memory, or are in order with what does: hence "memory".
struct Multiplication {
  // Puts what ordinary instructions did to the registers of D before the multiplications that
  // follow. Those of the same shape that still add to D are in order without it (PTX ISA).
  __device__ __forceinline__ void begin() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
  }

  // d += a b; `a` and `b` are descriptors of the first k's of two tiles. For bf16 the last two
  // operands say whether a factor lies along k (0) or along its rows (1).
  template <class E, Layout A, Layout B, int J>
  __device__ __forceinline__ void multiply_add(float (&d)[J][4], unsigned long long a,
                                               unsigned long long b) {
    static_assert(sizeof(E) == 2 || (A == SWIZZLED && B == SWIZZLED), "TF32 lies along k");
    static_assert(J == 12 || J == 16 || J == 32, "add its registers below");
#define TEN(t)                                                                              \
  "%" #t "0, %" #t "1, %" #t "2, %" #t "3, %" #t "4, %" #t "5, %" #t "6, %" #t "7, %" #t "8, " \
  "%" #t "9, "
#define MULTIPLY_ADD(n, registers, of_a, of_b, a_lies, b_lies, ...)                      \
  if constexpr (J * 8 == n && sizeof(E) == 4)                                            \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" #n "k8.f32.tf32.tf32 {" registers   \
                 "}, %" #of_a ", %" #of_b ", 1, 1, 1;"                                   \
                 : __VA_ARGS__                                                           \
                 : "l"(a), "l"(b)                                                        \
                 : "memory");                                                            \
  else if constexpr (J * 8 == n)                                                         \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16 {" registers  \
                 "}, %" #of_a ", %" #of_b ", 1, 1, 1, %" #a_lies ", %" #b_lies ";"       \
                 : __VA_ARGS__                                                           \
                 : "l"(a), "l"(b), "n"(A == SWIZZLED_MN), "n"(B == SWIZZLED_MN)          \
                 : "memory")
    MULTIPLY_ADD(96, TEN() TEN(1) TEN(2) TEN(3) "%40, %41, %42, %43, %44, %45, %46, %47", 48, 49,
                 50, 51, SIXTEEN(0), SIXTEEN(4), SIXTEEN(8));
    MULTIPLY_ADD(128, TEN() TEN(1) TEN(2) TEN(3) TEN(4) TEN(5) "%60, %61, %62, %63", 64, 65, 66, 67,
                 SIXTEEN(0), SIXTEEN(4), SIXTEEN(8), SIXTEEN(12));
    MULTIPLY_ADD(256, TEN() TEN(1) TEN(2) TEN(3) TEN(4) TEN(5) TEN(6) TEN(7) TEN(8) TEN(9) TEN(10)
                 TEN(11) "%120, %121, %122, %123, %124, %125, %126, %127", 128, 129, 130, 131,
                 SIXTEEN(0), SIXTEEN(4), SIXTEEN(8), SIXTEEN(12), SIXTEEN(16), SIXTEEN(20),
                 SIXTEEN(24), SIXTEEN(28));
  }

  __device__ __forceinline__ void commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
  }

  // Until at most PENDING groups of this warpgroup's multiplications are under way.
  template <int PENDING>
  __device__ __forceinline__ void wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
  }
};
#undef FOUR
#undef SIXTEEN
#undef TEN
#undef MULTIPLY_ADD
