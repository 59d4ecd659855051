// The n largest cells of a row, or of a part of it, by a block, ties to the lower cell: a bound that keeps most cells out
// of the way, the key of the last cell that is taken by counting digits from the highest on, and a sort of what was taken.
#pragma once

#include "ordered_key.h"
#include "sample_block.cuh"

namespace ats::cuda {

constexpr int kSelectThreads = 512;

struct Candidate {
  uint64_t key;
  int64_t cell;
  __device__ bool before(const Candidate& other) const {
    return key > other.key || (key == other.key && cell < other.cell);
  }
};

struct SelectMemory {
  static constexpr int kDigitBits = 11, kBins = 1 << kDigitBits;
  static constexpr int kCandidates = 1024;  // more than these are sorted in the workspace

  unsigned bins[kBins];
  unsigned long long totals[kBins];
  uint64_t maxima[kSelectThreads];
  uint64_t bound;
  unsigned long long found;
  int digit;
  Candidate candidates[kCandidates];
};

// What is selected from: cells [first, first + size) of a row,
template <typename T>
struct CellSource {
  const T* data;
  int64_t first, size;
  __device__ uint64_t key(int64_t i) const { return ordered_key(load(data[first + i])); }
  __device__ int64_t cell(int64_t i) const { return first + i; }
};
// or what was selected from several parts of it.
struct CandidateSource {
  const Candidate* candidates;
  int64_t size;
  __device__ uint64_t key(int64_t i) const { return candidates[i].key; }
  __device__ int64_t cell(int64_t i) const { return candidates[i].cell; }
};

template <typename Source>
struct Selection {
  Source source;
  int64_t cells;  // of the row
  int key_bits;
  SelectMemory& memory;

  // Larger for lower cells.
  __device__ uint64_t place(int64_t i) const { return uint64_t(cells - 1 - source.cell(i)); }

  static constexpr int kAhead = 8;  // keys of a thread on their way at once

  // visit(first, keys): the keys of elements first + j * blockDim.x, 0 past `end`.
  template <typename Visit>
  __device__ ATS_INLINE void for_several(int64_t begin, int64_t end, const Visit& visit) const {
    const int64_t threads = blockDim.x;
    for (int64_t first = begin + threadIdx.x; first < end; first += kAhead * threads) {
      uint64_t key[kAhead];
#pragma unroll
      for (int j = 0; j < kAhead; ++j) key[j] = first + j * threads < end ? source.key(first + j * threads) : 0;
      visit(first, key);
    }
  }

  // A key that the n largest cells have at least: n of the threads have seen one. 0, less than any, when n is more
  // than there are threads.
  __device__ uint64_t lower_bound(int64_t n) const {
    const int me = int(threadIdx.x), threads = int(blockDim.x);
    uint64_t largest = 0;
    for_several(0, source.size, [&](int64_t, const uint64_t(&key)[kAhead]) {
#pragma unroll
      for (int j = 0; j < kAhead; ++j) largest = key[j] > largest ? key[j] : largest;
    });
    __syncthreads();
    memory.maxima[me] = largest;
    if (me == 0) memory.bound = 0;
    __syncthreads();
    int rank = 0;
    for (int t = 0; t < threads; ++t) {
      const uint64_t other = memory.maxima[t];
      rank += other > largest || (other == largest && t < me);
    }
    if (rank == n - 1) memory.bound = largest;
    __syncthreads();
    return memory.bound;
  }

  // The lowest value whose cells are taken, with all above it, when the `want` cells of largest value are, counted
  // among those that value_of(i, key, value) is true for. `want` becomes how many with just that value are taken, 0 for
  // all.
  template <typename ValueOf>
  __device__ uint64_t last_value(int64_t& want, int bits, const ValueOf& value_of) const {
    uint64_t prefix = 0;
    for (int shift = bits; shift > 0;) {
      const int width = shift < SelectMemory::kDigitBits ? shift : SelectMemory::kDigitBits;
      shift -= width;
      count_digits(shift, width, prefix, value_of);
      if (threadIdx.x < unsigned(kWarp)) find_digit(want);
      __syncthreads();
      const uint64_t digit = uint64_t(memory.digit);
      want = int64_t(memory.found);
      prefix |= digit << shift;
      if (want == int64_t(memory.totals[digit])) {
        want = 0;
        return prefix;
      }
      __syncthreads();
    }
    return prefix;
  }

