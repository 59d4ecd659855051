// The tree of partial sums behind `sample`, and the descent from its root to a cell.
//
// Level 0 holds the sum of every 32 cells, each further level the sum of every 32 entries below, the last a single
// entry: the mass of the row. Drawing a cell marks it taken and sums its path again; nothing is ever subtracted, so
// what is left is exact however small it is beside what was taken.
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
#include "philox.h"
#include "portable_math.h"

namespace ats {

constexpr int kFan = 32;                 // children of a node, cells of a group
constexpr int kLanes = 8;                // partial sums inside a group
constexpr int kMaxLevels = 13;           // 32^13 > 2^63
constexpr double kSmallMass = 0x1p-500;  // below it, the reference is moved

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

// ---- reading cells ------------------------------------------------------------------------------------------------
struct RowScale {
  double reference = 0.0;  // logits: what is subtracted
  double factor = 1.0;     // weights: the power of two they are multiplied by
  int exponent = 0;        //          factor = 2^-exponent
};

template <typename T, bool Logits>
struct Row {
  const T* data;
  int64_t cells;
  RowScale scale;

  ATS_HD double weight(int64_t cell) const {
    const double x = double(load(data[cell]));
    return Logits ? portable_exp(x - scale.reference) : x * scale.factor;
  }
};

ATS_HD inline double sum_lanes(const double* lane) {
  return ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7]));
}

ATS_HD inline double sum_group(const double* entry) {
  double lane[kLanes];
  for (int l = 0; l < kLanes; ++l) lane[l] = entry[l];
  for (int e = kLanes; e < kFan; e += kLanes)
    for (int l = 0; l < kLanes; ++l) lane[l] += entry[e + l];
  return sum_lanes(lane);
}

// The weights of group `group`, without the cells whose bit is set in `taken` and past the end of the row.
template <typename T, bool Logits>
ATS_HD inline void read_group(const Row<T, Logits>& row, int64_t group, uint32_t taken, double* entry) {
  const int64_t first = group * kFan;
  for (int e = 0; e < kFan; ++e) entry[e] = first + e < row.cells && !(taken >> e & 1u) ? row.weight(first + e) : 0.0;
}

// The sum of a group of which nothing is taken; NaN when it holds a negative weight (or a NaN).
template <typename T, bool Logits>
ATS_HD inline double sum_fresh_group(const Row<T, Logits>& row, int64_t group) {
  const int64_t first = group * kFan;
  double entry[kFan];
  if (first + kFan <= row.cells) {
    for (int e = 0; e < kFan; ++e) entry[e] = row.weight(first + e);
  } else {
    read_group(row, group, 0u, entry);
  }
  double lowest[kLanes];
  for (int l = 0; l < kLanes; ++l) lowest[l] = 0.0;
  if (!Logits)
    for (int e = 0; e < kFan; e += kLanes)
      for (int l = 0; l < kLanes; ++l) lowest[l] = entry[e + l] < lowest[l] ? entry[e + l] : lowest[l];
  bool negative = false;
  for (int l = 0; l < kLanes; ++l) negative |= lowest[l] < 0.0;
  return negative ? std::numeric_limits<double>::quiet_NaN() : sum_group(entry);
}

// ---- building -----------------------------------------------------------------------------------------------------
constexpr int kChunkLevels = 3;                      // a chunk is the subtree below one entry of level 2
constexpr int64_t kChunkCells = kFan * kFan * kFan;  // work is handed to threads in chunks

ATS_HD inline int64_t chunk_count(int64_t cells) { return cells / kChunkCells + (cells % kChunkCells != 0); }

// Fills one level from the one below it, for entries [begin, end).
ATS_HD inline void sum_level(const TreeShape& shape, double* tree, int level, int64_t begin, int64_t end) {
  const double* below = tree + shape.offset[level - 1];
  double* sums = tree + shape.offset[level];
  for (int64_t e = begin; e < end; ++e) sums[e] = e < shape.count[level] ? sum_group(below + e * kFan) : 0.0;
}

