// The tree of partial sums behind `sample`, and how its nodes are read and added up.
//
// Level 0 holds the sum of every 32 cells, each further level the sum of every 32 entries below, the last a single
// entry: the mass of the row.
//
// Cells are read through `Row`, which turns an input element into a weight of convenient size: logits become
// exp(logit - reference), weights are multiplied by 2^-exponent. The reference moves (`RowScale`) when what is left
// has become too small for it, or when a first sum has overflowed.
//
// Every addition stands in one fixed order, in double. That order is part of the law "same rng, same picks".
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "half.h"
#include "host_device.h"
#include "portable_math.h"

namespace ats {

constexpr int kFan = 32;              // children of a node, cells of a group
constexpr int kLanes = 8;             // partial sums inside a node: entry e is added to lane e % 8
constexpr int kRows = kFan / kLanes;  // entries of a lane
constexpr int kMaxLevels = 13;        // 32^13 > 2^63

// ---- shape of the tree --------------------------------------------------------------------------------------------
struct TreeShape {
  int64_t cells = 0;
  int levels = 0;
  int64_t count[kMaxLevels] = {};   // entries of a level
  int64_t padded[kMaxLevels] = {};  // with zeros up to a multiple of kFan, but for the root
  int64_t offset[kMaxLevels] = {};  // where the level begins, in doubles
  int64_t doubles = 0;
};

ATS_HD inline TreeShape tree_shape(int64_t cells) {
  TreeShape shape;
  shape.cells = cells;
  int64_t count = cells / kFan + (cells % kFan != 0);
  for (;;) {
    const int level = shape.levels++;
    shape.count[level] = count;
    shape.padded[level] = count <= 1 ? 1 : (count / kFan + (count % kFan != 0)) * kFan;
    shape.offset[level] = shape.doubles;
    shape.doubles += shape.padded[level];
    if (count <= 1) return shape;
    count = shape.padded[level] / kFan;
  }
}

// Where a level of a tree begins.
ATS_HD ATS_INLINE double* level_of(double* tree, const TreeShape& shape, int level) {
  return tree + shape.offset[level];
}

// ---- reading cells ------------------------------------------------------------------------------------------------
struct RowScale {
  double reference = 0.0;  // logits: what is subtracted, an element of the row
  double factor = 1.0;     // weights: the power of two they are multiplied by
  int exponent = 0;        //          factor = 2^-exponent
};

template <typename T, bool Logits>
struct Row {
  const T* data;
  int64_t cells;
  RowScale scale;

  ATS_HD double weight(int64_t cell) const {
    const auto x = load(data[cell]);
    if constexpr (!Logits) return double(x) * scale.factor;
    else if constexpr (std::is_same_v<T, double>) return portable_exp(x - scale.reference);
    else return float_exp(x, float(scale.reference));
  }
};

// ---- one node -----------------------------------------------------------------------------------------------------
ATS_HD inline double sum_lanes(const double* lane) {
  return ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7]));
}

// upto[i] = lane[0] + ... + lane[i], in an order that never falls: upto[i] > upto[i - 1] only where lane[i] > 0.
ATS_HD inline void sums_upto(const double* lane, double* upto) {
  const double pair01 = lane[0] + lane[1], pair45 = lane[4] + lane[5];
  upto[0] = lane[0];
  upto[1] = pair01;
  upto[2] = lane[2] + pair01;
  upto[3] = (lane[2] + lane[3]) + pair01;
  upto[4] = lane[4] + upto[3];
  upto[5] = pair45 + upto[3];
  upto[6] = (lane[6] + pair45) + upto[3];
  upto[7] = ((lane[6] + lane[7]) + pair45) + upto[3];
}

// Rounding has left a target past the end of `count` sums (`stride` apart): the last that has mass. One of them has.
ATS_HD inline int last_with_mass(const double* sum, int count, int stride) {
  int last = count - 1;
  while (last > 0 && !(sum[last * stride] > 0.0)) --last;
  return last;
}

// The sums that a descent through a node compares its target with, each after the one before it, so that nothing
// branches on where the target lies: that is as random as the draw.
struct Descent {
  double lanes_upto[1 + kLanes] = {};  // [l]: the lanes before lane l
  double upto[kLanes + kFan];          // [lane + r * kLanes]: the entries of a lane before its r-th

  ATS_HD const double* lanes() const { return upto + kFan; }

