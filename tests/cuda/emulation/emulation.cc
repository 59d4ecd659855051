// The threads of a block as fibers: each has a stack of its own and runs until it waits.
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "cuda_runtime.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#define ATS_START_SWITCH(save, stack, size) __sanitizer_start_switch_fiber(save, stack, size)
#define ATS_FINISH_SWITCH(save) __sanitizer_finish_switch_fiber(save, nullptr, nullptr)
#else
#define ATS_START_SWITCH(save, stack, size) (void)(save)
#define ATS_FINISH_SWITCH(save) (void)(save)
#endif

namespace emulation {

thread_local Thread* thread = nullptr;
thread_local dim3 block, block_size, grid_size;
thread_local void* dynamic_shared = nullptr;

namespace {

constexpr size_t kStack = 256 * 1024;
int order = 0;
int64_t launches = 0;

// Threads that meet; a generation ends when all have come.
struct Meeting {
  int arrived = 0;
  uint64_t generation = 0;
  uint64_t words[2][32] = {};  // of this generation and the one before, which slow threads still read
};

struct Fiber : Thread {
  bool started = false, done = false;
  int linear = 0;
  const Meeting* awaited = nullptr;  // until its generation is another
  uint64_t generation = 0;
  ucontext_t first;  // entered once; then by `point`
  void* point[5];
  void* fake_stack = nullptr;
  char* stack = nullptr;
};

struct Block {
  std::vector<Fiber> fibers;
  int living = 0;
  bool progress = false;
  Meeting barrier;
  std::vector<std::map<unsigned, Meeting>> warps;
  void (*body)(void*);
  void* data;
  void* scheduler[5];
  ucontext_t scheduler_context;
  void* scheduler_fake_stack = nullptr;
  const void* scheduler_stack = nullptr;
  size_t scheduler_stack_size = 0;
};
thread_local Block* running = nullptr;
thread_local std::vector<char*> stacks;

Fiber& self() { return *static_cast<Fiber*>(thread); }

// A function of its own, which writes what it likes: else GCC takes what follows __builtin_setjmp for unreachable, or keeps
// what other threads change in registers.
__attribute__((noinline)) void jump(void** point) {
  asm volatile("" ::: "memory");
  __builtin_longjmp(point, 1);
}

// Registers are saved by the compiler around __builtin_setjmp, which costs nanoseconds; swapcontext asks the kernel.
__attribute__((noinline)) void to_scheduler() {
  Fiber& fiber = self();
  if (__builtin_setjmp(fiber.point) == 0) {
    ATS_START_SWITCH(fiber.done ? nullptr : &fiber.fake_stack, running->scheduler_stack, running->scheduler_stack_size);
    jump(running->scheduler);
  }
  ATS_FINISH_SWITCH(self().fake_stack);
}

void enter() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &running->scheduler_stack, &running->scheduler_stack_size);
#endif
  running->body(running->data);
  self().done = true;
  to_scheduler();
}

__attribute__((noinline)) void resume(Fiber& fiber) {
  thread = &fiber;
  if (__builtin_setjmp(running->scheduler) == 0) {
    ATS_START_SWITCH(&running->scheduler_fake_stack, fiber.stack, kStack);
    if (fiber.started) jump(fiber.point);
    fiber.started = true;
    setcontext(&fiber.first);
  }
  ATS_FINISH_SWITCH(running->scheduler_fake_stack);
}

// Returns the generation that ended.
uint64_t meet(Meeting& meeting, int expected) {
  const uint64_t generation = meeting.generation;
  if (++meeting.arrived >= expected) {
    meeting.arrived = 0;
    ++meeting.generation;
    running->progress = true;
  }
  Fiber& fiber = self();
  fiber.awaited = &meeting;
  fiber.generation = generation;
  while (meeting.generation == generation) to_scheduler();
  fiber.awaited = nullptr;
  return generation;
}

