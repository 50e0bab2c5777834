// Dropout (paper section 4.2), which is its own gradient:
//
//   y[i] = x[i] * (0 with probability p, else 1 / (1 - p))
//
// Element i is dropped when the upper 24 bits of its random word are below p * 2^24. The word is
// number i % 4 of philox(counter = i / 4, key), a function of (key, i). So no mask is stored:
// backward calls the same kernel with the same key and finds the same zeros.
//
// The paper's layers: 128 x 4096 = 524,288 elements, read and written 4.2 MB in float32, against
// 10 rounds x 2 multiplications for four elements. The launch costs more than either, so there is
// one version.
//
// Where x is a part of something longer, `before` counts the fours of elements in front of it.
//
// The key comes by value or, where `key_slot` is not null, from memory. A recorded CUDA graph
// repeats a launch with the very same arguments, so that a key among them would drop the same
// elements for ever; memory can be filled anew before each replay.
#include "four.cuh"
#include "philox.cuh"

constexpr int THREADS = 256;

KERNEL_FOR(float, double, bfloat16) __launch_bounds__(THREADS)
dropout(const T* x, T* y, unsigned count, const unsigned long long* key_slot,
        unsigned long long key, unsigned threshold, Compute<T> scale, unsigned before) {
  const unsigned first = first_of_four();
  if (first >= count) return;
  const uint4 words = philox(make_uint4(before + first / 4, 0, 0, 0), key_slot ? *key_slot : key);
  const unsigned random[4] = {words.x, words.y, words.z, words.w};
  Four<Compute<T>> four = load_four(x, first, count);
#pragma unroll
  for (int i = 0; i < 4; ++i) four.at[i] *= random[i] >> 8 < threshold ? 0 : scale;
  store_four(y, first, count, four);
}

// The generator by itself, words[4 i ...] = philox(counters[4 i ...], keys[i]), so that a test can
// hold it to the answers that its authors published.
extern "C" __global__ void __launch_bounds__(THREADS)
philox_words(const int* counters, const unsigned long long* keys, int* words, int count) {
  const int i = blockIdx.x * THREADS + threadIdx.x;
  if (i >= count) return;
  const uint4 counter = reinterpret_cast<const uint4*>(counters)[i];
  reinterpret_cast<uint4*>(words)[i] = philox(counter, keys[i]);
}