  // `lane` counts the lanes that end at or before target. Lowers target by what stands before the entry chosen.
  ATS_HD ATS_INLINE int choose(const double* entry, int lane, double& target) const {
    if (lane == kLanes) lane = last_with_mass(lanes(), kLanes, 1);
    target -= lanes_upto[lane];
    int row = 0;
    for (int r = 1; r <= kRows; ++r) row += target >= upto[lane + r * kLanes];
    if (row == kRows) row = last_with_mass(entry + lane, kRows, kLanes);
    target -= upto[lane + row * kLanes];
    return lane + row * kLanes;
  }
};

// 32 entries of a level, or the weights of a group of cells. The CPU has the same in vectors (sample_lanes.h).
struct Node {
  double entry[kFan];

  ATS_HD static Node load(const double* entries) {
    Node node;
    for (int e = 0; e < kFan; ++e) node.entry[e] = entries[e];
    return node;
  }

  // Group `group` of a row, without the cells whose bit is set in `taken` and past the end of the row.
  template <typename T, bool Logits>
  ATS_HD static Node read(const Row<T, Logits>& row, int64_t group, uint32_t taken) {
    Node node;
    const int64_t first = group * kFan;
    for (int e = 0; e < kFan; ++e)
      node.entry[e] = first + e < row.cells && !(taken >> e & 1u) ? row.weight(first + e) : 0.0;
    return node;
  }

  ATS_HD double operator[](int e) const { return entry[e]; }
  ATS_HD void set(int e, double value) { entry[e] = value; }

  ATS_HD double sum() const {
    Descent descent;
    sum_rows(descent);
    return sum_lanes(descent.lanes());
  }

  // Which entry holds `target`, 0 <= target < sum(), which is lowered by what stands before it: first the lane, then
  // the entry in it. At least one entry has mass; none without is ever chosen.
  ATS_HD int descend(double& target) const {
    Descent descent;
    sum_rows(descent);
    sums_upto(descent.lanes(), descent.lanes_upto + 1);
    int lane = 0;
    for (int l = 1; l <= kLanes; ++l) lane += target >= descent.lanes_upto[l];
    return descent.choose(entry, lane, target);
  }

 private:
  ATS_HD void sum_rows(Descent& descent) const {
    for (int l = 0; l < kLanes; ++l) descent.upto[l] = 0.0, descent.upto[kLanes + l] = entry[l];
    for (int e = kLanes; e < kFan; ++e) descent.upto[kLanes + e] = descent.upto[e] + entry[e];
  }
};

// ---- building -----------------------------------------------------------------------------------------------------
constexpr int kChunkLevels = 3;                      // a chunk is the subtree below one entry of level 2
constexpr int64_t kChunkCells = kFan * kFan * kFan;  // work is handed to threads in chunks

ATS_HD inline int64_t chunk_count(int64_t cells) { return cells / kChunkCells + (cells % kChunkCells != 0); }

// Fills one level from the one below it, for entries [begin, end).
template <typename AnyNode>
ATS_HD ATS_INLINE void sum_level(const TreeShape& shape, double* tree, int level, int64_t begin, int64_t end) {
  const double* below = tree + shape.offset[level - 1];
  double* sums = tree + shape.offset[level];
  for (int64_t e = begin; e < end; ++e) sums[e] = e < shape.count[level] ? AnyNode::load(below + e * kFan).sum() : 0.0;
}

// The lowest three levels of chunk `chunk`; groups.sum(begin, end, sums) writes the sums of those groups to level 0.
template <typename AnyNode, typename Groups>
ATS_HD ATS_INLINE void build_chunk(const TreeShape& shape, double* tree, int64_t chunk, const Groups& groups) {
  const bool last = chunk + 1 == chunk_count(shape.cells);
  int64_t width = kFan * kFan;
  for (int level = 0; level < kChunkLevels && level < shape.levels; ++level, width /= kFan) {
    const int64_t begin = chunk * width;
    // The last chunk also writes the zeros that pad its levels.
    const int64_t end =
        last ? shape.padded[level] : (begin + width < shape.padded[level] ? begin + width : shape.padded[level]);
    if (level > 0) {
      sum_level<AnyNode>(shape, tree, level, begin, end);
    } else {
      const int64_t filled = end < shape.count[0] ? end : shape.count[0];
      groups.sum(begin, filled, tree);
      for (int64_t g = filled; g < end; ++g) tree[g] = 0.0;
    }
  }
}

// The levels above the chunks. Returns the mass of the row.
template <typename AnyNode>
ATS_HD inline double build_top(const TreeShape& shape, double* tree) {
  for (int level = kChunkLevels; level < shape.levels; ++level)
    sum_level<AnyNode>(shape, tree, level, 0, shape.padded[level]);
  return tree[shape.offset[shape.levels - 1]];
}

}  // namespace ats