void run_block(unsigned threads) {
  Block& block_ = *running;
  block_.living = int(threads);
  block_.barrier = {};
  block_.warps.assign((threads + 31) / 32, {});
  while (stacks.size() < threads) {
    void* stack = mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
    if (stack == MAP_FAILED) misuse("there is no memory for the stacks of a block");
    stacks.push_back(static_cast<char*>(stack));
  }
  for (unsigned t = 0; t < threads; ++t) {
    Fiber& fiber = block_.fibers[t];
    fiber.started = fiber.done = false;
    fiber.awaited = nullptr;
    fiber.linear = int(t);
    fiber.lane = int(t % 32);
    fiber.index = dim3(t % block_size.x, t / block_size.x % block_size.y, t / block_size.x / block_size.y);
    fiber.stack = stacks[t];
    getcontext(&fiber.first);
    fiber.first.uc_stack.ss_sp = fiber.stack;
    fiber.first.uc_stack.ss_size = kStack;
    fiber.first.uc_link = nullptr;
    makecontext(&fiber.first, enter, 0);
  }
  std::vector<unsigned> turns(threads);
  std::iota(turns.begin(), turns.end(), 0u);
  std::minstd_rand scramble(threads);
  if (order == 1) std::reverse(turns.begin(), turns.end());
  while (block_.living > 0) {
    block_.progress = false;
    if (order == 2) std::shuffle(turns.begin(), turns.end(), scramble);
    for (const unsigned t : turns) {
      Fiber& fiber = block_.fibers[t];
      if (fiber.done || (fiber.awaited && fiber.awaited->generation == fiber.generation)) continue;
      resume(fiber);
      if (!fiber.done) continue;
      block_.progress = true;
      --block_.living;
      // Threads that have returned are not waited for.
      if (block_.barrier.arrived > 0 && block_.barrier.arrived >= block_.living) {
        block_.barrier.arrived = 0;
        ++block_.barrier.generation;
      }
    }
    if (!block_.progress)
      misuse("threads wait for each other forever: a barrier or a shuffle that not all of them reach");
  }
}

}  // namespace

namespace {
std::map<void (*)(), int> shared_limits;
}
void allow_shared(void (*function)(), int bytes) { shared_limits[function] = bytes; }
int allowed_shared(void (*function)()) {
  const auto found = shared_limits.find(function);
  return found == shared_limits.end() ? 48 * 1024 : found->second;
}

void misuse(const char* what) {
  std::fprintf(stderr, "CUDA emulation: %s (block %u, thread %u)\n", what, block.x, thread ? thread->index.x : 0u);
  std::abort();
}

void wait_for_block() { meet(running->barrier, running->living); }

const uint64_t* exchange(unsigned mask, uint64_t value) {
  if (!(mask >> thread->lane & 1u)) misuse("a thread is not in the mask that it passes");
  Meeting& meeting = running->warps[size_t(self().linear / 32)][mask];
  meeting.words[meeting.generation & 1][thread->lane] = value;
  return meeting.words[meet(meeting, __builtin_popcount(mask)) & 1];
}

void run_grid(dim3 grid, dim3 threads, size_t shared, void (*body)(void*), void* data) {
  ++launches;
  const unsigned count = threads.x * threads.y * threads.z;
  const uint64_t blocks = uint64_t(grid.x) * grid.y * grid.z;
  // As large as asked for, so that AddressSanitizer sees what lies beyond.
  const auto memory = std::unique_ptr<char, decltype(&std::free)>(
      static_cast<char*>(std::aligned_alloc(16, std::max<size_t>((shared + 15) / 16, 1) * 16)), &std::free);
  Block state;
  state.fibers = std::vector<Fiber>(count);
  state.body = body;
  state.data = data;
  running = &state;
  grid_size = grid;
  block_size = threads;
  dynamic_shared = memory.get();
  for (uint64_t i = 0; i < blocks; ++i) {
    const uint64_t b = order == 0 ? i : blocks - 1 - i;
    block = dim3(unsigned(b % grid.x), unsigned(b / grid.x % grid.y), unsigned(b / grid.x / grid.y));
    std::memset(memory.get(), 0xcd, shared);  // no value that a kernel could count on
    run_block(count);
  }
  running = nullptr;
  thread = nullptr;
}

}  // namespace emulation

void ats_emulation_order(int order) { emulation::order = order; }
int64_t ats_emulation_launches(void) { return emulation::launches; }
