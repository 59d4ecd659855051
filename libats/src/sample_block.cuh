// What the threads of a block do with a row together: its largest cell, and the tree of its partial sums.
//
// Eight threads make a team, one a lane of a node (sample_tree.h): thread l adds entries l, l + 8, l + 16 and l + 24 in
// that order, and exchanges with the threads 4, 2 and 1 further give the order of sum_lanes. Teams lie side by side, so
// that a warp reads four groups of 32 cells, and every thread has 16 cells on their way before it adds any.
#pragma once

#include "cuda_launch.cuh"
#include "sample_math.h"

namespace ats::cuda {

constexpr int kChunkGroups = kFan * kFan;
constexpr int kChunkSums = kChunkGroups + kFan + 1;

// What every block that reads rows has at the beginning of its shared memory.
struct alignas(16) BlockMemory {
  double sums[kChunkSums + 1];  // the tree of a row of one chunk, or the two lower levels of the chunk being built
  double partial[kWarp];
  int done;  // warps that wait for work may leave
  int good;  // of the row: it could be drawn from
};
__device__ inline BlockMemory& block_memory() { return *shared_memory<BlockMemory>(); }

// A tree of which the upper levels are in shared memory. The lower ones are in memory, from some level on.
struct BlockTree {
  double* lower;
  int64_t lower_offset;  // offset[] of the level that `lower` begins with
  double* upper;
  int64_t upper_offset;
  int first_upper;

  __device__ bool keeps(const TreeShape& shape, int level) const {
    return level >= first_upper || shape.offset[level] >= lower_offset;
  }
};
__device__ inline double* level_of(const BlockTree& tree, const TreeShape& shape, int level) {
  return level >= tree.first_upper ? tree.upper + (shape.offset[level] - tree.upper_offset)
                                   : tree.lower + (shape.offset[level] - tree.lower_offset);
}

// ---- the largest cell ---------------------------------------------------------------------------------------------
// The largest x of the block's threads, for all of them. NaN is passed over.
__device__ inline double block_maximum(double x) {
  for (int bits = kWarp / 2; bits > 0; bits /= 2) {
    const double other = __shfl_xor_sync(kWholeWarp, x, bits);
    x = other > x ? other : x;
  }
  double* partial = block_memory().partial;
  __syncthreads();
  if (lane_of_warp() == 0) partial[threadIdx.x / kWarp] = x;
  __syncthreads();
  for (int warp = 0; warp < int(blockDim.x) / kWarp; ++warp) x = partial[warp] > x ? partial[warp] : x;
  return x;
}

// The largest of cells [begin, end) that are not taken (NULL: none is), and of `least`.
template <typename T>
__device__ double largest_cell(const T* data, const uint32_t* taken, int64_t begin, int64_t end, double least) {
  constexpr int kAhead = 8;
  using Value = decltype(load(T()));
  const Value nothing = -std::numeric_limits<Value>::infinity();
  Value largest = nothing;
  const int64_t step = blockDim.x;
  for (int64_t first = begin + threadIdx.x; first < end; first += kAhead * step) {
    Value x[kAhead];
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      const int64_t cell = first + j * step;
      const bool left = cell < end && !(taken && taken[cell / kFan] >> (cell % kFan) & 1u);
      x[j] = left ? load(data[cell]) : nothing;
    }
#pragma unroll
    for (int j = 0; j < kAhead; ++j) largest = x[j] > largest ? x[j] : largest;
  }
  return block_maximum(double(largest) > least ? double(largest) : least);
}

// ---- sums ---------------------------------------------------------------------------------------------------------
constexpr int kTeamGroups = 4;  // groups that a team reads at once

