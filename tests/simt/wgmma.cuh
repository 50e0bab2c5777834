// The twins of kernels/wgmma.cuh.
#pragma once

inline void make_visible() { twin::set_unseen(false); }

template <int J>
inline void hold(float (&)[J][4]) {}

// A factor of a multiplication, where its descriptor says: the manual's canonical layouts of 128
// bytes (PTX ISA, "Shared Memory Matrix Layout"), in units of 16 bytes of T elements:
//   K-major ((8, m), (T, 2)) : ((8 T, stride), (1, T));
//   MN-major ((T, 8, m), (8, k)) : ((1, T, leading), (8 T, stride)).
template <class E, bool ALONG_K>
struct Described {
  size_t start, leading, stride;

  explicit Described(unsigned long long bits)
      : start((bits & 0x3fff) << 4), leading((bits >> 16 & 0x3fff) << 4),
        stride((bits >> 32 & 0x3fff) << 4) {
    if (bits >> 49 != 1ull << 13) simt::fail("a descriptor of another exchange, or with a base");
    if (reinterpret_cast<size_t>(simt::arena) % 1024) simt::fail("shared memory off its exchange");
  }

  const char* at(int row, int k) const {
    constexpr int T = 16 / sizeof(E);
    const size_t place = ALONG_K ? row % 8 * 128 + row / 8 * stride + k * sizeof(E)
                                 : row % (8 * T) * sizeof(E) + row / (8 * T) * leading +
                                       k % 8 * 128 + k / 8 * stride;
    const size_t address = start + place;
    return simt::arena + (address ^ (address >> 7 & 7) << 4);
  }

  // Numbers of rows `row` and `row + step`, several at a time where they lie side by side:
  // sanitizers look at each access.
  void read(int row, int step, float (&numbers)[2][32 / sizeof(E)]) const {
    constexpr int K = 32 / sizeof(E);
    alignas(16) E found[2][K];
    for (int k = 0; k < K; k += ALONG_K ? K / 2 : 1)
      if (!ALONG_K && step == 1) {
        alignas(4) E pair[4 / sizeof(E)];
        *reinterpret_cast<unsigned*>(pair) = *reinterpret_cast<const unsigned*>(at(row, k));
        found[0][k] = pair[0], found[1][k] = pair[4 / sizeof(E) - 1];
      } else {
        for (int i = 0; i < 2; ++i)
          if (ALONG_K)
            *reinterpret_cast<uint4*>(found[i] + k) =
                *reinterpret_cast<const uint4*>(at(row + i * step, k));
          else
            found[i][k] = *reinterpret_cast<const E*>(at(row + i * step, k));
      }
    for (int i = 0; i < 2; ++i)
      for (int k = 0; k < K; ++k) {
        numbers[i][k] = found[i][k];
        if (sizeof(E) == 4) numbers[i][k] = tf32_value(twin::bits_of(numbers[i][k]));
      }
  }
};

// Multiplies as late as it may: when a wait ends. So a tile that is written before shows.
struct Multiplication {
  struct Pending {
    void (*compute)(const Pending&);
    float (*d)[4];
    unsigned long long a, b;
    int group;
  };
  static constexpr int MOST = 16;
  Pending pending[MOST];
  int count = 0, group = 0;
  bool begun = false;

  void begin() { begun = true; }
  void commit() {
    begun = false;
    ++group;
  }

  template <class E, Layout A, Layout B, int J>
  void multiply_add(float (&d)[J][4], unsigned long long a, unsigned long long b) {
    if (twin::is_unseen()) simt::fail("copies that tensor cores do not see yet");
    if (!begun) simt::fail("multiplications without begin()");
    if (count == MOST) simt::fail("multiplications that no thread waits for");
    pending[count++] = {compute<E, A == SWIZZLED, B == SWIZZLED, J>, d, a, b, group};
  }

  template <int PENDING>
  void wait() {
    int done = 0;
    for (; done < count && pending[done].group < group - PENDING; ++done)
      pending[done].compute(pending[done]);
    for (int i = done; i < count; ++i) pending[i - done] = pending[i];
    count -= done;
  }

  template <class E, bool A_ALONG_K, bool B_ALONG_K, int J>
  static void compute(const Pending& work) {
    constexpr int K = 32 / sizeof(E);
    const Described<E, A_ALONG_K> of_a(work.a);
    const Described<E, B_ALONG_K> of_b(work.b);
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, warp = threadIdx.x / 32 % 4;
    float a[2][K], b[2][K];
    of_a.read(16 * warp + g, 8, a);
    for (int j = 0; j < J; ++j) {
      of_b.read(8 * j + 2 * t, 1, b);
      for (int i = 0; i < 4; ++i) {
        double sum = work.d[j][i];
        for (int k = 0; k < K; ++k) sum += double(a[i / 2][k]) * b[i % 2][k];
        work.d[j][i] = twin::towards_zero(sum);
      }
    }
  }
};
