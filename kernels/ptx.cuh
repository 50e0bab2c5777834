// Instructions that CUDA C++ has no name for: asynchronous copies and the tensor cores. Inline PTX
// is here and, for Hopper alone, in wgmma.cuh; nowhere else. Where kernels run on the host
// (SIMT_SHIM), each wrapper is replaced by a twin that computes the same, rounding included; only
// the order of sums may differ.
//
// A warp multiplies D[16 x 8] += A[16 x k] B[k x 8] together: its 32 lanes hold the elements in
// their registers. Every lane is known by two numbers, g = lane / 4 and t = lane % 4 (groupID and
// threadID_in_group in NVIDIA's manual of PTX).
//
// mma.m16n8k8, TF32 (19 bits of a float, in a register of 32). In the cells: the register's number.
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
// ldmatrix fetches four pieces of 8 rows x 4 floats from shared memory; a lane gets of each piece
// what it holds of a TF32 fragment. The rows' addresses come from the lanes:
//
//   piece 0: rows at the addresses of lanes  0.. 7       lane (g, t) receives
//   piece 1:                                 8..15         piece[i] = row g, column t
//   piece 2:                                16..23         of piece i
//   piece 3:                                24..31
#pragma once

#ifndef SIMT_SHIM

// x rounded to the 10 bits of mantissa that the tensor cores read, ties away from zero. Without it
// they would cut the lower bits off: an error up to twice as large, and always towards zero.
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
__device__ __forceinline__ void ldmatrix(float (&piece)[4], const float* row) {
  unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(row));
  unsigned bits[4];
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(bits[0]), "=r"(bits[1]), "=r"(bits[2]), "=r"(bits[3])
               : "r"(address)
               : "memory");
#pragma unroll
  for (int i = 0; i < 4; ++i) piece[i] = __uint_as_float(bits[i]);
}

// Begin to copy 16 bytes from global to shared memory, past the registers and the L1 cache; zeros
// if not `valid`, and then `global` is not read. Both addresses are multiples of 16.
//
// These three write shared memory where the compiler cannot see it. "memory" tells it so: it must
// neither keep values of shared memory in registers across them, nor move loads and stores over
// them (a load from before cp_async_wait would read what was there before the copy).
__device__ __forceinline__ void cp_async_16(float* shared, const float* global, bool valid) {
  unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(global),
               "r"(valid ? 16 : 0)
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

#else  // the twins

namespace twin {

inline unsigned bits_of(float x) {
  unsigned bits;
  memcpy(&bits, &x, 4);
  return bits;
}

inline float value_of(unsigned bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}

// Infinity and NaN (all bits of the exponent set) must not be rounded into something else.
inline bool is_finite(unsigned bits) { return (bits & 0x7f800000u) != 0x7f800000u; }

// The operands of one lane in a multiplication, and its results.
struct Brought {
  unsigned a[4], b[2];
};
struct Taken {
  double d[4];
};

// As tensor cores round their sums: cutting off.
inline float towards_zero(double x) {
  float nearest = static_cast<float>(x);
  bool away = x < 0 ? nearest < x : nearest > x;
  return away ? value_of(bits_of(nearest) - 1) : nearest;
}

// The product that all lanes of the warp make together, of K columns of A. `unpack(bits, values)`
// reads the K / 8 neighbours along k that one register holds.
template <int K, class Unpack>
inline void mma(float (&d)[4], const Brought& brought, Unpack unpack) {
  const Taken& taken = simt::warp_compute<Brought, Taken>(
      brought, [unpack](const Brought* lanes, Taken* results) {
        constexpr int PACKED = K / 8;
        float A[16][K], B[K][8];
        for (int lane = 0; lane < 32; ++lane) {
          int g = lane / 4, t = lane % 4;
          float values[PACKED];
          for (int i = 0; i < 4; ++i) {
            unpack(lanes[lane].a[i], values);
            for (int p = 0; p < PACKED; ++p)
              A[g + i % 2 * 8][(t + i / 2 * 4) * PACKED + p] = values[p];
          }
          for (int i = 0; i < 2; ++i) {
            unpack(lanes[lane].b[i], values);
            for (int p = 0; p < PACKED; ++p) B[(t + i * 4) * PACKED + p][g] = values[p];
          }
        }
        double D[16][8] = {};
        for (int m = 0; m < 16; ++m)
          for (int k = 0; k < K; ++k)
            for (int n = 0; n < 8; ++n) D[m][n] += double(A[m][k]) * B[k][n];
        for (int lane = 0; lane < 32; ++lane)
          for (int i = 0; i < 4; ++i)
            results[lane].d[i] = D[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
      });
  for (int i = 0; i < 4; ++i) d[i] = towards_zero(d[i] + taken.d[i]);
}

}  // namespace twin

inline unsigned to_tf32(float x) {
  unsigned bits = twin::bits_of(x);
  return (twin::is_finite(bits) ? bits + 0x1000u : bits) & 0xffffe000u;
}

inline float tf32_value(unsigned bits) { return twin::value_of(bits & 0xffffe000u); }

inline unsigned to_bf16x2(float low, float high) {
  unsigned halves[2] = {twin::bits_of(low), twin::bits_of(high)};
  for (unsigned& bits : halves)
    if (twin::is_finite(bits)) bits += 0x7fffu + (bits >> 16 & 1u);
  return halves[0] >> 16 | (halves[1] & 0xffff0000u);
}

inline void mma_m16n8k8_tf32(float (&d)[4], const unsigned (&a)[4],
                             const unsigned (&b)[2]) {
  twin::mma<8>(d, {{a[0], a[1], a[2], a[3]}, {b[0], b[1]}}, [](unsigned bits, float* values) {
    values[0] = tf32_value(bits);
  });
}

inline void mma_m16n8k16_bf16(float (&d)[4], const unsigned (&a)[4],
                              const unsigned (&b)[2]) {
  twin::mma<16>(d, {{a[0], a[1], a[2], a[3]}, {b[0], b[1]}}, [](unsigned bits, float* values) {
    values[0] = twin::value_of(bits << 16);
    values[1] = twin::value_of(bits & 0xffff0000u);
  });
}

inline void ldmatrix(float (&piece)[4], const float* row) {
  struct Four {
    float value[4];
  };
  float4 own = *reinterpret_cast<const float4*>(row);  // in one access, as traces count them
  Four brought = {{own.x, own.y, own.z, own.w}};
  const Four& taken = simt::warp_compute<Four, Four>(brought, [](const Four* rows, Four* results) {
    for (int lane = 0; lane < 32; ++lane)
      for (int i = 0; i < 4; ++i) results[lane].value[i] = rows[8 * i + lane / 4].value[lane % 4];
  });
  for (int i = 0; i < 4; ++i) piece[i] = taken.value[i];
}

inline void cp_async_16(float* shared, const float* global, bool valid) {
  simt::cp_async(shared, valid ? global : nullptr, 16);
}
inline void cp_async_commit() { simt::cp_commit(); }
template <int N>
inline void cp_async_wait() {
  simt::cp_wait(N);
}

#endif
