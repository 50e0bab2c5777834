// The twins of kernels/wgmma.cuh.
#pragma once

using Row64x128 = float[16][4];

inline void make_visible() {}

// Multiplies as late as it may: in wait(). So a tile that is written before shows.
struct Multiplication {
  struct Pending {
    Row64x128* d;
    const float *a, *b;
  };
  Pending pending[16];
  int count = 0;

  void begin() {}
  void commit() {}

  void multiply_add(Row64x128& d, const float* a, const float* b) {
    if (count == 16) simt::fail("multiplications that no thread waits for");
    pending[count++] = {&d, a, b};
  }

  template <class... Ds>
  void wait(Ds&...) {
    for (int i = 0; i < count; ++i) compute(pending[i]);
    count = 0;
  }

  // The k-th float after `first` in a line further down: the exchange depends on the address.
  static float element(const float* first, int line, int k) {
    size_t address = reinterpret_cast<size_t>(first + line * 32 + k);
    address ^= (address >> 7 & 7) << 4;
    return tf32_value(twin::bits_of(*reinterpret_cast<const float*>(address)));
  }

  static void compute(const Pending& work) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
    for (int i = 0; i < 4; ++i) {
      float a[8];
      for (int k = 0; k < 8; ++k) a[k] = element(work.a, 16 * warp + lane / 4 + i / 2 * 8, k);
      for (int j = 0; j < 16; ++j)
        for (int k = 0; k < 8; ++k)
          (*work.d)[j][i] += a[k] * element(work.b, 8 * j + lane % 4 * 2 + i % 2, k);
    }
  }
};
