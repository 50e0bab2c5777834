// CUDA C++ for g++: run a kernel's own source on the CPU. README.md says how it works.
//
// This header holds CUDA's names; it is included before the first line of a kernel's source.
// build.py rewrites the two forms of __shared__, which C++ has no macro for, and appends a
// SIMT_EXPORT for each extern "C" kernel and each instance of a template that is asked for.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <type_traits>
#include <utility>

#include "cuda_math.h"
#include "cuda_types.h"
#include "engine.h"

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __grid_constant__
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __align__(n) alignas(n)
#define __builtin_assume(condition) ((void)0)

#define threadIdx (simt::position->thread_index)
#define blockIdx (simt::position->block_index)
#define blockDim (simt::position->block_dim)
#define gridDim (simt::position->grid_dim)
constexpr int warpSize = simt::WARP;

// ---- shared memory --------------------------------------------------------------------------
// __shared__ float tile[8][8];      becomes   SIMT_STATIC_SHARED(tile, 1, float[8][8]);
// extern __shared__ float ring[];   becomes   SIMT_DYNAMIC_SHARED(ring, float);
#define SIMT_STATIC_SHARED(name, alignment, ...)                       \
  auto& name = []() -> auto& {                                         \
    static simt::Slot slot;                                            \
    return simt::shared<simt::Type<__VA_ARGS__>>(slot, alignment);     \
  }()
#define SIMT_DYNAMIC_SHARED(name, ...) auto* name = reinterpret_cast<__VA_ARGS__*>(simt::arena)

inline size_t __cvta_generic_to_shared(const void* p) {
  return static_cast<size_t>(static_cast<const char*>(p) - simt::arena);
}

// The shim's own accesses are not the kernel's: no race, no traffic.
#define SIMT_UNSEEN __attribute__((no_sanitize("thread")))

