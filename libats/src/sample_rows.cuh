// Rows of attention on a GPU. Rows of one chunk have their tree in the shared memory of a block. Longer ones are read
// by a block a chunk, which leaves the lower levels of the tree in the workspace; then a block a row takes over.
#pragma once

#include "ordered_key.h"
#include "sample_block.cuh"

namespace ats::cuda {

// The views of the outputs of sample and topk, contiguous.
template <typename P>
struct Drawn {
  int64_t n;
  int64_t* indices;
  P* probabilities;
  P* threshold;
  double* log_mass;

  // By all threads of a block: what stands for a row that cannot be drawn from.
  __device__ void fail(int64_t row) const {
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
      indices[row * n + i] = -1;
      probabilities[row * n + i] = P(0);
    }
    if (threadIdx.x == 0) {
      threshold[row] = std::numeric_limits<P>::quiet_NaN();
      log_mass[row] = std::numeric_limits<double>::quiet_NaN();
    }
  }
};

template <typename T>
struct Rows {
  const T* data;
  int64_t stride, rows;
  TreeShape shape;

  template <bool Logits>
  __device__ Row<T, Logits> row(int64_t r) const {
    return {data + r * stride, shape.cells, {}};
  }
};

template <typename T>
Rows<T> rows_of(const ats_tensor& attention) {
  int64_t cells = 1;
  for (int axis = 1; axis < attention.ndim; ++axis) cells *= attention.shape[axis];
  return {data_of<const T>(attention), attention.strides[0], attention.shape[0], tree_shape(cells)};
}

// The workspace of long rows: for every row its tree (from some level on) and the bits of cells taken, then for every
// row the key of its largest logit.
struct LongRows {
  TreeShape shape;
  int64_t rows = 0;
  int first_level = 0;
  int64_t tree_doubles = 0, row_doubles = 0;

  // What topk does not need, the lower levels and the bits, is left out without `drawn`.
  LongRows(int64_t rows_, const TreeShape& shape_, bool drawn) : shape(shape_), rows(rows_) {
    if (!is_long(shape)) return;
    first_level = drawn ? 0 : kChunkLevels - 1;
    tree_doubles = shape.doubles - shape.offset[first_level];
    row_doubles = tree_doubles + (drawn ? (shape.count[0] + 1) / 2 : 0);
  }

  ATS_HD static bool is_long(const TreeShape& shape) { return shape.levels > kChunkLevels; }

  int64_t bytes(Where where) const {
    if (!is_long(shape)) return 0;
    return multiply_sizes(where, rows, multiply_sizes(where, row_doubles + 1, sizeof(double)));
  }
  unsigned long long* maxima(void* workspace) const {
    return reinterpret_cast<unsigned long long*>(static_cast<double*>(workspace) + rows * row_doubles);
  }

  __device__ double* tree(void* workspace, int64_t row) const {
    return static_cast<double*>(workspace) + row * row_doubles;
  }
  __device__ uint32_t* taken(void* workspace, int64_t row) const {
    return first_level == 0 ? reinterpret_cast<uint32_t*>(tree(workspace, row) + tree_doubles) : nullptr;
  }
  // With levels from first_upper on at `upper`, in shared memory.
  __device__ BlockTree block_tree(void* workspace, int64_t row, double* upper, int first_upper) const {
    return {tree(workspace, row), shape.offset[first_level], upper, upper ? shape.offset[first_upper] : 0, first_upper};
  }

  // The lowest level that, with all above it, leaves other uses their part of the 64 KB that every GPU has.
  int first_upper() const {
    constexpr int64_t kMostDoubles = 5120;
    int level = kChunkLevels - 1;
    while (shape.doubles - shape.offset[level] > kMostDoubles) ++level;
    return level;
  }
  size_t upper_bytes() const { return size_t(shape.doubles - shape.offset[first_upper()]) * sizeof(double); }
};

// 4 bytes a cell of float32, and one operation: 1e8 cells take 0.12 ms by the memory.
template <typename T>
struct ChunkMaximum {
  static constexpr int kThreads = 256;
  Rows<T> in;
  int64_t chunks;
  unsigned long long* maxima;

  __device__ void operator()() const {
    for (int64_t item = blockIdx.x; item < in.rows * chunks; item += gridDim.x) {
      const int64_t r = item / chunks, begin = item % chunks * kChunkCells;
      const int64_t end = begin + kChunkCells < in.shape.cells ? begin + kChunkCells : in.shape.cells;
      const double largest =
          largest_cell(in.data + r * in.stride, nullptr, begin, end, -std::numeric_limits<double>::infinity());
      if (threadIdx.x == 0) atomicMax(maxima + r, static_cast<unsigned long long>(ordered_key(largest)));
    }
  }
};

