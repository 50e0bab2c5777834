// Barriers: the block's, the groups of a warp, and the queues of cp.async.
#include <cstring>

#include "state.h"

namespace simt {

namespace {

void wait(Barrier& barrier) {
  current->gate = &barrier.generation;
  current->seen = barrier.generation;
  leave();
  current->gate = nullptr;
}

void open_block() {
  block.barrier.arrived = 0;
  ++block.barrier.generation;
  block.result = block.votes;
  block.votes = 0;
}

void open_group(Group& group) {
  group.barrier.arrived = 0;
  ++group.barrier.generation;
  group.computed = false;
}

Warp& warp() { return warps[current->position.thread / WARP]; }
int lane() { return current->position.thread % WARP; }

bool complete(const Group& group) {
  return group.barrier.arrived == __builtin_popcount(group.mask & warp().live);
}

Group& group_of(unsigned mask) {
  if (!(mask >> lane() & 1))
    fail("lane %d meets others under mask 0x%08x, which leaves it out", lane(), mask);
  auto& groups = warp().groups;
  for (Group& group : groups)
    if (group.mask == mask) return group;
  if (groups.size() == MAX_GROUPS) fail("more than %zu masks in one warp", MAX_GROUPS);
  Group& group = groups.emplace_back();
  group.mask = mask;
  group.barrier.number = 1 + current->position.thread / WARP * MAX_GROUPS + groups.size() - 1;
  return group;
}

void meet_group(Group& group, const void* operation) {
  if (group.barrier.arrived > 0 && group.operation != operation)
    fail("the lanes of a warp meet in different instructions");
  group.operation = operation;
  ++group.barrier.arrived;
  if (complete(group))
    open_group(group);
  else
    wait(group.barrier);
}

}  // namespace

// ThreadSanitizer learns from it what a barrier orders. It lies behind the shared memory of the
// block, for each block has its own. There are two, in turns: with one, what a thread does before
// it meets the others again would seem to be ordered before what a late one does after this meeting.
char* Barrier::clock() const {
  return arena + ARENA + (2 * number + generation % 2) * sizeof(long);
}

void thread_returns() {
  current->done = true;
  --block.live;
  if (block.barrier.arrived > 0 && block.barrier.arrived == block.live) open_block();
  warp().live &= ~(1u << lane());
  for (Group& group : warp().groups)
    if (group.barrier.arrived > 0 && complete(group)) open_group(group);
}

void block_barrier(const char* file, int line) { block_count(0, file, line); }

unsigned block_meetings() { return block.barrier.generation; }

int block_count(int predicate, const char* file, int line) {
  Barrier& barrier = block.barrier;
  if (barrier.arrived > 0 && (line != block.line || strcmp(file, block.file) != 0))
    fail("the threads of a block meet at different barriers, %s:%d and %s:%d", block.file,
         block.line, file, line);
  block.file = file;
  block.line = line;
  block.votes += predicate;
  SIMT_IF_THREAD(char* clock = barrier.clock(); __tsan_release(clock);)
  if (++barrier.arrived == block.live)
    open_block();
  else
    wait(barrier);
  SIMT_IF_THREAD(__tsan_acquire(clock);)
  current->fenced = false;
  return block.result;
}

void warp_barrier(unsigned mask) {
  Group& group = group_of(mask);
  SIMT_IF_THREAD(char* clock = group.barrier.clock(); __tsan_release(clock);)
  meet_group(group, nullptr);
  SIMT_IF_THREAD(__tsan_acquire(clock);)
}

void fence() {
  current->fenced = true;
  SIMT_IF_THREAD(if (current->counted != nullptr) __tsan_acquire(current->counted);)
  current->counted = nullptr;
}

void atomic_operation(void* address) {
  SIMT_IF_THREAD(if (current->fenced) __tsan_release(address);)
  current->counted = address;
}

Exchange& exchange() { return warp().exchange; }

// A shuffle exchanges registers. It orders no accesses to memory, so no clock moves here.
bool meet(unsigned mask, const void* operation, unsigned* members) {
  Group& group = group_of(mask);
  meet_group(group, operation);
  *members = mask & warp().live;
  const bool first = !group.computed;
  group.computed = true;
  return first;
}

void exchanging(bool begins) {
  SIMT_IF_THREAD(if (begins) __tsan_ignore_thread_begin(); else __tsan_ignore_thread_end();)
  SIMT_IF_TRACE(trace::paused = begins;)
  (void)begins;
}

void enqueue(const Copy& copy) { current->open.push_back(copy); }

void commit_copies() {
  current->groups.push_back(current->open);
  current->open.clear();
}

bool dequeue(int pending_groups, Copy* copy) {
  auto& groups = current->groups;
  for (; groups.size() > static_cast<size_t>(pending_groups); groups.pop_front()) {
    if (groups.front().empty()) continue;
    *copy = groups.front().back();
    groups.front().pop_back();
    return true;
  }
  return false;
}

}  // namespace simt
