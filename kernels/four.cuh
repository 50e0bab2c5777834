// Four neighbouring elements, moved at once: what a thread works on in kernels that memory decides.
//
// A GPU reaches its memory's full rate only with enough bytes under way. With 16 bytes an
// instruction (four floats) it takes a quarter of the instructions that single floats take. Four
// bfloat16 are 8 bytes: as many instructions as four floats, for half of the bytes.
//
// Four doubles take two such instructions, each of which asks for half of every sector of 32 bytes:
// not quite as good, but double precision is here to check gradients with, not to train fast.
#pragma once
#include "bfloat16.cuh"

template <class T>
struct alignas(sizeof(T) < 4 ? 8 : 16) Four {
  T at[4];
};

// Four neighbouring channels of a pixel, as kernels compute with them.
using Quad = Four<float>;

template <class To, class From>
__device__ __forceinline__ Four<To> converted(const Four<From>& four) {
  Four<To> result;
#pragma unroll
  for (int i = 0; i < 4; ++i) result.at[i] = four.at[i];
  return result;
}

// Four elements from a multiple of four on, of an array that begins at a multiple of 16 bytes.
template <class T>
__device__ __forceinline__ Four<Compute<T>> load(const T* from) {
  const Four<T> four = *reinterpret_cast<const Four<T>*>(from);
  return converted<Compute<T>>(four);
}

template <class T>
__device__ __forceinline__ void store(T* to, const Four<Compute<T>>& four) {
  const Four<T> stored = converted<T>(four);
  *reinterpret_cast<Four<T>*>(to) = stored;
}

// Elements first to first + 3 of an array of `count`, `first` a multiple of four; zeros in place of
// those beyond the end.
template <class T>
__device__ __forceinline__ Four<Compute<T>> load_four(const T* array, unsigned first,
                                                      unsigned count) {
  if (first + 4 <= count) return load(array + first);
  Four<Compute<T>> four = {};
#pragma unroll
  for (unsigned i = 0; i < 4; ++i)
    if (first + i < count) four.at[i] = array[first + i];
  return four;
}

// Write them back; what lies beyond the end is left out.
template <class T>
__device__ __forceinline__ void store_four(T* array, unsigned first, unsigned count,
                                           const Four<Compute<T>>& four) {
  if (first + 4 <= count) return store(array + first, four);
#pragma unroll
  for (unsigned i = 0; i < 4; ++i)
    if (first + i < count) array[first + i] = four.at[i];
}

// The first of the four elements that belong to this thread of a grid in one dimension.
__device__ __forceinline__ unsigned first_of_four() {
  return 4 * (blockIdx.x * blockDim.x + threadIdx.x);
}
