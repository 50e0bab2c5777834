// Instructions that CUDA C++ has no name for: asynchronous copies and the tensor cores. Inline PTX
// is here and, for Hopper alone, in wgmma.cuh; nowhere else.
//
// A warp multiplies D[16 x 8] += A[16 x k] B[k x 8] together: its 32 lanes hold the elements in
// their registers. Every lane is known by two numbers, g = lane / 4 and t = lane % 4 (groupID and
// threadID_in_group in NVIDIA's manual of PTX).
//
// mma.m16n8k8, TF32 (sign, 8 bits of exponent, 10 of mantissa; in a register of 32). In the cells:
// the register's number.
//
//        A   k = t   t + 4        B   n = g             C, D   n = 2t   2t + 1
//   m = g      a0     a2     k = t      b0         m = g          d0      d1
//   m = g + 8  a1     a3     k = t + 4  b1         m = g + 8      d2      d3
//
// mma.m16n8k16, bf16 (the upper 16 bits of a float). Each register holds two neighbours along k,
// the lower k in its lower half; C and D as above.
//
//        A   k = 2t, 2t + 1   2t + 8, 2t + 9        B               n = g
//   m = g          a0               a2          k = 2t, 2t + 1       b0
//   m = g + 8      a1               a3          k = 2t + 8, 2t + 9   b1
//
// ldmatrix fetches four matrices of 8 rows x 4 floats from shared memory (it is named for 16-bit
// numbers, and moves each row's 16 bytes as they are); a lane gets of each what it holds of a TF32
// fragment. The rows' addresses come from the lanes:
//
//   matrix 0: rows at the addresses of lanes  0.. 7       lane (g, t) receives
//   matrix 1:                                 8..15         part[i] = row g, column t
//   matrix 2:                                16..23         of matrix i
//   matrix 3:                                24..31
#pragma once

// x rounded to the 10 bits of mantissa that the tensor cores read, ties away from zero. Without it
// they would cut the lower bits off: each error up to twice as large and towards zero, so that a
// product shrinks by 7e-4.
__device__ __forceinline__ unsigned to_tf32(float x) {
  unsigned bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
}

// The number that the tensor cores read in a TF32 register: they do not look at the lower 13 bits.
__device__ __forceinline__ float tf32_value(unsigned bits) {
  return __uint_as_float(bits & 0xffffe000u);
}

// Both rounded to bf16, ties to even, in one register: `low` in the lower half.
__device__ __forceinline__ unsigned to_bf16x2(float low, float high) {
  unsigned bits;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  return bits;
}

// d += a b. No "memory" clobber here: these touch registers only. They are volatile because all
// lanes must come here together: the compiler shall not move one into a branch.
__device__ __forceinline__ void mma_m16n8k8_tf32(float (&d)[4], const unsigned (&a)[4],
                                                 const unsigned (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ __forceinline__ void mma_m16n8k16_bf16(float (&d)[4], const unsigned (&a)[4],
                                                  const unsigned (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// It reads memory, so that loads and stores must not be moved over it: hence "memory".
__device__ __forceinline__ void ldmatrix(float (&part)[4], const float* row) {
  unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(row));
  unsigned bits[4];
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(bits[0]), "=r"(bits[1]), "=r"(bits[2]), "=r"(bits[3])
               : "r"(address)
               : "memory");
#pragma unroll
  for (int i = 0; i < 4; ++i) part[i] = __uint_as_float(bits[i]);
}

// Begin to copy `bytes`, at most SIZE (16 or 8), from global to shared memory, past the registers
// (16 also past the L1 cache); zeros for what lacks of SIZE. Both addresses are multiples of it.
//
// These three write shared memory where the compiler cannot see it. "memory" tells it so: it must
// neither keep values of shared memory in registers across them, nor move loads and stores over
// them (a load from before cp_async_wait would read what was there before the copy).
template <int SIZE>
__device__ __forceinline__ void cp_async(void* shared, const void* global, int bytes) {
  unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  if constexpr (SIZE == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(global),
                 "r"(bytes)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(address), "l"(global),
                 "n"(SIZE), "r"(bytes)
                 : "memory");
}

// Close a group: all copies that this thread began since the last one.
__device__ __forceinline__ void cp_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Wait until at most N of this thread's groups are still on their way. It says nothing about the
// copies of other threads: those need a barrier after it.
template <int N>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}