// Weights that are negative or infinite make the sums NaN, as NaN itself does.
template <typename T, bool Logits, bool Whole>
__device__ ATS_INLINE void read_groups(const Row<T, Logits>& row, const uint32_t* taken, int64_t first, int count,
                                       int base, double (&sum)[kTeamGroups]) {
  const int l = int(threadIdx.x) % kLanes, team = int(threadIdx.x) / kLanes, teams = int(blockDim.x) / kLanes;
  double weight[kTeamGroups][kRows];
#pragma unroll
  for (int j = 0; j < kTeamGroups; ++j) {
    const int g = base + j * teams + team;
    const int64_t cell = (first + g) * kFan + l;
    uint32_t skip = 0;
    if (!Whole) skip = g >= count ? ~uint32_t(0) : taken ? taken[first + g] : 0u;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int64_t c = cell + r * kLanes;
      weight[j][r] = Whole || (!(skip >> (r * kLanes + l) & 1u) && c < row.cells) ? row.weight(c) : 0.0;
    }
  }
  // Signs, infinities and NaN are seen in the upper half of a double; -0 is looked at again.
  uint64_t highest = 0;
#pragma unroll
  for (int j = 0; j < kTeamGroups; ++j) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const uint64_t high = bit_cast<uint64_t>(weight[j][r]) >> 32;
      highest = high > highest ? high : highest;
    }
    sum[j] = ((weight[j][0] + weight[j][1]) + weight[j][2]) + weight[j][3];
  }
  if (Logits || highest < 0x7ff00000u) return;
  bool bad = false;
#pragma unroll
  for (int j = 0; j < kTeamGroups; ++j)
#pragma unroll
    for (int r = 0; r < kRows; ++r) bad |= weight[j][r] < 0.0 || weight[j][r] > std::numeric_limits<double>::max();
  if (bad) sum[0] = std::numeric_limits<double>::quiet_NaN();
}

// sums[g] for g < count: of group first + g of the row, without the cells taken (NULL: none is).
template <typename T, bool Logits>
__device__ void sum_groups(const Row<T, Logits>& row, const uint32_t* taken, int64_t first, int count, double* sums) {
  const int l = int(threadIdx.x) % kLanes, team = int(threadIdx.x) / kLanes, teams = int(blockDim.x) / kLanes;
  for (int base = 0; base < count; base += kTeamGroups * teams) {
    const int end = base + kTeamGroups * teams;
    double sum[kTeamGroups];
    if (end <= count && (first + end) * kFan <= row.cells && !taken)
      read_groups<T, Logits, true>(row, taken, first, count, base, sum);
    else read_groups<T, Logits, false>(row, taken, first, count, base, sum);
    // With every exchange a thread gives away the half of its sums that the other one finishes.
    const bool half = l & 4, quarter = l & 2;
    double a = half ? sum[2] : sum[0], b = half ? sum[3] : sum[1];
    a += __shfl_xor_sync(kWholeWarp, half ? sum[0] : sum[2], 4);
    b += __shfl_xor_sync(kWholeWarp, half ? sum[1] : sum[3], 4);
    double one = quarter ? b : a;
    one += __shfl_xor_sync(kWholeWarp, quarter ? a : b, 2);
    one += __shfl_xor_sync(kWholeWarp, one, 1);
    const int g = base + l / 2 * teams + team;
    if (l % 2 == 0 && g < count) sums[g] = one;
  }
}

// sums[e] for e < padded: of the 32 entries below entry e, 0 from `count` on.
__device__ inline void sum_nodes(const double* below, int64_t count, int64_t padded, double* sums) {
  const int l = int(threadIdx.x) % kLanes;
  const int64_t team = int(threadIdx.x) / kLanes, teams = int(blockDim.x) / kLanes;
  for (int64_t base = 0; base < padded; base += teams) {
    const int64_t e = base + team;
    double sum = 0.0;
    if (e < count) {
      const double* entry = below + e * kFan + l;
      sum = ((entry[0] + entry[kLanes]) + entry[2 * kLanes]) + entry[3 * kLanes];
    }
    sum += __shfl_xor_sync(kWholeWarp, sum, 4);
    sum += __shfl_xor_sync(kWholeWarp, sum, 2);
    sum += __shfl_xor_sync(kWholeWarp, sum, 1);
    if (l == 0 && e < padded) sums[e] = sum;
  }
}