  // memory.totals: how many cells have which digit, of those that agree with `prefix` above it.
  template <typename ValueOf>
  __device__ void count_digits(int shift, int width, uint64_t prefix, const ValueOf& value_of) const {
    constexpr int64_t kSweep = int64_t(1) << 31;  // a bin holds no more than 32 bits
    for (int bin = int(threadIdx.x); bin < SelectMemory::kBins; bin += int(blockDim.x))
      memory.totals[bin] = memory.bins[bin] = 0;
    for (int64_t begin = 0; begin < source.size; begin += kSweep) {
      __syncthreads();
      const int64_t end = source.size - begin < kSweep ? source.size : begin + kSweep;
      for_several(begin, end, [&](int64_t first, const uint64_t(&key)[kAhead]) {
#pragma unroll
        for (int j = 0; j < kAhead; ++j) {
          const int64_t i = first + int64_t(j) * blockDim.x;
          uint64_t value = 0;
          if (i >= end || !value_of(i, key[j], value)) continue;
          if (shift + width < 64 && (value ^ prefix) >> (shift + width) != 0) continue;
          atomicAdd(memory.bins + (value >> shift & ((1u << width) - 1)), 1u);
        }
      });
      __syncthreads();
      for (int bin = int(threadIdx.x); bin < SelectMemory::kBins; bin += int(blockDim.x)) {
        memory.totals[bin] += memory.bins[bin];
        memory.bins[bin] = 0;
      }
    }
    __syncthreads();
  }

  // By a warp: the digit of the want-th largest, and how many of its bin are wanted.
  __device__ void find_digit(int64_t want) const {
    const int lane = lane_of_warp();
    int64_t above = 0;
    for (int first = SelectMemory::kBins - 1; first >= 0; first -= kWarp) {
      const int bin = first - lane;
      int64_t upto = int64_t(memory.totals[bin]);
      for (int delta = 1; delta < kWarp; delta *= 2) {
        const int64_t other = __shfl_up_sync(kWholeWarp, upto, unsigned(delta));
        if (lane >= delta) upto += other;
      }
      const unsigned reached = __ballot_sync(kWholeWarp, above + upto >= want);
      if (reached) {
        if (lane == __ffs(int(reached)) - 1) {
          memory.digit = bin;
          memory.found = static_cast<unsigned long long>(want - (above + upto - int64_t(memory.totals[bin])));
        }
        return;
      }
      above += __shfl_sync(kWholeWarp, upto, kWarp - 1);
    }
    if (lane == 0) memory.digit = 0, memory.found = 0;  // fewer cells than wanted
  }

  // The n largest, in no order.
  __device__ void select(int64_t n, Candidate* candidates) const {
    const uint64_t bound = lower_bound(n);
    int64_t want = n;
    uint64_t last = last_value(want, key_bits, [&](int64_t, uint64_t key, uint64_t& value) {
      value = key;
      return key >= bound;
    });
    if (last < bound) last = bound;  // what is below has not been counted
    __syncthreads();
    uint64_t last_place = 0;
    if (want > 0) {  // not all of the cells that have the last key
      int bits = 1;
      while (bits < 63 && uint64_t(cells - 1) >> bits != 0) ++bits;
      last_place = last_value(want, bits, [&](int64_t i, uint64_t key, uint64_t& value) {
        if (key != last) return false;
        value = place(i);
        return true;
      });
    }
    __syncthreads();
    if (threadIdx.x == 0) memory.found = 0;
    __syncthreads();
    for_several(0, source.size, [&](int64_t first, const uint64_t(&key)[kAhead]) {
      unsigned take = 0;
#pragma unroll
      for (int j = 0; j < kAhead; ++j) {
        const int64_t i = first + int64_t(j) * blockDim.x;
        take |= unsigned(i < source.size && (key[j] > last || (key[j] == last && place(i) >= last_place))) << j;
      }
      if (take == 0) return;
      unsigned long long slot = atomicAdd(&memory.found, static_cast<unsigned long long>(__popc(take)));
#pragma unroll
      for (int j = 0; j < kAhead; ++j) {
        if (!(take >> j & 1u)) continue;
        if (slot < static_cast<unsigned long long>(n))
          candidates[slot] = {key[j], source.cell(first + int64_t(j) * blockDim.x)};
        ++slot;
      }
    });
    __syncthreads();
  }
};

// ---- sorting ------------------------------------------------------------------------------------------------------
// Every i without bit `bit` is put in order with i ^ bits, by all threads of a block.
__device__ inline void exchange(int64_t n, Candidate* candidates, int64_t bits, int64_t bit) {
  for (int64_t pair = threadIdx.x; 2 * pair - pair % bit < n; pair += blockDim.x) {
    const int64_t i = 2 * pair - pair % bit, j = i ^ bits;
    if (j >= n) continue;
    const Candidate a = candidates[i], b = candidates[j];
    if (b.before(a)) candidates[i] = b, candidates[j] = a;
  }
  __syncthreads();
}

// A bitonic sort in which all that is past the end would stay there.
__device__ inline void sort(int64_t n, Candidate* candidates) {
  for (int64_t size = 2; size / 2 < n; size *= 2) {
    exchange(n, candidates, size - 1, size / 2);
    for (int64_t step = size / 4; step > 0; step /= 2) exchange(n, candidates, step, step);
  }
}

}  // namespace ats::cuda
