// Four neighbouring channels, which travel between memory and registers as one piece of 16 bytes.
//
// A warp that asks for 16 bytes a thread has four times as much on its way as one that asks for 4,
// with the same number of instructions. Addresses must be multiples of 16 bytes: the index of the
// first channel is a multiple of 4, and arrays begin at such addresses.
#pragma once

struct Quad {
  float of[4];
};

__device__ __forceinline__ Quad load(const float* from) {
  const float4 v = *reinterpret_cast<const float4*>(from);
  return {{v.x, v.y, v.z, v.w}};
}

__device__ __forceinline__ void store(float* to, const Quad& q) {
  *reinterpret_cast<float4*>(to) = {q.of[0], q.of[1], q.of[2], q.of[3]};
}
