// What sample_tree.h and sample_math.h do a number at a time, in vectors of eight for the CPU, bit for bit the same
// (tests/cpp/test_lanes.cc). Everything here becomes part of the loops at its end (simd.h).
#pragma once

#include <algorithm>

#include "feature_lanes.h"
#include "lanes.h"
#include "sample_math.h"

namespace ats {

// sums_upto of sample_tree.h.
ATS_INLINE Doubles sums_upto(Doubles lanes) {
  HalvesOfDoubles half = bit_cast<HalvesOfDoubles>(lanes);
  const FourDoubles zero{};
  half.low += ATS_SHUFFLE(half.low, zero, 4, 0, 4, 2);
  half.high += ATS_SHUFFLE(half.high, zero, 4, 0, 4, 2);
  half.low += ATS_SHUFFLE(half.low, zero, 4, 4, 1, 1);
  half.high += ATS_SHUFFLE(half.high, zero, 4, 4, 1, 1);
  half.high += ATS_SHUFFLE(half.low, half.low, 3, 3, 3, 3);
  return bit_cast<Doubles>(half);
}

// The weights of a group of cells, none taken.
template <typename T, bool Logits>
ATS_INLINE void read_weights(const Row<T, Logits>& row, const T* cell, Doubles* weight) {
  if constexpr (std::is_same_v<T, double>) {
    for (int r = 0; r < kRows; ++r) {
      const Doubles x = load_lanes(cell + r * kLanes);
      if constexpr (Logits) weight[r] = portable_exp<Doubles, Words>(x - row.scale.reference);
      else weight[r] = x * row.scale.factor;
    }
  } else {
    for (int r = 0; r < kRows; r += 2) {
      const SixteenFloats x = load_floats(cell + r * kLanes);
      TwoDoubles two;
      if constexpr (Logits) two = float_exp(x, float(row.scale.reference));
      else two = widen(x), two.low *= row.scale.factor, two.high *= row.scale.factor;
      weight[r] = two.low;
      weight[r + 1] = two.high;
    }
  }
}

struct VectorNode {
  Doubles row[kRows];  // entry e is row[e / 8][e % 8]

  ATS_INLINE static VectorNode load(const double* entries) {
    VectorNode node;
    for (int r = 0; r < kRows; ++r) node.row[r] = load_lanes(entries + r * kLanes);
    return node;
  }

  template <typename T, bool Logits>
  ATS_INLINE static VectorNode read(const Row<T, Logits>& row, int64_t group, uint32_t taken) {
    const int64_t first = group * kFan;
    if (first + kFan > row.cells) return load(Node::read(row, group, taken).entry);
    VectorNode node;
    read_weights(row, row.data + first, node.row);
    const Words bit = {1, 2, 4, 8, 16, 32, 64, 128};
    for (int r = 0; r < kRows; ++r)
      node.row[r] = (bit & uint64_t(taken >> (r * kLanes))) == 0 ? node.row[r] : Doubles{};
    return node;
  }

  ATS_INLINE double operator[](int e) const {
    double value;
    memcpy(&value, reinterpret_cast<const char*>(row) + size_t(e) * sizeof(double), sizeof(value));
    return value;
  }

  ATS_INLINE void set(int e, double value) {
    Words place = {0, 1, 2, 3, 4, 5, 6, 7};
    for (int r = 0; r < kRows; ++r, place += kLanes) row[r] = place == uint64_t(e) ? Doubles{} + value : row[r];
  }

  ATS_INLINE double sum() const { return sum_lanes(((row[0] + row[1]) + row[2]) + row[3]); }

  ATS_INLINE int descend(double& target) const {
    double entry[kFan];
    Descent descent;
    memcpy(entry, row, sizeof(entry));
    Doubles sum{};
    store_lanes(descent.upto, sum);
    for (int r = 0; r < kRows; ++r) {
      sum = r == 0 ? row[0] : sum + row[r];
      store_lanes(descent.upto + (r + 1) * kLanes, sum);
    }
    const Doubles before = sums_upto(sum);
    store_lanes(descent.lanes_upto + 1, before);
    return descent.choose(entry, count_not_less(Doubles{} + target, before), target);
  }
};

struct VectorDraw : ThreadDraw<VectorNode, kLanes, 4> {
  using Real = Doubles;
  using Word = Words;
  using Step = DrawStep<VectorDraw>;
  ATS_INLINE static Words counters(uint64_t first) { return Words{0, 1, 2, 3, 4, 5, 6, 7} + first; }
  // Loops of their own, below, so that they are compiled once for all dtypes.
  static void fill(Step& step, uint64_t seed, uint64_t row, uint64_t first);
  static void descend(Step& step);
  static void update(Step& step);
};

template <typename T, bool Logits>
using CpuRowState = RowState<T, Logits, VectorDraw>;

// The sums of fresh groups, of which nothing is taken: here is all of the reading. A negative weight makes one of the
// sums NaN. (The scale of a fresh row of weights is 1.)
template <typename T, bool Logits>
struct FreshGroups {
  const Row<T, Logits>& row;

