// What `sample` and `topk` share on the CPU: their shape rule, the tree of every row, and the words for bad rows.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>

#include "core.h"
#include "sample_lanes.h"

namespace ats {

struct SampleOutputs {
  const ats_tensor* indices;
  const ats_tensor* probabilities;
  const ats_tensor* threshold;
  const ats_tensor* log_mass;
};

struct SampleShapes {
  ats_tensor indices, probabilities, threshold, log_mass;
};

SampleShapes sample_shapes(const char* op, const ats_tensor* attention, const ats_sample_options* options);
void check_sample(const char* op, const ats_tensor* attention, const SampleOutputs& outputs,
                  const SampleShapes& shapes);
// Whether attention and outputs are on a GPU: all of them, or none.
bool check_place(const char* op, const ats_tensor* attention, const SampleOutputs& outputs);

inline int64_t row_cells(const ats_tensor& attention) {
  int64_t cells = 1;
  for (int axis = 1; axis < attention.ndim; ++axis) cells *= attention.shape[axis];
  return cells;
}

// Scratch memory: for every row its tree and the words of taken cells, then one double a chunk.
struct RowsLayout {
  TreeShape shape;
  int64_t rows = 0;
  int64_t chunks = 0;
  int64_t doubles_per_row = 0;

  RowsLayout(int64_t rows, int64_t cells);
  int64_t bytes() const {
    return multiply_sizes({"sample", "attention"}, rows, (doubles_per_row + chunks) * int64_t(sizeof(double)));
  }
  double* tree(void* workspace, int64_t row) const { return static_cast<double*>(workspace) + row * doubles_per_row; }
  uint32_t* taken(void* workspace, int64_t row) const {
    return reinterpret_cast<uint32_t*>(tree(workspace, row) + shape.doubles);
  }
  double* chunk_values(void* workspace, int64_t row) const {
    return static_cast<double*>(workspace) + rows * doubles_per_row + row * chunks;
  }
};

// Throws the message for a row that cannot give n cells.
template <typename T>
[[noreturn]] void fail_row(const char* op, const T* data, int64_t cells, int64_t row, int64_t n, bool logits) {
  int64_t positive = 0;
  for (int64_t cell = 0; cell < cells; ++cell) {
    const double x = double(load(data[cell]));
    const bool infinite = std::isinf(x) && (x > 0 || !logits);
    if (std::isnan(x) || infinite || (!logits && x < 0))
      fail("%s: attention must be %s, but row %lld has %g at cell %lld", op,
           logits ? "logits, finite or -inf" : "finite and not negative (log-weights: logits=True)",
           static_cast<long long>(row), std::isnan(x) ? std::fabs(x) : x, static_cast<long long>(cell));
    positive += logits ? !std::isinf(x) : x > 0;
  }
  if (positive == 0) fail("%s: attention has no cell of positive weight in row %lld", op, static_cast<long long>(row));
  fail("%s: attention has %lld cell%s of positive weight in row %lld (of %lld), and n = %lld asks for more", op,
       static_cast<long long>(positive), positive == 1 ? "" : "s", static_cast<long long>(row),
       static_cast<long long>(cells), static_cast<long long>(n));
}

// Keeps the smallest row that failed, from many threads.
class FirstBadRow {
 public:
  void report(int64_t row) noexcept {
    int64_t seen = row_.load(std::memory_order_relaxed);
    while (row < seen && !row_.compare_exchange_weak(seen, row, std::memory_order_relaxed)) {
    }
  }
  bool any() const { return row() != kNone; }
  int64_t row() const { return row_.load(std::memory_order_relaxed); }

