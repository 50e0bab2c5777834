// Counts memory traffic at every access of a kernel. g++ -fsanitize=thread calls __tsan_read4 and
// its like at each access; here they are our own, linked instead of ThreadSanitizer's.
//
// The n-th visits of one instruction by the lanes of a warp are one request. A request to global
// memory moves sectors of 32 bytes; one to shared memory takes as many rounds as the busiest bank
// has different words, of 4 bytes in 32 banks (lanes of 8 bytes go in two halves, of 16 in four
// quarters, and words that lanes share are read once).
#include <algorithm>
#include <cstdint>
#include <map>
#include <tuple>
#include <vector>

#include "state.h"

// The first byte of this library and the byte after its last, as the linker names them.
extern const char __ehdr_start[] __attribute__((visibility("hidden")));
extern const char _end[] __attribute__((visibility("hidden")));

namespace simt::trace {

constexpr int BANKS = 32, WORD = 4, SECTOR = 32;

struct Access {
  uintptr_t instruction, address;
  int thread, bytes;
  int visit;   // how often this thread has been here before
};

// As traces.py reads it.
struct Traffic {
  uint64_t instruction;    // its offset in this library
  uint64_t shared;         // 1: shared memory, 0: global
  uint64_t requests;
  uint64_t moved, least;   // rounds or sectors: as counted, and as few as it could have been
};

bool paused;

namespace {

std::vector<Access> accesses;
std::map<std::pair<uintptr_t, bool>, Traffic> traffic;

bool in_shared(uintptr_t address) {
  const uintptr_t begin = reinterpret_cast<uintptr_t>(arena);
  return begin <= address && address < begin + ARENA;
}

bool inside(uintptr_t address, const void* begin, const void* end) {
  return reinterpret_cast<uintptr_t>(begin) <= address &&
         address < reinterpret_cast<uintptr_t>(end);
}

void touch(const void* p, int bytes, const void* instruction) {
  if (paused || current == nullptr) return;
  const auto address = reinterpret_cast<uintptr_t>(p);
  if (inside(address, current->stack, current->stack + STACK)) return;   // registers
  if (inside(address, current, current + 1)) return;                     // threadIdx and its like
  const bool own = inside(address, __ehdr_start, _end);                  // constants, the shim
  if (own && !in_shared(address)) return;
  const auto offset = static_cast<const char*>(instruction) - __ehdr_start;
  accesses.push_back({static_cast<uintptr_t>(offset), address, current->position.thread, bytes, 0});
}

// More than a lane can move at once: 16 bytes after 16 bytes.
void touch_many(const void* p, size_t bytes, const void* instruction) {
  constexpr size_t MOST = 16;
  for (size_t i = 0; i < bytes; i += MOST)
    touch(static_cast<const char*>(p) + i, static_cast<int>(std::min(MOST, bytes - i)), instruction);
}

using Iterator = std::vector<Access>::const_iterator;

template <class T> size_t distinct(std::vector<T>& values) {
  std::sort(values.begin(), values.end());
  return static_cast<size_t>(std::unique(values.begin(), values.end()) - values.begin());
}

void count_global(Iterator begin, Iterator end, Traffic& total) {
  std::vector<uintptr_t> bytes, sectors;
  for (auto access = begin; access != end; ++access)
    for (int i = 0; i < access->bytes; ++i) {
      bytes.push_back(access->address + i);
      sectors.push_back((access->address + i) / SECTOR);
    }
  total.moved += distinct(sectors);
  total.least += (distinct(bytes) + SECTOR - 1) / SECTOR;
}

void count_shared(Iterator begin, Iterator end, Traffic& total) {
  const int lanes = begin->bytes == 16 ? 8 : begin->bytes == 8 ? 16 : 32;   // that go together
  for (auto access = begin; access != end;) {
    const int part = access->thread / lanes;
    std::vector<uintptr_t> words;
    for (; access != end && access->thread / lanes == part; ++access)
      for (int i = 0; i < access->bytes; i += WORD) words.push_back((access->address + i) / WORD);
    words.resize(distinct(words));
    size_t busy[BANKS] = {};
    for (const uintptr_t word : words) ++busy[word % BANKS];
    total.moved += *std::max_element(busy, busy + BANKS);
    total.least += (words.size() + BANKS - 1) / BANKS;
  }
}

}  // namespace

void end_block() {
  const auto by_thread = [](const Access& a, const Access& b) {
    return std::tie(a.instruction, a.thread) < std::tie(b.instruction, b.thread);
  };
  std::stable_sort(accesses.begin(), accesses.end(), by_thread);
  for (size_t i = 1; i < accesses.size(); ++i)
    if (!by_thread(accesses[i - 1], accesses[i])) accesses[i].visit = accesses[i - 1].visit + 1;
  const auto request = [](const Access& a) {
    return std::make_tuple(a.instruction, in_shared(a.address), a.thread / WARP, a.visit);
  };
  std::sort(accesses.begin(), accesses.end(), [&](const Access& a, const Access& b) {
    return std::tuple_cat(request(a), std::tie(a.thread)) <
           std::tuple_cat(request(b), std::tie(b.thread));
  });
  for (auto begin = accesses.cbegin(); begin != accesses.cend();) {
    auto end = begin;
    while (end != accesses.cend() && request(*end) == request(*begin)) ++end;
    const bool shared = in_shared(begin->address);
    Traffic& total = traffic[{begin->instruction, shared}];
    total.instruction = begin->instruction;
    total.shared = shared;
    ++total.requests;
    (shared ? count_shared : count_global)(begin, end, total);
    begin = end;
  }
  accesses.clear();
}

}  // namespace simt::trace

#define SIMT_HOOK extern "C" __attribute__((visibility("default"))) void
#define SIMT_ACCESS(name, bytes)                                       \
  SIMT_HOOK __tsan_##name(void* p) {                                   \
    simt::trace::touch(p, bytes, __builtin_return_address(0));         \
  }
#define SIMT_ACCESSES(bytes)                                           \
  SIMT_ACCESS(read##bytes, bytes) SIMT_ACCESS(write##bytes, bytes)     \
  SIMT_ACCESS(unaligned_read##bytes, bytes) SIMT_ACCESS(unaligned_write##bytes, bytes)
SIMT_ACCESSES(1)
SIMT_ACCESSES(2)
SIMT_ACCESSES(4)
SIMT_ACCESSES(8)
SIMT_ACCESSES(16)
SIMT_HOOK __tsan_read_range(void* p, size_t bytes) {
  simt::trace::touch_many(p, bytes, __builtin_return_address(0));
}
SIMT_HOOK __tsan_write_range(void* p, size_t bytes) {
  simt::trace::touch_many(p, bytes, __builtin_return_address(0));
}
SIMT_HOOK __tsan_func_entry(void*) {}
SIMT_HOOK __tsan_func_exit() {}
SIMT_HOOK __tsan_init() {}

// Move what was counted since the last call to `out`, at most so many rows; return how many.
extern "C" __attribute__((visibility("default"))) int simt_trace(simt::trace::Traffic* out,
                                                                 int most) {
  int count = 0;
  for (const auto& [key, total] : simt::trace::traffic)
    if (count < most) out[count++] = total;
  simt::trace::traffic.clear();
  return count;
}