namespace simt {

template <class T> using Type = T;
struct Slot {
  unsigned launch = 0;
  size_t offset = 0;  // in the arena
};
template <class T> SIMT_UNSEEN T& shared(Slot& slot, size_t alignment) {
  if (slot.launch != launch_number()) {
    slot.offset = claim_shared(sizeof(T), alignment > alignof(T) ? alignment : alignof(T));
    slot.launch = launch_number();
  }
  return *reinterpret_cast<T*>(arena + slot.offset);
}

SIMT_UNSEEN inline int lane() { return position->thread % WARP; }

// Is this one, of the barriers that mutations.py numbers, to be left out?
inline bool skipped(int barrier) {
  const char* number = std::getenv("SIMT_SKIP");
  return number && std::atoi(number) == barrier;
}

// ---- collectives of a warp ------------------------------------------------------------------
// compute(in, out, members) sees what the lanes of `mask` gave and fills what each receives.
template <class Out, class In, class Compute>
SIMT_UNSEEN Out collective(unsigned mask, const In& value, Compute compute) {
  static_assert(sizeof(In) <= EXCHANGED && sizeof(Out) <= EXCHANGED, "too much for one lane");
  static const char operation = 0;
  Exchange& slots = exchange();
  In* in = reinterpret_cast<In*>(slots.in);
  Out* out = reinterpret_cast<Out*>(slots.out);
  __builtin_memcpy(&in[lane()], &value, sizeof(In));
  unsigned members;
  if (meet(mask, &operation, &members)) {
    exchanging(true);
    compute(in, out, members);
    exchanging(false);
  }
  Out mine;
  __builtin_memcpy(&mine, &out[lane()], sizeof(Out));
  return mine;
}

// An instruction of all 32 lanes, such as mma: compute(in[32], out[32]).
template <class In, class Out, class Compute>
Out warp_compute(const In& value, Compute compute) {
  return collective<Out>(~0u, value, [&](const In* in, Out* out, unsigned members) {
    if (members != ~0u) fail("a warp-wide instruction by %d lanes", __builtin_popcount(members));
    compute(in, out);
  });
}

// Shuffles: source(lane, operand, first) names the lane to read, in a segment that begins at
// `first`; outside the segment a lane keeps its own value. Reading a lane that does not take
// part is undefined: every bit is set, which is a NaN.
template <class T, class Source>
T shuffle(unsigned mask, const T& value, int operand, int width, Source source) {
  struct In {
    T value;
    int operand, width;
  };
  return collective<T>(mask, In{value, operand, width}, [=](const In* in, T* out, unsigned members) {
    for (int lane = 0; lane < WARP; ++lane) {
      if (!(members >> lane & 1)) continue;
      const int first = lane / in[lane].width * in[lane].width;
      int from = source(lane, in[lane].operand, first);
      if (from < first || from >= first + in[lane].width) from = lane;
      if (members >> from & 1)
        __builtin_memcpy(&out[lane], &in[from].value, sizeof(T));
      else
        __builtin_memset(&out[lane], 0xff, sizeof(T));
    }
  });
}

SIMT_UNSEEN inline unsigned ballot(unsigned mask, bool predicate, bool absent) {
  return collective<unsigned>(mask, predicate, [=](const bool* in, unsigned* out, unsigned members) {
    unsigned votes = 0;
    for (int lane = 0; lane < WARP; ++lane)
      votes |= unsigned(members >> lane & 1 ? in[lane] : absent) << lane;
    for (int lane = 0; lane < WARP; ++lane)
      if (members >> lane & 1) out[lane] = votes;
  });
}

// ---- cp.async -------------------------------------------------------------------------------
// Lazily, the bytes land when the thread waits for them; eagerly, at once. Each shows other faults.
inline void land(const Copy& copy) {
  if (copy.bytes == 16) *static_cast<uint4*>(copy.to) = copy.data;
  if (copy.bytes == 8) *static_cast<uint2*>(copy.to) = make_uint2(copy.data.x, copy.data.y);
  if (copy.bytes == 4) *static_cast<unsigned*>(copy.to) = copy.data.x;
}
// Copy 4, 8 or 16 bytes: the first `valid` of them, and zeros.
inline void cp_async(void* to, const void* from, int bytes, int valid) {
  const auto misaligned = (reinterpret_cast<size_t>(to) | reinterpret_cast<size_t>(from)) % bytes;
  if (misaligned != 0) fail("cp.async of %d bytes that are not aligned to %d", bytes, bytes);
  if (valid < 0 || valid > bytes || valid % 2 != 0)  // the hardware takes any; no kernel means to
    fail("cp.async of %d bytes, of which %d are copied: not whole numbers", bytes, valid);
  Copy copy = {to, bytes, make_uint4(0, 0, 0, 0)};
  for (int i = 0; i < valid % bytes; i += 2)
    __builtin_memcpy(reinterpret_cast<char*>(&copy.data) + i, static_cast<const char*>(from) + i, 2);
  if (valid == bytes) {
    if (bytes == 16) copy.data = *static_cast<const uint4*>(from);
    if (bytes == 8) {
      const uint2 half = *static_cast<const uint2*>(from);
      copy.data = make_uint4(half.x, half.y, 0, 0);
    }
    if (bytes == 4) copy.data.x = *static_cast<const unsigned*>(from);
  }
  if (launch.eager_copies) land(copy); else enqueue(copy);
}
inline void cp_commit() { commit_copies(); }
inline void cp_wait(int pending_groups) {
  for (Copy copy; dequeue(pending_groups, &copy);) land(copy);
}

// ---- atomic operations -----------------------------------------------------------------------
template <class T> SIMT_UNSEEN T atomic_add(T* address, T value) {
  atomic_operation(address);
  const T before = *address;
  *address = before + value;
  return before;
}

// ---- launching ------------------------------------------------------------------------------
// A parameter's type as Python sees it: a kind ('i', 'u', 'f', 'b', 'V' for a struct; '*' and the
// kind for a pointer) and the size of the value, or of what the pointer points to.
struct Parameter {
  char pointer, kind;
  int bytes;
};
template <class T> constexpr Parameter parameter() {
  using Value = std::remove_cv_t<std::remove_pointer_t<T>>;
  const char kind = std::is_same_v<Value, bool> ? 'b' : std::is_floating_point_v<Value> ? 'f'
                  : std::is_unsigned_v<Value> ? 'u' : std::is_integral_v<Value> ? 'i' : 'V';
  return {std::is_pointer_v<T> ? '*' : ' ', kind, static_cast<int>(sizeof(Value))};
}
template <class... Ts> int parameters(void (*)(Ts...), Parameter* out) {
  int count = 0;
  ((out[count++] = parameter<Ts>()), ...);
  return count;
}

template <class... Ts> struct Call {
  void (*kernel)(Ts...);
  void** arguments;
  template <size_t... Is> SIMT_UNSEEN void make(std::index_sequence<Is...>) const {
    kernel(*static_cast<Ts*>(arguments[Is])...);
  }
};
template <class... Ts>
const char* start(const Launch& launch, int max_threads, void (*kernel)(Ts...), void** arguments) {
  Call<Ts...> call{kernel, arguments};
  const auto body = [](void* p) {
    static_cast<const Call<Ts...>*>(p)->make(std::index_sequence_for<Ts...>{});
  };
  return run(launch, max_threads, body, &call);
}
template <class... Others> constexpr int first(int value, Others...) { return value; }

}  // namespace simt

