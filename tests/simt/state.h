// State shared by barriers.cpp and scheduler.cpp: the running block, its threads and its warps.
#pragma once
#include <deque>
#include <vector>

#include "engine.h"
#include "fibers.h"
#include "sanitizers.h"

namespace simt {

// A barrier. Waiting threads resume when `generation` has changed.
struct Barrier {
  int arrived = 0;
  unsigned generation = 0;
  int number = 0;  // among those of the block
  char* clock() const;
};

// The lanes of a warp that meet under one mask.
struct Group {
  unsigned mask = 0;
  Barrier barrier;
  const void* operation = nullptr;
  bool computed = false;
};
constexpr size_t MAX_GROUPS = 16;   // a warp

struct Warp {
  unsigned live = 0;           // lanes that have not returned
  std::vector<Group> groups;   // never moved: who waits points into it
  Exchange exchange;
};

struct Fiber {   // a CUDA thread
  Context context;
  char* stack = nullptr;
  Position position;
  bool done;
  const unsigned* gate;   // waits until this generation...
  unsigned seen;          // ...is no longer this one
  std::deque<std::vector<Copy>> groups;   // cp.async: committed
  std::vector<Copy> open;                 // and not yet committed
  bool fenced = false;                    // since its last barrier
  void* counted = nullptr;                // its last atomic operation, until a fence
  SIMT_IF_THREAD(void* sanitizer = nullptr;)
};

constexpr size_t MAX_BARRIERS = 1 + MAX_THREADS / WARP * MAX_GROUPS;  // a block
constexpr size_t CLOCKS = 2 * MAX_BARRIERS * sizeof(long);

struct Block {
  int live = 0;                // threads that have not returned
  Barrier barrier;
  const char* file = nullptr;  // of the barrier that threads wait at
  int line = 0;
  int votes = 0, result = 0;   // of __syncthreads_count
};

extern std::vector<Warp> warps;
extern Block block;
extern Fiber* current;

void leave();            // back to the scheduler
void thread_returns();   // a thread that has returned is waited for no more

}  // namespace simt
