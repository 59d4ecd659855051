// Drawing from the tree of partial sums (sample_tree.h): the descent from its root to a cell. Drawing a cell marks it
// taken and sums its path again; nothing is ever subtracted, so what is left is exact however small it is beside what
// was taken.
#pragma once

#include "philox.h"
#include "sample_tree.h"

namespace ats {

constexpr double kSmallMass = 0x1p-500;  // below it, the reference is moved

// One draw of several rows of one shape: what does not depend on their dtype.
//
// A draw is one long chain of dependent steps, so the rows take each step together, for the CPU to overlap them.
// `Draw` says who draws: a thread (ScalarDraw, VectorDraw), or a warp whose threads all run this code (WarpDraw).
template <typename Draw>
struct DrawStep {
  using Node = typename Draw::Node;
  using Numbers = typename Draw::Numbers;  // one for each of kBlock draws

  const TreeShape& shape;
  int rows;
  typename Draw::Tree tree[Draw::kTogether];
  Numbers uniform[Draw::kTogether], wait[Draw::kTogether];  // wait: exponential with rate 1
  double target[Draw::kTogether];  // in: of the mass of the row; out of descend: of the mass of the group
  int64_t group[Draw::kTogether];
  double mass[Draw::kTogether];  // in: what is left of the group; out of update: of the row
  typename Draw::Path path;      // path[level][r]: the node that the draw went through

  ATS_HD DrawStep(const TreeShape& shape_, int rows_) : shape(shape_), rows(rows_) {}

  // Known to the compiler where it is always one: then what is of a row can be in registers.
  ATS_HD ATS_INLINE int count() const { return Draw::kTogether == 1 ? 1 : rows; }

  // The random numbers of draws [first, first + kBlock) of row r from the stream (seed, first_row + r).
  ATS_HD ATS_INLINE void fill(uint64_t seed, uint64_t first_row, uint64_t first) {
    using Real = typename Draw::Real;
    using Word = typename Draw::Word;
    for (int r = 0; r < count(); ++r) {
      Word random[4];
      philox<Word>(seed, Draw::counters(first), first_row + uint64_t(r), random);
      const Real uniforms = uniform_below_one<Real>(random[0], random[1]);
      const Real waits = -portable_log<Real, Word>(uniform_above_zero<Real>(random[2], random[3]));
      uniform[r] = bit_cast<Numbers>(uniforms);
      wait[r] = bit_cast<Numbers>(waits);
    }
  }

  // From the root to the groups that hold the targets.
  ATS_HD ATS_INLINE void descend() {
    for (int r = 0; r < count(); ++r) group[r] = 0;
    for (int level = shape.levels - 2; level >= 0; --level) {
      for (int r = 0; r < count(); ++r) {
        path[level][r] = Node::load(level_of(tree[r], shape, level) + group[r] * kFan);
        group[r] = group[r] * kFan + path[level][r].descend(target[r]);
      }
    }
  }

  // Sums the paths from those groups to the root again.
  ATS_HD ATS_INLINE void update() {
    for (int r = 0; r < count(); ++r) Draw::store(level_of(tree[r], shape, 0)[group[r]], mass[r]);
    for (int level = 0; level + 1 < shape.levels; ++level) {
      for (int r = 0; r < count(); ++r) {
        path[level][r].set(int(group[r] % kFan), mass[r]);
        mass[r] = path[level][r].sum();
        group[r] /= kFan;
        Draw::store(level_of(tree[r], shape, level + 1)[group[r]], mass[r]);
      }
    }
  }
};

// One thread draws `Rows` rows together, with the random numbers of `Block` draws made at once.
template <typename AnyNode, int Block, int Rows>
struct ThreadDraw {
  using Node = AnyNode;
  using Tree = double*;
  using Path = Node[kMaxLevels][Rows];
  struct Numbers {
    double value[Block];
    ATS_HD ATS_INLINE double operator[](int i) const { return value[i]; }
  };
  static constexpr int kBlock = Block;
  static constexpr int kTogether = Rows;
  template <typename Value>
  ATS_HD ATS_INLINE static void store(Value& place, Value value) {
    place = value;
  }
  // What was stored is there for all that draw.
  ATS_HD ATS_INLINE static void end_of_reading() {}
  ATS_HD ATS_INLINE static void end_of_draw() {}
  template <typename State>
  ATS_HD ATS_INLINE static void rescale(State& state) {
    state.rescale();
  }
};

// The plain way. VectorDraw (sample_lanes.h) does the same in vectors, WarpDraw (sample_warp.cuh) with 32 threads.
struct ScalarDraw : ThreadDraw<ats::Node, 1, 1> {
  using Real = double;
  using Word = uint64_t;
  using Step = DrawStep<ScalarDraw>;
  ATS_HD static Word counters(uint64_t first) { return first; }
  ATS_HD static void fill(Step& step, uint64_t seed, uint64_t row, uint64_t first) { step.fill(seed, row, first); }
  ATS_HD static void descend(Step& step) { step.descend(); }
  ATS_HD static void update(Step& step) { step.update(); }
};

// A row with its tree and the bits of the cells taken, one word a group.
template <typename T, bool Logits, typename Draw = ScalarDraw>
struct RowState {
  using Node = typename Draw::Node;

  Row<T, Logits> row;
  const TreeShape* shape;
  typename Draw::Tree tree;
  uint32_t* taken;
  double mass = 0.0;          // what is left, in units of the present scale
  double initial_mass = 0.0;  // all of it, in units of the first scale
  double relative = 1.0;      // unit of the present scale over the unit of the first
  RowScale initial_scale = {};