// ---- trees --------------------------------------------------------------------------------------------------------
// The lowest levels of a chunk of a row of several: build_chunk of sample_tree.h.
template <typename T, bool Logits>
__device__ void build_chunk(const Row<T, Logits>& row, const TreeShape& shape, const BlockTree& tree,
                            const uint32_t* taken, int64_t chunk) {
  double* groups = block_memory().sums;
  double* nodes = groups + kChunkGroups;
  const bool last = chunk + 1 == chunk_count(shape.cells);
  const int64_t first = chunk * kChunkGroups, left = shape.count[0] - first;
  const int count = int(left < kChunkGroups ? left : kChunkGroups);
  __syncthreads();
  sum_groups(row, taken, first, count, groups);
  for (int g = count + int(threadIdx.x); g < kChunkGroups; g += int(blockDim.x)) groups[g] = 0.0;
  __syncthreads();
  sum_nodes(groups, kFan, kFan, nodes);
  __syncthreads();
  double* top = level_of(tree, shape, 2);
  sum_nodes(nodes, 1, 1, top + chunk);
  if (last)
    for (int64_t e = chunk + 1 + threadIdx.x; e < shape.padded[2]; e += blockDim.x) top[e] = 0.0;
  const double* built[] = {groups, nodes};
  int width = kChunkGroups;
  for (int level = 0; level < 2; ++level, width /= kFan) {
    if (!tree.keeps(shape, level)) continue;
    const int64_t begin = chunk * width;
    const int64_t size = last ? shape.padded[level] - begin : width;
    double* out = level_of(tree, shape, level) + begin;
    for (int64_t e = threadIdx.x; e < size; e += blockDim.x) out[e] = built[level][e];
  }
}

// The levels from `first` on, from those below.
__device__ inline void build_levels(const TreeShape& shape, const BlockTree& tree, int first) {
  for (int level = first; level < shape.levels; ++level) {
    __syncthreads();
    sum_nodes(level_of(tree, shape, level - 1), shape.count[level], shape.padded[level], level_of(tree, shape, level));
  }
  __syncthreads();
}

template <typename T, bool Logits>
__device__ void build_tree(const Row<T, Logits>& row, const TreeShape& shape, const BlockTree& tree,
                           const uint32_t* taken) {
  if (shape.levels > kChunkLevels) {
    for (int64_t chunk = 0; chunk < chunk_count(shape.cells); ++chunk) build_chunk(row, shape, tree, taken, chunk);
    return build_levels(shape, tree, kChunkLevels);
  }
  double* groups = level_of(tree, shape, 0);
  const int count = int(shape.count[0]), padded = int(shape.padded[0]);
  sum_groups(row, taken, 0, count, groups);
  for (int g = count + int(threadIdx.x); g < padded; g += int(blockDim.x)) groups[g] = 0.0;
  build_levels(shape, tree, 1);
}

// RowState::rescale by all threads of a block, which all come with the same state.
template <typename T, bool Logits>
struct Rescaled {
  RowScale scale;
  double mass;
};
template <typename State, typename T, bool Logits>
ATS_NOINLINE __device__ Rescaled<T, Logits> rescale_row(Row<T, Logits> row, const TreeShape* shape, BlockTree tree,
                                                        uint32_t* taken) {
  State state{row, shape, tree, taken};
  const double least = Logits ? -std::numeric_limits<double>::infinity() : 0.0;
  if (state.move_scale(largest_cell(row.data, taken, 0, row.cells, least))) {
    build_tree(state.row, *shape, tree, taken);
    state.mass = *level_of(tree, *shape, shape->levels - 1);
  }
  return {state.row.scale, state.mass};
}
template <typename T, bool Logits, typename Draw>
__device__ inline void rescale_together(RowState<T, Logits, Draw>& state) {
  using State = RowState<T, Logits, Draw>;
  const auto rescaled = rescale_row<State, T, Logits>(state.row, state.shape, state.tree, state.taken);
  state.row.scale = rescaled.scale;
  state.mass = rescaled.mass;
}

// A whole block that has a row and its tree: RowState's begin() may be called by all of its threads.
struct BlockDraw {
  using Node = ats::Node;
  using Tree = BlockTree;
  template <typename State>
  __device__ static void rescale(State& state) {
    rescale_together(state);
  }
};

}  // namespace ats::cuda
