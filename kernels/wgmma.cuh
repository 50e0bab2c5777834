// Hopper's tensor cores (sm_90a only). Their inline PTX is not in ptx.cuh, because a source that
// includes this file compiles for no other GPU.
//
// Four warps, a warpgroup, multiply D[64 x 128] += A[64 x 8] B[8 x 128] together, and the factors
// come from shared memory directly: no loads, no registers for A and B. There they lie in tiles of
// lines of 32 floats, a row of A or a column of B in each, SWIZZLED (tensor_tile.cuh), at a
// multiple of 1024 bytes. TF32 factors are floats whose lower 13 bits are ignored: cut off, unless
// they were rounded before.
//
// D in registers: warp w of the four has rows 16 w .. 16 w + 15, in fragments as in ptx.cuh:
//
//              n = 8 j + 2 t   8 j + 2 t + 1
//   m = 16 w + g     d[j][0]      d[j][1]
//   m = 16 w + g + 8 d[j][2]      d[j][3]
//
// The multiplication runs while the threads do something else, until they wait for it:
//
//   make_visible(); __syncthreads();     what threads copied, the tensor cores shall see
//   Multiplication work;
//   work.begin(); work.multiply_add(...); ...; work.commit();
//   ...                                  neither D nor the tiles may be touched here
//   work.wait(D);
#pragma once
#include "ptx.cuh"

using Row64x128 = float[16][4];  // a lane's part of D: [j][register]

// The instruction's descriptor of a tile: the address / 16; from bit 16 on, a distance that means
// nothing in this layout, 1; from bit 32, the bytes from 8 lines to the next 8, 1024 / 16; from
// bit 62, 1 for exchanges within 128 bytes.
__device__ __forceinline__ unsigned long long descriptor(const float* tile) {
  unsigned long long address = static_cast<unsigned>(__cvta_generic_to_shared(tile));
  return (address & 0x3ffff) >> 4 | 1ull << 16 | 64ull << 32 | 1ull << 62;
}

// Makes this thread's writes to shared memory (a cp.async that it has waited for included) visible
// to tensor cores, which read it by another path than threads. A barrier comes after it.
__device__ __forceinline__ void make_visible() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// All four read shared memory, or are in order with what does: hence "memory".
struct Multiplication {
  // The registers of D have been written by ordinary instructions until now.
  __device__ __forceinline__ void begin() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
  }

  // d += a b for 8 k's; `a` and `b` point to the first of them in the first line.
  __device__ __forceinline__ void multiply_add(Row64x128& d, const float* a, const float* b) {
#define FOUR(j) "+f"(d[j][0]), "+f"(d[j][1]), "+f"(d[j][2]), "+f"(d[j][3])
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n128k8.f32.tf32.tf32 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, "
        "%8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, "
        "%24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, "
        "%40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, "
        "%56, %57, %58, %59, %60, %61, %62, %63}, "
        "%64, %65, 1, 1, 1;"
        : FOUR(0), FOUR(1), FOUR(2), FOUR(3), FOUR(4), FOUR(5), FOUR(6), FOUR(7), FOUR(8), FOUR(9),
          FOUR(10), FOUR(11), FOUR(12), FOUR(13), FOUR(14), FOUR(15)
        : "l"(descriptor(a)), "l"(descriptor(b))
        : "memory");
#undef FOUR
  }

  __device__ __forceinline__ void commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
  }

  // `d` are all accumulators: so what reads or writes them afterwards is not moved before this.
  template <class... Ds>
  __device__ __forceinline__ void wait(Ds&... d) {
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
    const auto stay_behind = [](Row64x128& sums) {
#pragma unroll
      for (auto& sum : sums)
        asm volatile("" : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3]));
    };
    (stay_behind(d), ...);
  }
};