 private:
  static constexpr int64_t kNone = std::numeric_limits<int64_t>::max();
  std::atomic<int64_t> row_{kNone};
};

// Builds the tree of every row, then calls finish(first_row, rows, states, good) on several at once; finish sets
// good[k] to false for a bad row. Rows of one chunk are handed out whole, so that they are read while still in cache;
// long rows are split over threads.
template <typename T, bool Logits, typename Finish>
void for_each_tree(const char* op, const ats_tensor& attention, int64_t n, void* workspace,
                   const ats_executor* executor, const Finish& finish) {
  const RowsLayout layout(attention.shape[0], row_cells(attention));
  const int64_t cells = layout.shape.cells;
  const T* data = data_of<const T>(attention);
  const int64_t row_stride = attention.strides[0];

  const auto chunk_maximum = [&](int64_t r, int64_t chunk) {
    const T* row = data + r * row_stride;
    const int64_t begin = chunk * kChunkCells;
    const int64_t end = std::min(begin + kChunkCells, cells);
    layout.chunk_values(workspace, r)[chunk] = on_this_cpu<Largest<T>>(row, begin, end);
  };
  const auto row_view = [&](int64_t r) {
    Row<T, Logits> row{data + r * row_stride, cells, {}};
    if (Logits) {
      const double* maxima = layout.chunk_values(workspace, r);
      row.scale.reference = *std::max_element(maxima, maxima + layout.chunks);
    }
    return row;
  };
  // Rows built one after the other by the same thread may share a tree: `slot` says whose.
  const auto build = [&](int64_t r, int64_t chunk, int64_t slot) {
    const Row<T, Logits> row = row_view(r);
    on_this_cpu<BuildChunk<T, Logits>>(&row, &layout.shape, layout.tree(workspace, slot), chunk);
    uint32_t* taken = layout.taken(workspace, slot);
    const int64_t groups_per_chunk = kChunkCells / kFan;
    const int64_t begin = chunk * groups_per_chunk;
    std::fill(taken + begin, taken + std::min(begin + groups_per_chunk, layout.shape.count[0]), 0u);
  };
  FirstBadRow bad;
  // The mass of a row that was built, and the scale it needs; false for a bad one.
  const auto begin_row = [&](CpuRowState<T, Logits>& state) {
    const double mass = on_this_cpu<BuildTop>(&layout.shape, state.tree);
    if (std::isnan(mass)) return false;
    if (std::isinf(mass)) {
      // Either a weight is infinite, or finite ones have overflowed, which another scale cures.
      for (int64_t cell = 0; cell < cells; ++cell)
        if (std::isinf(double(load(state.row.data[cell])))) return false;
    }
    state.begin();
    return state.mass > 0.0;
  };
  const auto finish_rows = [&](int64_t first, int count, int64_t slot) {
    CpuRowState<T, Logits> states[VectorDraw::kTogether];
    bool good[VectorDraw::kTogether] = {};
    for (int k = 0; k < count; ++k) {
      states[k] = {row_view(first + k), &layout.shape, layout.tree(workspace, slot + k),
                   layout.taken(workspace, slot + k)};
      if (begin_row(states[k])) continue;
      bad.report(first + k);
      count = k;  // only an earlier row could still be the first bad one
    }
    finish(first, count, states, good);
    for (int k = 0; k < count; ++k)
      if (!good[k]) bad.report(first + k);
  };
  const auto together = [](int64_t begin, int64_t end, const auto& body) {
    for (int64_t r = begin; r < end; r += VectorDraw::kTogether)
      body(r, int(std::min<int64_t>(VectorDraw::kTogether, end - r)));
  };

  if (layout.chunks <= 1) {
    parallel_for(executor, layout.rows, grain_for(cells), [&](int64_t begin, int64_t end) {
      together(begin, end, [&](int64_t first, int count) {
        for (int k = 0; k < count; ++k) {
          if (Logits) chunk_maximum(first + k, 0);
          build(first + k, 0, begin + k);
        }
        finish_rows(first, count, begin);
      });
    });
  } else {
    const auto each_chunk = [&](const auto& body) {
      parallel_for(executor, layout.rows * layout.chunks, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) body(i / layout.chunks, i % layout.chunks);
      });
    };
    if (Logits) each_chunk(chunk_maximum);
    each_chunk([&](int64_t r, int64_t chunk) { build(r, chunk, r); });
    parallel_for(executor, layout.rows, 1, [&](int64_t begin, int64_t end) {
      together(begin, end, [&](int64_t first, int count) { finish_rows(first, count, first); });
    });
  }
  if (bad.any()) fail_row(op, data + bad.row() * row_stride, cells, bad.row(), n, Logits);
}

}  // namespace ats
