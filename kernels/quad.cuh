// Four neighbouring channels of a pixel, which travel between memory and registers as 16 bytes.
//
// The index of the first channel must be a multiple of 4, as channels are counted by fours; arrays
// begin at multiples of 16 bytes.
#pragma once
#include "four.cuh"

using Quad = Four<float>;

__device__ __forceinline__ Quad load(const float* from) {
  return *reinterpret_cast<const Quad*>(from);
}

__device__ __forceinline__ void store(float* to, const Quad& quad) {
  *reinterpret_cast<Quad*>(to) = quad;
}