// The same bytes, and 8 / 32 of a byte and an eighth for the sums and bits. One addition in double a cell, which is a
// seventh of the memory's time; the exponential of logits is 45 of them, more than the memory takes.
template <typename T, bool Logits>
struct BuildChunks {
  static constexpr int kThreads = 256;
  Rows<T> in;
  LongRows layout;
  int64_t chunks;
  void* workspace;
  const unsigned long long* maxima;

  __device__ void operator()() const {
    for (int64_t item = blockIdx.x; item < in.rows * chunks; item += gridDim.x) {
      const int64_t r = item / chunks, chunk = item % chunks;
      Row<T, Logits> row = in.template row<Logits>(r);
      if (Logits) row.scale.reference = ordered_value(uint64_t(maxima[r]));
      build_chunk(row, in.shape, layout.block_tree(workspace, r, nullptr, kMaxLevels), nullptr, chunk);
      if (uint32_t* taken = layout.taken(workspace, r)) {
        const int64_t first = chunk * kChunkGroups, left = in.shape.count[0] - first;
        for (int64_t g = threadIdx.x; g < kChunkGroups && g < left; g += blockDim.x) taken[first + g] = 0u;
      }
    }
  }
};

// Reads long rows: all that comes before a block a row.
template <typename T, bool Logits>
void build_chunks(const Queue& queue, const Rows<T>& in, const LongRows& layout, void* workspace) {
  const int64_t chunks = chunk_count(in.shape.cells), blocks = blocks_for(in.rows * chunks, 1);
  unsigned long long* maxima = layout.maxima(workspace);
  if (Logits) {
    check(queue.op, cudaMemsetAsync(maxima, 0, size_t(in.rows) * sizeof(*maxima), queue.stream));
    queue.launch(ChunkMaximum<T>{in, chunks, maxima}, blocks, ChunkMaximum<T>::kThreads, sizeof(BlockMemory));
  }
  using Build = BuildChunks<T, Logits>;
  queue.launch(Build{in, layout, chunks, workspace, maxima}, blocks, Build::kThreads, sizeof(BlockMemory));
}

// Threads for a row of one chunk: as many as have cells to read.
inline int threads_for_short(const TreeShape& shape, int most) {
  const int64_t teams = (shape.count[0] + kTeamGroups - 1) / kTeamGroups;
  const int64_t warps = (teams * kLanes + kWarp - 1) / kWarp;
  return int(std::min<int64_t>(warps * kWarp, most));
}

// The tree of a row, up to its root, and the scale of its logits, by a block. `upper` is shared memory behind what the
// caller needs, for a long row.
template <typename T, bool Logits>
struct RowBuilder {
  Rows<T> in;
  LongRows layout;
  void* workspace;
  const unsigned long long* maxima;
  int first_upper;

  template <typename Draw>
  __device__ RowState<T, Logits, Draw> build(int64_t r, double* upper, uint32_t* taken) const {
    const TreeShape& shape = in.shape;
    Row<T, Logits> row = in.template row<Logits>(r);
    if (LongRows::is_long(shape)) {
      if (Logits) row.scale.reference = ordered_value(uint64_t(maxima[r]));
      const BlockTree tree = layout.block_tree(workspace, r, upper, first_upper);
      if (first_upper < kChunkLevels) {  // what the chunks have left in memory
        const double* below = tree.lower + (shape.offset[first_upper] - tree.lower_offset);
        for (int64_t e = threadIdx.x; e < shape.padded[first_upper]; e += blockDim.x) upper[e] = below[e];
      }
      build_levels(shape, tree, kChunkLevels);
      return {row, &shape, tree, layout.taken(workspace, r)};
    }
    if (Logits)
      row.scale.reference = largest_cell(row.data, nullptr, 0, row.cells, -std::numeric_limits<double>::infinity());
    const BlockTree tree{nullptr, 0, block_memory().sums, 0, 0};
    if (taken)
      for (int g = int(threadIdx.x); g < int(shape.count[0]); g += int(blockDim.x)) taken[g] = 0u;
    build_tree(row, shape, tree, nullptr);
    return {row, &shape, tree, taken};
  }
};

// Queues what comes before, and gives what a block a row builds with.
template <typename T, bool Logits>
RowBuilder<T, Logits> prepare_rows(const Queue& queue, const ats_tensor& attention, bool drawn, void* workspace) {
  const Rows<T> in = rows_of<T>(attention);
  const LongRows layout(in.rows, in.shape, drawn);
  if (!LongRows::is_long(in.shape)) return {in, layout, workspace, nullptr, 0};
  build_chunks<T, Logits>(queue, in, layout, workspace);
  return {in, layout, workspace, layout.maxima(workspace), layout.first_upper()};
}

}  // namespace ats::cuda
