// A stack of one's own and a switch between stacks: what a fiber is made of.
#pragma once
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>

#if !defined(__x86_64__) && !defined(SIMT_UCONTEXT)
#define SIMT_UCONTEXT
#endif
#ifdef SIMT_UCONTEXT
#include <ucontext.h>
#endif

namespace simt {

constexpr size_t STACK = 256 << 10;   // reserved; only what a fiber touches costs memory

// Reserve a stack; below it lies a page that may not be touched, so that an overflow stops.
inline char* new_stack() {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  void* low = mmap(nullptr, page + STACK, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (low == MAP_FAILED) return nullptr;
  mprotect(low, page, PROT_NONE);
  return static_cast<char*>(low) + page;
}

#ifdef SIMT_UCONTEXT  // any machine; each switch asks the system for the signal mask: slow

struct Context {
  ucontext_t state;
};
inline void switch_context(Context& from, Context& to) { swapcontext(&from.state, &to.state); }
inline void prepare(Context& context, char* stack, void (*entry)()) {
  getcontext(&context.state);
  context.state.uc_stack.ss_sp = stack;
  context.state.uc_stack.ss_size = STACK;
  context.state.uc_link = nullptr;
  makecontext(&context.state, entry, 0);
}

#else  // x86-64, System V: the registers that a call preserves lie on the stack

struct Context {
  void* stack_pointer;
};
extern "C" void simt_switch(void** from, void* to);
asm(R"(
.text
.type simt_switch, @function
simt_switch:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
.size simt_switch, . - simt_switch
)");
inline void switch_context(Context& from, Context& to) {
  simt_switch(&from.stack_pointer, to.stack_pointer);
}
inline void prepare(Context& context, char* stack, void (*entry)()) {
  void** top = reinterpret_cast<void**>(stack + STACK);
  *--top = nullptr;                             // where `entry` would return to: it never does
  *--top = reinterpret_cast<void*>(entry);      // where the first switch goes
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  context.stack_pointer = top;
}

#endif

}  // namespace simt
