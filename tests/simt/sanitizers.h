// Annotations for the sanitizers: fibers, and memory that the shim hands out. The
// engine itself is compiled without them: only a kernel's own accesses are looked at.
#pragma once
#include <cstddef>

#ifdef SIMT_THREAD
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
void __tsan_ignore_thread_begin();
void __tsan_ignore_thread_end();
}
#define SIMT_IF_THREAD(...) __VA_ARGS__
#else
#define SIMT_IF_THREAD(...)
#endif

#ifdef SIMT_ADDRESS
extern "C" void __asan_poison_memory_region(const volatile void* address, size_t bytes);
extern "C" void __asan_unpoison_memory_region(const volatile void* address, size_t bytes);
#define SIMT_IF_ADDRESS(...) __VA_ARGS__
#else
#define SIMT_IF_ADDRESS(...)
#endif

#ifdef SIMT_TRACE
namespace simt::trace {
void end_block();
extern bool paused;
}
#define SIMT_IF_TRACE(...) __VA_ARGS__
#else
#define SIMT_IF_TRACE(...)
#endif