  ATS_INLINE void sum(int64_t begin, int64_t end, double* sums) const {
    const int64_t whole = std::min(end, row.cells / kFan);
    Lowest lowest{};
    int64_t group = begin;
    for (; group + 4 <= whole; group += 4) {
      Doubles lanes[4];
      for (int g = 0; g < 4; ++g) lanes[g] = add_up(row.data + (group + g) * kFan, lowest);
      const FourDoubles four = sum_lanes(lanes[0], lanes[1], lanes[2], lanes[3]);
      memcpy(sums + group, &four, sizeof(four));
    }
    for (; group < whole; ++group) sums[group] = sum_lanes(add_up(row.data + group * kFan, lowest));
    bool negative = lowest.negative();
    for (; group < end; ++group) {
      const Node node = Node::read(row, group, 0u);
      for (int e = 0; e < kFan; ++e) negative |= node[e] < 0;
      sums[group] = node.sum();
    }
    if (negative) sums[begin] = std::numeric_limits<double>::quiet_NaN();
  }

 private:
  // The smallest weights seen, lane by lane.
  struct Lowest {
    Doubles doubles{};
    SixteenFloats floats{};
    ATS_INLINE bool negative() const {
      bool found = false;
      for (int l = 0; l < kLanes; ++l) found |= doubles[l] < 0;
      for (int l = 0; l < 2 * kLanes; ++l) found |= floats[l] < 0;
      return found;
    }
  };

  // The lanes of one group.
  ATS_INLINE Doubles add_up(const T* cell, Lowest& lowest) const {
    Doubles weight[kRows];
    if constexpr (Logits) {
      read_weights(row, cell, weight);
    } else if constexpr (std::is_same_v<T, double>) {
      for (int r = 0; r < kRows; ++r) {
        weight[r] = load_lanes(cell + r * kLanes);
        lowest.doubles = lower(weight[r], lowest.doubles);
      }
    } else {
      const SixteenFloats first = load_floats(cell), second = load_floats(cell + 2 * kLanes);
      lowest.floats = lower(second, lower(first, lowest.floats));
      const TwoDoubles a = widen(first), b = widen(second);
      return ((a.low + a.high) + b.low) + b.high;
    }
    return ((weight[0] + weight[1]) + weight[2]) + weight[3];
  }
};

// ---- loops --------------------------------------------------------------------------------------------------------
template <typename T, bool Logits>
struct BuildChunk {
  ATS_INLINE static void run(const Row<T, Logits>* row, const TreeShape* shape, double* tree, int64_t chunk) {
    build_chunk<VectorNode>(*shape, tree, chunk, FreshGroups<T, Logits>{*row});
  }
};

struct BuildTop {
  ATS_INLINE static double run(const TreeShape* shape, double* tree) { return build_top<VectorNode>(*shape, tree); }
};

struct FillStep {
  ATS_INLINE static void run(VectorDraw::Step* step, uint64_t seed, uint64_t row, uint64_t first) {
    step->fill(seed, row, first);
  }
};
struct DescendStep {
  ATS_INLINE static void run(VectorDraw::Step* step) { step->descend(); }
};
struct UpdateStep {
  ATS_INLINE static void run(VectorDraw::Step* step) { step->update(); }
};
inline void VectorDraw::fill(Step& step, uint64_t seed, uint64_t row, uint64_t first) {
  on_this_cpu<FillStep>(&step, seed, row, first);
}
inline void VectorDraw::descend(Step& step) { on_this_cpu<DescendStep>(&step); }
inline void VectorDraw::update(Step& step) { on_this_cpu<UpdateStep>(&step); }

template <typename T, bool Logits, typename P>
struct DrawRows {
  ATS_INLINE static void run(CpuRowState<T, Logits>* state, int rows, uint64_t seed, uint64_t first_row, int64_t n,
                             bool replace, int64_t* indices, P* probabilities, double* threshold, int64_t* drawn) {
    draw_rows(state, rows, seed, first_row, n, replace, indices, probabilities, threshold, drawn);
  }
};

// The largest of cells [begin, end).
template <typename T>
struct Largest {
  ATS_INLINE static double run(const T* row, int64_t begin, int64_t end) {
    double largest = -std::numeric_limits<double>::infinity();
    constexpr int64_t lanes = kFeatureLanes<T>;
    int64_t cell = begin;
    FeatureVector<T> high = FeatureVector<T>{} - std::numeric_limits<FeatureScalar<T>>::infinity();
    for (; cell + lanes <= end; cell += lanes) high = higher(load_features(row + cell), high);
    for (int l = 0; l < lanes; ++l) largest = double(high[l]) > largest ? double(high[l]) : largest;
    for (; cell < end; ++cell) {
      const double x = double(load(row[cell]));
      largest = x > largest ? x : largest;
    }
    return largest;
  }
};

// out[k] = factor * exp(x[k] - log_mass) for cells [begin, end).
template <typename T>
struct SoftmaxGradient {
  ATS_INLINE static void run(const T* x, int64_t begin, int64_t end, double factor, double log_mass, T* out) {
    const double top = largest_finite<T>();
    int64_t cell = begin;
    for (; cell + kLanes <= end; cell += kLanes) {
      const Doubles value = factor * portable_exp<Doubles, Words>(load_lanes(x + cell) - log_mass);
      const Doubles no_more = value > top ? Doubles{} + top : value;  // as store_clamped: NaN stays
      narrow<kLanes, double>(no_more < -top ? Doubles{} - top : no_more, out + cell);
    }
    for (; cell < end; ++cell) out[cell] = store_clamped<T>(factor * portable_exp(double(load(x[cell])) - log_mass));
  }
};

}  // namespace ats
