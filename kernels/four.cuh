// Four neighbouring elements, moved at once: what a thread of an element-wise kernel works on.
//
// A GPU reaches its memory's full rate only with enough bytes under way. With 16 bytes an
// instruction (four floats) it takes a quarter of the instructions that single floats take.
//
// Four doubles take two such instructions, each of which asks for half of every sector of 32 bytes:
// not quite as good, but double precision is here to check gradients with, not to train fast.
#pragma once

template <class T>
struct alignas(16) Four {
  T at[4];
};

// Elements first to first + 3 of an array of `count` that begins at a multiple of 16 bytes, as does
// `first` at a multiple of four; zeros in place of those beyond the end.
template <class T>
__device__ __forceinline__ Four<T> load_four(const T* array, unsigned first, unsigned count) {
  if (first + 4 <= count) return *reinterpret_cast<const Four<T>*>(array + first);
  Four<T> four = {};
#pragma unroll
  for (unsigned i = 0; i < 4; ++i)
    if (first + i < count) four.at[i] = array[first + i];
  return four;
}

// Write them back; what lies beyond the end is left out.
template <class T>
__device__ __forceinline__ void store_four(T* array, unsigned first, unsigned count,
                                           const Four<T>& four) {
  if (first + 4 <= count) {
    *reinterpret_cast<Four<T>*>(array + first) = four;
    return;
  }
#pragma unroll
  for (unsigned i = 0; i < 4; ++i)
    if (first + i < count) array[first + i] = four.at[i];
}

// The first of the four elements that belong to this thread of a grid in one dimension.
__device__ __forceinline__ unsigned first_of_four() {
  return 4 * (blockIdx.x * blockDim.x + threadIdx.x);
}
