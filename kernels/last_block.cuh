// The last of several blocks that each wrote a part of a result: it can put them together.
//
// Blocks cannot wait for one another, for those waited for may not have begun. But each can count
// itself when its part is written, and the one that completes the count knows that all are. That
// saves a kernel that would do nothing else, and its start. Which block is the last is chance; what
// it adds up, and in which order, is not, so the result has the same bits in every run.
#pragma once

// True in all threads of the block that comes last of `blocks`. `arrived` is 0 before and after.
__device__ __forceinline__ bool last_to_arrive(unsigned* arrived, unsigned blocks) {
  bool last = false;
  __syncthreads();  // all threads of this block have written their share
  if (threadIdx.x == 0) {
    __threadfence();  // which other blocks see before they see it counted
    last = atomicAdd(arrived, 1u) == blocks - 1;
    if (last) *arrived = 0;
    __threadfence();  // what was written before the others were counted is seen after this
  }
  return __syncthreads_or(last);
}