// The lowest three levels of chunk `chunk`; `sum_groups(begin, end)` writes the sums of those groups to level 0.
template <typename SumGroups>
ATS_HD inline void build_chunk(const TreeShape& shape, double* tree, int64_t chunk, const SumGroups& sum_groups) {
  const bool last = chunk + 1 == chunk_count(shape.cells);
  int64_t width = kFan * kFan;
  for (int level = 0; level < kChunkLevels && level < shape.levels; ++level, width /= kFan) {
    const int64_t begin = chunk * width;
    // The last chunk also writes the zeros that pad its levels.
    const int64_t end =
        last ? shape.padded[level] : (begin + width < shape.padded[level] ? begin + width : shape.padded[level]);
    if (level > 0) {
      sum_level(shape, tree, level, begin, end);
    } else {
      const int64_t filled = end < shape.count[0] ? end : shape.count[0];
      sum_groups(begin, filled);
      for (int64_t g = filled; g < end; ++g) tree[g] = 0.0;
    }
  }
}

// The levels above the chunks. Returns the mass of the row.
ATS_HD inline double build_top(const TreeShape& shape, double* tree) {
  for (int level = kChunkLevels; level < shape.levels; ++level) sum_level(shape, tree, level, 0, shape.padded[level]);
  return tree[shape.offset[shape.levels - 1]];
}

// ---- descending ---------------------------------------------------------------------------------------------------
// Which of `Count` sums, one after the other, holds `target`, which is lowered by what stands before it. Without branches but
// for one that is hardly ever taken: rounding may leave target past the end, and then it is the last sum with mass.
template <int Count>
ATS_HD ATS_INLINE int choose(const double* sum, double& target) {
  double before[Count];
  before[0] = 0.0;
  for (int i = 1; i < Count; ++i) before[i] = before[i - 1] + sum[i - 1];
  int chosen = 0;
  for (int i = 1; i < Count; ++i) chosen += target >= before[i];
  while (!(sum[chosen] > 0.0) && chosen > 0) --chosen;
  target -= before[chosen];
  return chosen;
}

// Which of 32 entries holds `target`: first the lane, then the entry in it. At least one entry has mass.
ATS_HD ATS_INLINE int descend(const double* entry, double& target) {
  double lane[kLanes];
  for (int l = 0; l < kLanes; ++l) lane[l] = entry[l];
  for (int e = kLanes; e < kFan; e += kLanes)
    for (int l = 0; l < kLanes; ++l) lane[l] += entry[e + l];
  const int l = choose<kLanes>(lane, target);
  const double in_lane[kFan / kLanes] = {entry[l], entry[l + kLanes], entry[l + 2 * kLanes], entry[l + 3 * kLanes]};
  return l + kLanes * choose<kFan / kLanes>(in_lane, target);
}

// The group in which `target` of the row's mass falls; target is lowered to its place within the group.
ATS_HD inline int64_t descend_to_group(const TreeShape& shape, const double* tree, double& target) {
  int64_t node = 0;
  for (int level = shape.levels - 2; level >= 0; --level)
    node = node * kFan + descend(tree + shape.offset[level] + node * kFan, target);
  return node;
}

// Sets the sum of a group and sums its path to the root again. Returns the mass of the row.
ATS_HD inline double update_group(const TreeShape& shape, double* tree, int64_t group, double sum) {
  tree[group] = sum;
  int64_t node = group;
  for (int level = 1; level < shape.levels; ++level) {
    node /= kFan;
    tree[shape.offset[level] + node] = sum_group(tree + shape.offset[level - 1] + node * kFan);
  }
  return tree[shape.offset[shape.levels - 1]];
}

// ---- drawing ------------------------------------------------------------------------------------------------------
// A row with its tree and the bits of the cells taken, one word a group.
template <typename T, bool Logits>
struct RowState {
  Row<T, Logits> row;
  TreeShape shape;
  double* tree;
  uint32_t* taken;
  double mass = 0.0;          // what is left, in units of the present scale
  double initial_mass = 0.0;  // all of it, in units of the first scale
  double relative = 1.0;      // unit of the present scale over the unit of the first
  RowScale initial_scale = {};

  ATS_HD bool usable_mass() const { return mass >= kSmallMass && mass <= std::numeric_limits<double>::max(); }