  ATS_HD bool usable_mass() const { return mass >= kSmallMass && mass <= std::numeric_limits<double>::max(); }

  // Of groups of which cells may have been taken.
  struct Groups {
    const RowState& state;
    ATS_HD void sum(int64_t begin, int64_t end, double* sums) const {
      for (int64_t group = begin; group < end; ++group)
        sums[group] = ats::Node::read(state.row, group, state.taken[group]).sum();
    }
  };

  // Moves the scale to the largest cell left; false when that is none.
  ATS_HD bool move_scale(double largest) {
    if (Logits ? largest == -std::numeric_limits<double>::infinity() : largest == 0.0) return false;
    if (Logits) {
      row.scale.reference = largest;
    } else {
      // Far enough from both ends of double's range for any sum; the factor stays a normal number.
      int exponent = 0;
      frexp(largest, &exponent);
      row.scale.exponent = exponent > 1000 ? 1000 : exponent < -1000 ? -1000 : exponent;
      row.scale.factor = power_of_two(uint64_t(-int64_t(row.scale.exponent)));
    }
    return true;
  }

  // Moves the scale to the largest cell left and builds the tree again. Leaves mass = 0 when no cell is left.
  ATS_HD ATS_NOINLINE void rescale() {
    double largest = Logits ? -std::numeric_limits<double>::infinity() : 0.0;
    for (int64_t cell = 0; cell < row.cells; ++cell) {
      if (taken[cell / kFan] >> (cell % kFan) & 1u) continue;
      const double x = double(load(row.data[cell]));
      largest = x > largest ? x : largest;
    }
    mass = 0.0;
    if (!move_scale(largest)) return;
    for (int64_t chunk = 0; chunk < chunk_count(row.cells); ++chunk)
      build_chunk<ats::Node>(*shape, tree, chunk, Groups{*this});
    mass = build_top<ats::Node>(*shape, tree);
  }

  // After the first building: the mass of the row, moved to a usable scale. 0: no cell has mass.
  ATS_HD void begin() {
    mass = *level_of(tree, *shape, shape->levels - 1);
    if (!usable_mass()) Draw::rescale(*this);
    initial_mass = mass;
    initial_scale = row.scale;
    relative = 1.0;
  }

  ATS_HD double log_mass() const {
    const double unit = Logits ? initial_scale.reference : double(initial_scale.exponent) * 0.6931471805599453;
    return portable_log(initial_mass) + unit;
  }

  // Before every draw: false when nothing is left.
  ATS_HD ATS_INLINE bool refill() {
    if (usable_mass()) return true;
    Draw::rescale(*this);
    const double change =
        Logits ? row.scale.reference - initial_scale.reference : double(row.scale.exponent - initial_scale.exponent);
    relative = Logits ? portable_exp(change) : ldexp(1.0, int(change));
    return mass > 0.0;
  }

  // Probability of a weight in the present scale.
  ATS_HD ATS_INLINE double probability(double weight) const { return weight / initial_mass * relative; }
};

// Draws n cells of each of `rows` rows of one shape, row r from the stream (seed, first_row + r). drawn[r] is how
// many were there to draw; less than n is an error, and then what was drawn means nothing. threshold[r]: time at
// which the first cell left would ring in the race with a total rate of 1; the time between two ringings is
// exponential with the rate of what is left, independent of which cells ring.
template <typename T, bool Logits, typename Draw, typename P>
ATS_HD ATS_INLINE void draw_rows(RowState<T, Logits, Draw>* state, int rows, uint64_t seed, uint64_t first_row,
                                 int64_t n, bool replace, int64_t* indices, P* probabilities, double* threshold,
                                 int64_t* drawn) {
  using Node = typename Draw::Node;
  DrawStep<Draw> step(*state[0].shape, rows);
  double time[Draw::kTogether];
  for (int r = 0; r < rows; ++r) {
    step.tree[r] = state[r].tree;
    time[r] = 0.0;
    threshold[r] = std::numeric_limits<double>::infinity();
    drawn[r] = n;
  }
  for (int64_t i = 0; i <= n; ++i) {
    const int in_block = int(i % Draw::kBlock);
    if (in_block == 0) Draw::fill(step, seed, first_row, uint64_t(i));
    if (replace && i == n) return;
    for (int r = 0; r < rows; ++r) {
      // A row with nothing left goes on at its first cell until the others are done.
      if (drawn[r] == n && !state[r].refill()) drawn[r] = i;
      if (Draw::kTogether == 1 && drawn[r] < n) return;
      time[r] += step.wait[r][in_block] / state[r].probability(state[r].mass);
      step.target[r] = step.uniform[r][in_block] * state[r].mass;
    }
    if (i == n) break;
    Draw::descend(step);
    for (int r = 0; r < rows; ++r) {
      const int64_t group = step.group[r];
      uint32_t& taken = state[r].taken[group];
      Node cells = Node::read(state[r].row, group, taken);
      const int e = cells.descend(step.target[r]);
      Draw::store(indices[r * n + i], group * kFan + e);
      Draw::store(probabilities[r * n + i], P(state[r].probability(cells[e])));
      if (replace) continue;
      const uint32_t now_taken = taken | uint32_t(1) << e;
      cells.set(e, 0.0);
      step.mass[r] = cells.sum();
      Draw::end_of_reading();
      Draw::store(taken, now_taken);
    }
    if (replace) continue;
    Draw::update(step);
    Draw::end_of_draw();
    for (int r = 0; r < rows; ++r) state[r].mass = step.mass[r];
  }
  for (int r = 0; r < rows; ++r)
    if (drawn[r] == n) threshold[r] = time[r];
}

}  // namespace ats
