// Runs a grid: one block at a time, in it one fiber per CUDA thread.
//
// A fiber runs until it waits; then the scheduler resumes another. As only one runs at a time,
// a schedule is an order, and what a kernel computes must not depend on it.
#include <cstdarg>
#include <cstdio>
#include <cstring>

#include "state.h"

namespace simt {

const Position* position;
Launch launch;

std::vector<Fiber> own_fibers, *fibers = &own_fibers;
std::vector<Warp> warps;
Block block;
char* arena;
Fiber* current;

namespace {

struct Claim {   // a static shared array
  size_t offset, bytes;
};
// Blocks may run at the same time. For ThreadSanitizer to see them so, those of some in a row have
// places of their own: shared memory and fibers. Nothing orders them, but where a place is left.
constexpr size_t PLACE = ARENA + (CLOCKS + 1023) / 1024 * 1024;
constexpr int PLACES = 1 SIMT_IF_THREAD(+7);
alignas(1024) char arenas[PLACES][PLACE];
int places, place;   // in use, by as many threads as a large block has; of the running block

std::vector<Claim> claims;
size_t static_shared, arena_used;
unsigned launches;

Context scheduler;
int threads;   // of a block
void (*kernel)(void*);
void* kernel_call;
char error[512];
bool failed;

// One object for each edge: with one for both, the end of a thread would be ordered before the
// beginning of another.
SIMT_IF_THREAD(void* main_fiber; char block_begins, block_ends[PLACES];)

void fiber_main() {
  SIMT_IF_THREAD(__tsan_acquire(&block_begins);)
  kernel(kernel_call);
  SIMT_IF_THREAD(__tsan_release(&block_ends[place]);)
  thread_returns();
  for (;;) leave();
}

Fiber& fiber_of(int thread) { return (*fibers)[place * threads + thread]; }

// Every bit is set, which is a NaN: what was not written shows.
void poison_shared() {
  memset(arena, 0xff, launch.dynamic_shared);
  for (const Claim& claim : claims) memset(arena + claim.offset, 0xff, claim.bytes);
}

void begin_block(const uint3& index) {
  const unsigned *size = launch.block, *grid = launch.grid;
  block = {};
  block.live = threads;
  for (int i = 0; i < threads; ++i) {
    Fiber& fiber = fiber_of(i);
    const unsigned n = static_cast<unsigned>(i);
    fiber.position = {{n % size[0], n / size[0] % size[1], n / (size[0] * size[1])},
                      index,
                      {size[0], size[1], size[2]},
                      {grid[0], grid[1], grid[2]},
                      i};
    fiber.done = false;
    fiber.gate = nullptr;
    fiber.fenced = false;
    fiber.counted = nullptr;
    fiber.groups.clear();
    fiber.open.clear();
    SIMT_IF_ADDRESS(__asan_unpoison_memory_region(fiber.stack, STACK);)
    prepare(fiber.context, fiber.stack, fiber_main);
  }
  for (size_t w = 0; w < warps.size(); ++w) {
    const int lanes = threads - static_cast<int>(w) * WARP;
    warps[w].live = lanes >= WARP ? ~0u : (1u << lanes) - 1;
    warps[w].groups.clear();
  }
}

// ThreadSanitizer still has what the threads were doing when a launch failed: forget it.
void forget_fibers() {
  SIMT_IF_THREAD(for (Fiber& fiber : *fibers) {
    if (fiber.sanitizer != nullptr) __tsan_destroy_fiber(fiber.sanitizer);
    fiber.sanitizer = nullptr;
  })
}

// Resume a thread, if it can run.
bool step(int thread) {
  Fiber& fiber = fiber_of(thread);
  const bool waits = fiber.gate != nullptr && *fiber.gate == fiber.seen;
  if (failed || fiber.done || waits) return false;
  current = &fiber;
  position = &fiber.position;
  SIMT_IF_THREAD(__tsan_switch_to_fiber(fiber.sanitizer, 1);)   // 1: a switch orders nothing
  switch_context(scheduler, fiber.context);
  return true;
}

bool step_warp(int warp, bool reversed) {
  bool any = false;
  for (int i = 0; i < WARP; ++i) {
    const int thread = warp * WARP + (reversed ? WARP - 1 - i : i);
    if (thread < threads) any |= step(thread);
  }
  return any;
}

void report_deadlock(const uint3& at) {
  const bool at_block = block.barrier.arrived > 0;
  char where[256] = "at barriers or exchanges of their warps";
  if (at_block) snprintf(where, sizeof where, "at the barrier of %s:%d", block.file, block.line);
  snprintf(error, sizeof error,
           "deadlock in block (%u, %u, %u): %d of %d threads wait %s, and others never come",
           at.x, at.y, at.z, at_block ? block.barrier.arrived : block.live, threads, where);
  failed = true;
}

void run_block(const uint3& index) {
  const bool reversed = launch.schedule == 1, in_turns = launch.schedule == 2;
  const int count = static_cast<int>(warps.size());
  poison_shared();
  SIMT_IF_THREAD(main_fiber = __tsan_get_current_fiber(); __tsan_release(&block_begins);)
  begin_block(index);
  while (block.live > 0 && !failed) {
    bool any = false;
    for (int i = 0; i < count; ++i) {
      const int warp = reversed ? count - 1 - i : i;
      while (step_warp(warp, reversed)) {
        any = true;
        if (in_turns) break;
      }
    }
    if (!any && !failed) report_deadlock(index);
  }
  SIMT_IF_TRACE(trace::end_block();)
}

// The order of blocks: ascending, descending, scattered.
uint64_t block_of_turn(uint64_t turn, uint64_t blocks) {
  if (launch.schedule == 0) return turn;
  if (launch.schedule == 1) return blocks - 1 - turn;
  constexpr uint64_t PRIME = 7919;
  return blocks % PRIME == 0 ? turn : (blocks / 2 + turn * PRIME) % blocks;
}

const char* begin_launch(int max_threads) {
  threads = static_cast<int>(launch.block[0] * launch.block[1] * launch.block[2]);
  if (threads > max_threads) {
    snprintf(error, sizeof error, "%d threads; its __launch_bounds__ allow %d", threads,
             max_threads);
    return error;
  }
  places = MAX_THREADS / threads < PLACES ? MAX_THREADS / threads : PLACES;
  const size_t wanted = places * threads;
  if (fibers->size() < wanted) fibers->resize(wanted);
  for (Fiber& fiber : *fibers) {
    if (fiber.stack == nullptr) fiber.stack = new_stack();
    if (fiber.stack == nullptr) return "no memory for the stacks of its threads";
    SIMT_IF_THREAD(if (fiber.sanitizer == nullptr) fiber.sanitizer = __tsan_create_fiber(0);)
  }
  warps.resize((threads + WARP - 1) / WARP);
  for (Warp& warp : warps) warp.groups.reserve(MAX_GROUPS);
  failed = false;
  ++launches;
  claims.clear();
  static_shared = 0;
  arena_used = launch.dynamic_shared;
  SIMT_IF_ADDRESS(__asan_unpoison_memory_region(arena, ARENA);)
  arena = arenas[0];
  memset(arena, 0xff, ARENA);
  SIMT_IF_ADDRESS(__asan_poison_memory_region(arena + arena_used, ARENA - arena_used);)
  SIMT_IF_TRACE(trace::paused = false;)
  return nullptr;
}

}  // namespace

void leave() {
  SIMT_IF_THREAD(__tsan_switch_to_fiber(main_fiber, 1);)
  switch_context(current->context, scheduler);
}

unsigned launch_number() { return launches; }

size_t claim_shared(size_t bytes, size_t alignment) {
  constexpr size_t RED_ZONE = 64;
  static_shared += bytes;
  const size_t all = static_shared + launch.dynamic_shared;
  if (static_shared > MAX_STATIC_SHARED)
    fail("%zu bytes of static shared memory; at most %zu", static_shared, MAX_STATIC_SHARED);
  if (all > MAX_SHARED) fail("%zu bytes of shared memory; at most %zu", all, MAX_SHARED);
  const size_t offset = (arena_used + RED_ZONE + alignment - 1) / alignment * alignment;
  if (offset + bytes > ARENA) fail("too many small arrays in shared memory");
  arena_used = offset + bytes;
  claims.push_back({offset, bytes});
  SIMT_IF_ADDRESS(__asan_unpoison_memory_region(arena + offset, bytes);)
  return offset;
}

void fail(const char* format, ...) {
  char text[256];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  const uint3 &at = current->position.block_index, &thread = current->position.thread_index;
  snprintf(error, sizeof error, "%s (block (%u, %u, %u), thread (%u, %u, %u))", text, at.x, at.y,
           at.z, thread.x, thread.y, thread.z);
  failed = true;
  for (;;) leave();
}

const char* run(const Launch& wanted, int max_threads, void (*function)(void*), void* call) {
  launch = wanted;
  kernel = function;
  kernel_call = call;
  if (const char* refusal = begin_launch(max_threads)) return refusal;
  const unsigned x = launch.grid[0], y = launch.grid[1];
  const uint64_t blocks = uint64_t(x) * y * launch.grid[2];
  for (uint64_t turn = 0; turn < blocks && !failed; ++turn) {
    place = turn % places;
    arena = arenas[place];
    SIMT_IF_THREAD(__tsan_acquire(&block_ends[place]);)
    const uint64_t number = block_of_turn(turn, blocks);
    run_block({unsigned(number % x), unsigned(number / x % y), unsigned(number / x / y)});
  }
  SIMT_IF_THREAD(for (char& ends : block_ends) __tsan_acquire(&ends);)
  if (failed) {
    forget_fibers();
    return error;
  }
  current = nullptr;
  position = nullptr;
  return nullptr;
}

}  // namespace simt

// ThreadSanitizer maps memory nine times for each fiber, and Linux allows a process 65,530 mappings:
// the libraries of one mode share those of the first.
extern "C" __attribute__((visibility("default"))) void* simt_fibers(void* of_the_first) {
  if (of_the_first != nullptr) simt::fibers = static_cast<std::vector<simt::Fiber>*>(of_the_first);
  return simt::fibers;
}