  // Moves the scale to the largest cell left and builds the tree again. Leaves mass = 0 when no cell is left.
  ATS_HD void rescale() {
    double largest = Logits ? -std::numeric_limits<double>::infinity() : 0.0;
    for (int64_t cell = 0; cell < row.cells; ++cell) {
      if (taken[cell / kFan] >> (cell % kFan) & 1u) continue;
      const double x = double(load(row.data[cell]));
      largest = x > largest ? x : largest;
    }
    mass = 0.0;
    if (Logits ? largest == -std::numeric_limits<double>::infinity() : largest == 0.0) return;
    if (Logits) {
      row.scale.reference = largest;
    } else {
      // Far enough from both ends of double's range for any sum; the factor stays a normal number.
      int exponent = 0;
      frexp(largest, &exponent);
      row.scale.exponent = exponent > 1000 ? 1000 : exponent < -1000 ? -1000 : exponent;
      row.scale.factor = power_of_two(uint64_t(-int64_t(row.scale.exponent)));
    }
    const RowState& self = *this;
    for (int64_t chunk = 0; chunk < chunk_count(shape.cells); ++chunk)
      build_chunk(shape, tree, chunk, [&self](int64_t begin, int64_t end) {
        for (int64_t group = begin; group < end; ++group) {
          double entry[kFan];
          read_group(self.row, group, self.taken[group], entry);
          self.tree[group] = sum_group(entry);
        }
      });
    mass = build_top(shape, tree);
  }

  // After the first building: the mass of the row, moved to a usable scale. 0: no cell has mass.
  ATS_HD void begin() {
    mass = tree[shape.offset[shape.levels - 1]];
    if (!usable_mass()) rescale();
    initial_mass = mass;
    initial_scale = row.scale;
    relative = 1.0;
  }

  ATS_HD double log_mass() const {
    const double unit = Logits ? initial_scale.reference : double(initial_scale.exponent) * 0.6931471805599453;
    return portable_log(initial_mass) + unit;
  }

  // Before every draw: false when nothing is left.
  ATS_HD bool refill() {
    if (usable_mass()) return true;
    rescale();
    const double change =
        Logits ? row.scale.reference - initial_scale.reference : double(row.scale.exponent - initial_scale.exponent);
    relative = Logits ? portable_exp(change) : ldexp(1.0, int(change));
    return mass > 0.0;
  }

  // Probability of a weight in the present scale.
  ATS_HD double probability(double weight) const { return weight / initial_mass * relative; }

  // Draws one cell; with `take`, it is gone afterwards. mass > 0.
  ATS_HD int64_t draw(double uniform, bool take, double& chosen_probability) {
    double target = uniform * mass;
    const int64_t group = descend_to_group(shape, tree, target);
    double entry[kFan];
    read_group(row, group, taken[group], entry);
    const int e = descend(entry, target);
    chosen_probability = probability(entry[e]);
    if (take) {
      taken[group] |= uint32_t(1) << e;
      entry[e] = 0.0;
      mass = update_group(shape, tree, group, sum_group(entry));
    }
    return group * kFan + e;
  }
};

// Draws n cells of a row from the stream (seed, row_number); `emit(i, cell, probability)`. Returns how many were
// there to draw. `threshold`: time at which the first cell left would ring in the race with a total rate of 1. The
// time between two ringings is exponential with the rate of what is left, independent of which cells ring.
template <typename T, bool Logits, typename Emit>
ATS_HD inline int64_t draw_row(RowState<T, Logits>& state, uint64_t seed, uint64_t row_number, int64_t n, bool replace,
                               double& threshold, const Emit& emit) {
  threshold = std::numeric_limits<double>::infinity();
  double time = 0.0;
  for (int64_t i = 0; i <= n; ++i) {
    if (replace && i == n) break;
    if (!state.refill()) return i;
    const Random128 random = random_bits(seed, row_number, uint64_t(i));
    time -= portable_log(uniform_above_zero(random.word[2], random.word[3])) / state.probability(state.mass);
    if (i == n) {
      if (!replace) threshold = time;
      break;
    }
    double probability = 0.0;
    const int64_t cell = state.draw(uniform_below_one(random.word[0], random.word[1]), !replace, probability);
    emit(i, cell, probability);
  }
  return n;
}

}  // namespace ats
