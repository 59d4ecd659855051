// A warp that draws: what sample_math.h does with a node, by 32 threads at once, the same bits.
//
// Entry e of a node belongs to thread e, and every thread holds the four entries of its lane e % 8, so that the four
// threads of a lane sum it without a word to the others. What follows is the same in all threads: targets, sums,
// picks, and with them all control flow; one thread stores.
//
// A draw is one chain of dependent steps. By count of cycles on an H100 (shuffle or ballot 25, addition 8, shared memory
// 30), a node costs 30 to read, 24 for its lane, 4 * 25 + 3 * 8 for the sums before it, 33 to compare and 33 to choose:
// 250; summing it again costs 24 + 3 * 33 = 125. Random numbers are made for 32 draws at once, a draw a thread.
#pragma once

#include "sample_block.cuh"

namespace ats::cuda {

struct alignas(16) WarpNode {
  double column[kRows];  // entries e % 8, e % 8 + 8, ... of the node, for thread e

  __device__ static WarpNode load(const double* entries) {
    const int l = lane_of_warp() % kLanes;
    WarpNode node;
#pragma unroll
    for (int r = 0; r < kRows; ++r) node.column[r] = entries[r * kLanes + l];
    return node;
  }

  template <typename T, bool Logits>
  __device__ static WarpNode read(const Row<T, Logits>& row, int64_t group, uint32_t taken) {
    const int e = lane_of_warp();
    const int64_t cell = group * kFan + e;
    const double weight = cell < row.cells && !(taken >> e & 1u) ? row.weight(cell) : 0.0;
    WarpNode node;
#pragma unroll
    for (int r = 0; r < kRows; ++r) node.column[r] = __shfl_sync(kWholeWarp, weight, r * kLanes + e % kLanes);
    return node;
  }

  __device__ double operator[](int e) const { return __shfl_sync(kWholeWarp, of_row(e / kLanes), e % kLanes); }
  __device__ void set(int e, double value) {
    const bool mine = lane_of_warp() % kLanes == e % kLanes;
#pragma unroll
    for (int r = 0; r < kRows; ++r) column[r] = mine && r == e / kLanes ? value : column[r];
  }

  __device__ double sum() const {
    double sum = ((column[0] + column[1]) + column[2]) + column[3];
    sum += __shfl_xor_sync(kWholeWarp, sum, 4);
    sum += __shfl_xor_sync(kWholeWarp, sum, 2);
    sum += __shfl_xor_sync(kWholeWarp, sum, 1);
    return sum;
  }

  // Every thread lowers the target as if its lane held it, so that lane and row are found at once.
  __device__ int descend(double& target) const {
    const int e = lane_of_warp(), l = e % kLanes, r = e / kLanes;
    const double two = column[0] + column[1], three = two + column[2], lane = three + column[3];
    const double before = r == 0 ? 0.0 : r == 1 ? column[0] : r == 2 ? two : three;  // entries of the lane before e
    const double upto = r == 0 ? column[0] : r == 1 ? two : r == 2 ? three : lane;
    const double lanes = sums_upto(lane, l);
    const double left = __shfl_up_sync(kWholeWarp, lanes, 1, kLanes);
    const double lowered = target - (l == 0 ? 0.0 : left);
    const unsigned past_lanes = __ballot_sync(kWholeWarp, target >= lanes) & 0xffu;
    const unsigned past_rows = __ballot_sync(kWholeWarp, lowered >= upto);
    int chosen = __popc(past_lanes);
    if (chosen == kLanes) chosen = last_of(__ballot_sync(kWholeWarp, lane > 0.0) & 0xffu);
    int row = __popc(past_rows >> chosen & kLaneMask);
    if (row == kRows) row = last_of(__ballot_sync(kWholeWarp, of_row(r) > 0.0) >> chosen & kLaneMask) / kLanes;
    chosen += row * kLanes;
    target = __shfl_sync(kWholeWarp, lowered - before, chosen);
    return chosen;
  }

 private:
  static constexpr unsigned kLaneMask = 0x01010101u;  // the entries of lane 0

  __device__ double of_row(int r) const {
    return r == 0 ? column[0] : r == 1 ? column[1] : r == 2 ? column[2] : column[3];
  }

  // The last bit that is set, else 0: last_with_mass of sample_tree.h.
  __device__ static int last_of(unsigned bits) { return bits ? kWarp - 1 - __clz(int(bits)) : 0; }

  // sums_upto of sample_tree.h, sum l for thread l.
  __device__ static double sums_upto(double sum, int l) {
    double other = __shfl_up_sync(kWholeWarp, sum, 1, kLanes);
    sum = l & 1 ? sum + other : sum;
    other = __shfl_sync(kWholeWarp, sum, (l & 4) | 1, kLanes);
    sum = l & 2 ? sum + other : sum;
    other = __shfl_sync(kWholeWarp, sum, 3, kLanes);
    return l & 4 ? sum + other : sum;
  }
};

// The first warp of a block draws from one row; the others wait until there is something to do together.
struct WarpDraw {
  using Node = WarpNode;
  using Tree = BlockTree;
  using Real = double;
  using Word = uint64_t;
  using Step = DrawStep<WarpDraw>;
  static constexpr int kBlock = kWarp;
  static constexpr int kTogether = 1;

  // The number that a thread made for its draw.
  struct Numbers {
    double mine;
    __device__ double operator[](int draw) const { return __shfl_sync(kWholeWarp, mine, draw); }
  };

  // In shared memory, behind BlockMemory: a local array would not stay in registers.
  struct Path {
    __device__ WarpNode* operator[](int level) const { return nodes() + level * kWarp + lane_of_warp(); }
    __device__ static WarpNode* nodes() { return reinterpret_cast<WarpNode*>(&block_memory() + 1); }
    ATS_HD static size_t bytes(const TreeShape& shape) { return size_t(shape.levels) * kWarp * sizeof(WarpNode); }
  };

  __device__ static Word counters(uint64_t first) { return first + uint64_t(lane_of_warp()); }
  __device__ static void fill(Step& step, uint64_t seed, uint64_t row, uint64_t first) { step.fill(seed, row, first); }
  __device__ static void descend(Step& step) { step.descend(); }
  __device__ static void update(Step& step) { step.update(); }

  template <typename Value>
  __device__ static void store(Value& place, Value value) {
    if (lane_of_warp() == 0) place = value;
  }
  // What all threads have read is written by one of them afterwards; and what it wrote is read by all.
  __device__ static void end_of_reading() { __syncwarp(); }
  __device__ static void end_of_draw() { __syncwarp(); }

  template <typename State>
  __device__ static void rescale(State& state) {
    __syncthreads();  // wakes the warps that wait in help()
    rescale_together(state);
  }
};

// What the other warps do until the first one has set done and waited for them.
template <typename State>
__device__ void help(State state) {
  for (;;) {
    __syncthreads();
    if (block_memory().done) return;
    rescale_together(state);
  }
}

}  // namespace ats::cuda
