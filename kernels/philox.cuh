// Random numbers without a state: Philox4x32-10 (Salmon, Moraes, Dror and Shaw 2011, "Parallel
// random numbers: as easy as 1, 2, 3").
//
// A generator with a state would have to be asked in turn by millions of threads. This one is a
// function: it encrypts a counter (128 bits) under a key (64 bits) into four random words. Whoever
// knows both finds the same words again, in any order, in any thread, and in a later pass.
//
// Each of the ten rounds multiplies two of the words by constants. The upper halves of the products
// are mixed with the key and with the other two words, the lower halves pass; then the key moves
// on.
#pragma once

__device__ __forceinline__ uint4 philox(uint4 counter, unsigned long long key) {
  unsigned low = static_cast<unsigned>(key), high = static_cast<unsigned>(key >> 32);
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const unsigned long long first = 0xD2511F53ull * counter.x;
    const unsigned long long second = 0xCD9E8D57ull * counter.z;
    counter = make_uint4(static_cast<unsigned>(second >> 32) ^ counter.y ^ low,
                         static_cast<unsigned>(second),
                         static_cast<unsigned>(first >> 32) ^ counter.w ^ high,
                         static_cast<unsigned>(first));
    low += 0x9E3779B9u;   // the golden ratio
    high += 0xBB67AE85u;  // the root of 3, less 1
  }
  return counter;
}