#define SIMT_PUBLIC extern "C" __attribute__((visibility("default")))
#define SIMT_EXPORT(symbol, threads, ...) /* the kernel, perhaps an instance of a template */     \
  SIMT_PUBLIC const char* simt_launch_##symbol(const simt::Launch* launch, void** arguments) {    \
    return simt::start(*launch, threads, __VA_ARGS__, arguments);                                 \
  }                                                                                               \
  SIMT_PUBLIC int simt_max_threads_##symbol() { return threads; }                                 \
  SIMT_PUBLIC int simt_parameters_##symbol(simt::Parameter* out) {                                \
    return simt::parameters(__VA_ARGS__, out);                                                    \
  }

// ---- CUDA's barriers and exchanges ----------------------------------------------------------
#define __syncthreads() simt::block_barrier(__FILE__, __LINE__)
#define __syncthreads_count(predicate) simt::block_count((predicate) != 0, __FILE__, __LINE__)
#define __syncthreads_or(predicate) int(__syncthreads_count(predicate) > 0)
#define __syncthreads_and(predicate) int(__syncthreads_count(!(predicate)) == 0)

inline void __threadfence() { simt::fence(); }
inline unsigned atomicAdd(unsigned* address, unsigned value) {
  return simt::atomic_add(address, value);
}
inline void __syncwarp(unsigned mask = ~0u) { simt::warp_barrier(mask); }
template <class T> T __shfl_sync(unsigned mask, T value, int lane, int width = 32) {
  return simt::shuffle(mask, value, lane, width,
                       [=](int, int operand, int first) { return first + operand % width; });
}
template <class T> T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  return simt::shuffle(mask, value, int(delta), width,
                       [](int lane, int operand, int) { return lane - operand; });
}
template <class T> T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  return simt::shuffle(mask, value, int(delta), width,
                       [](int lane, int operand, int) { return lane + operand; });
}
template <class T> T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
  return simt::shuffle(mask, value, bits, width,
                       [](int lane, int operand, int) { return lane ^ operand; });
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return simt::ballot(mask, predicate != 0, false);
}
inline int __any_sync(unsigned mask, int predicate) {
  return simt::ballot(mask, predicate != 0, false) != 0;
}
inline int __all_sync(unsigned mask, int predicate) {
  return simt::ballot(mask, predicate != 0, true) == ~0u;
}
