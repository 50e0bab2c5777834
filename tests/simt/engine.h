// Services of scheduler.cpp and barriers.cpp for CUDA's names (simt.h): the running CUDA thread,
// barriers, the exchange between the lanes of a warp, copies on their way, shared memory.
#pragma once
#include <cstddef>

#include "cuda_types.h"

namespace simt {

constexpr int WARP = 32;
constexpr int MAX_THREADS = 1024;            // a block
constexpr size_t MAX_STATIC_SHARED = 48 << 10;
constexpr size_t MAX_SHARED = 227 << 10;     // static and dynamic, a block on an H100
constexpr size_t ARENA = 320 << 10;          // the same, and room for red zones
constexpr size_t EXCHANGED = 256;            // bytes a lane can give to its warp at once

// One launch, as Python fills it in (build.py has the same fields).
struct Launch {
  unsigned grid[3], block[3];
  unsigned dynamic_shared;
  int schedule;      // 0: a warp runs as far as it can; 1: the same, last first; 2: in turns;
                     // blocks come in ascending, descending and scattered order
  int eager_copies;  // cp.async lands at once (1) or as late as it may (0)
};

struct Position {
  uint3 thread_index, block_index;
  dim3 block_dim, grid_dim;
  int thread;        // threadIdx as one number
};
extern const Position* position;    // of the CUDA thread that runs now
extern Launch launch;
extern char* arena;                 // a block's shared memory: the dynamic part first

// Barriers. `file` and `line` name the barrier: all threads must meet at the same one.
void block_barrier(const char* file, int line);
unsigned block_meetings();  // at barriers, until now
int block_count(int predicate, const char* file, int line);   // of threads whose predicate holds
void warp_barrier(unsigned mask);

// Between blocks. An atomic operation orders nothing by itself: a fence before it, later than the
// last barrier, lets what is ordered before that fence be seen; a fence after it lets the thread see.
void fence();
void atomic_operation(void* address);

// The exchange: every lane of `mask` writes its slot, and the first lane to resume computes the
// results of all. `operation` names what is exchanged; all lanes must do the same.
struct Exchange {
  alignas(16) char in[WARP * EXCHANGED], out[WARP * EXCHANGED];
};
Exchange& exchange();
bool meet(unsigned mask, const void* operation, unsigned* members);   // true: compute for all
void exchanging(bool begins);                                         // accesses are not the kernel's

// cp.async: what a thread has asked for, in groups.
struct Copy {
  void* to;
  int bytes;
  uint4 data;
};
void enqueue(const Copy& copy);
void commit_copies();
bool dequeue(int pending_groups, Copy* copy);   // false: no more than so many groups are pending

size_t claim_shared(size_t bytes, size_t alignment);  // static shared memory: its place in the arena
unsigned launch_number();

// Stop the launch with an error, which Python raises. printf's format.
void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// Run `kernel(call)` in every thread of every block; return null, or the text of an error.
const char* run(const Launch& launch, int max_threads, void (*kernel)(void*), void* call);

}  // namespace simt
