// The twins of kernels/ptx.cuh: each wrapper of inline PTX once more in C++, for the CPU. They
// compute the same, rounding included; only the order of sums may differ.
#pragma once

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

// Hopper's tensor cores see the copies that a thread has waited for from the barrier after its fence
// on: the meeting of the block with this number.
inline unsigned seen_from[simt::MAX_THREADS];
SIMT_UNSEEN inline void set_unseen(bool yes) {
  seen_from[simt::position->thread] = yes ? ~0u : simt::block_meetings() + 1;
}
SIMT_UNSEEN inline bool is_unseen() {
  return simt::block_meetings() < seen_from[simt::position->thread];
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

inline void ldmatrix(float (&part)[4], const float* row) {
  struct Four {
    float value[4];
  };
  float4 own = *reinterpret_cast<const float4*>(row);  // in one access, as traces count them
  Four brought = {{own.x, own.y, own.z, own.w}};
  const Four& taken = simt::warp_compute<Four, Four>(brought, [](const Four* rows, Four* results) {
    for (int lane = 0; lane < 32; ++lane)
      for (int i = 0; i < 4; ++i) results[lane].value[i] = rows[8 * i + lane / 4].value[lane % 4];
  });
  for (int i = 0; i < 4; ++i) part[i] = taken.value[i];
}

template <int SIZE>
inline void cp_async(void* shared, const void* global, int bytes) {
  simt::cp_async(shared, global, SIZE, bytes);
}
inline void cp_async_commit() { simt::cp_commit(); }
template <int N>
inline void cp_async_wait() {
  simt::cp_wait(N);
  twin::set_unseen(true);
}
