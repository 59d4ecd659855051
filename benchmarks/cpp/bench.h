// What the benchmarks share: tensors, executors, the floors beside which everything is measured, and the taking of turns.
#pragma once

#include <ats/ats.hpp>
#include <benchmark/benchmark.h>

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <string>
#include <vector>

namespace bench {

// One input or output: memory of its own and a contiguous view of it. All its pages have been written to.
struct Tensor : ats_tensor {
  Tensor(int dtype, std::initializer_list<int64_t> shape);
  int64_t bytes() const;

 private:
  std::unique_ptr<char[]> memory_;
};

std::string name_of(int dtype);
int64_t bytes_of(int dtype);

// Numbers that are uniform on [low, high); uint8 on [0, 256).
Tensor uniform(int dtype, std::initializer_list<int64_t> shape, double low = 0, double high = 1);
Tensor integers(std::initializer_list<int64_t> shape, int64_t low, int64_t high, uint64_t seed = 2);

// Calls body(begin, end) on ranges of [0, count), on the threads that the operation measured has, too.
void parallel(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& body);

// The floors. A sum reads bytes as 64-bit words, with the widest registers there are.
void copy(void* to, const void* from, int64_t bytes);
void sum(const void* from, int64_t bytes);
uint64_t sum_row(const void* from, int64_t bytes);  // on the calling thread alone

// A benchmark makes its inputs and calls `measure` once. `bytes`: what the floor reads. The operation and its floor take
// turns, 15 each; no two calls in a row have the same number, so that inputs may be chosen that no cache holds yet.
using Call = std::function<void(int64_t number)>;
void measure(benchmark::State& state, int64_t bytes, const Call& operation, const Call& floor);

// Registers `body` for one thread and for two; the executor to pass on is ats_thread_pool().
void add(const std::string& name, const std::function<void(benchmark::State&)>& body);

void add_sample();
void add_patches();
void add_expectation();

}  // namespace bench
