// What the vector loops give is what the scalar code gives, bit for bit, for every instruction set that this machine
// has.
#include <random>
#include <vector>

#include "check.h"
#include "every_cpu.h"
#include "sample_rows.h"

using namespace ats;

bool same_bits(double a, double b) { return bit_cast<uint64_t>(a) == bit_cast<uint64_t>(b); }

template <typename T, bool Logits>
std::vector<T> some_cells(std::mt19937_64& random, int64_t cells) {
  std::uniform_real_distribution<double> any(Logits ? -900.0 : 0.0, Logits ? 0.0 : 3.0);
  std::vector<T> data(static_cast<size_t>(cells));
  for (T& x : data) x = store<T>(random() % 5 ? any(random) : Logits ? -INFINITY : 0.0);
  data[size_t(random() % uint64_t(cells))] = store<T>(0.5);
  return data;
}

// The tree that the scalar code builds.
template <typename T, bool Logits>
struct ScalarGroups {
  const Row<T, Logits>& row;
  void sum(int64_t begin, int64_t end, double* sums) const {
    for (int64_t g = begin; g < end; ++g) sums[g] = Node::read(row, g, 0u).sum();
  }
};

template <typename T, bool Logits>
struct Tree {
  Row<T, Logits> row;
  TreeShape shape;
  std::vector<double> sums;
  std::vector<uint32_t> taken;

  explicit Tree(const std::vector<T>& data)
      : row{data.data(), int64_t(data.size()), {}},
        shape(tree_shape(int64_t(data.size()))),
        sums(size_t(shape.doubles), -1.0),
        taken(size_t(shape.count[0]), 0u) {
    for (int64_t chunk = 0; chunk < chunk_count(row.cells); ++chunk)
      build_chunk<Node>(shape, sums.data(), chunk, ScalarGroups<T, Logits>{row});
    build_top<Node>(shape, sums.data());
  }

  template <typename Draw>
  RowState<T, Logits, Draw> state() {
    RowState<T, Logits, Draw> state{row, &shape, sums.data(), taken.data()};
    state.begin();
    return state;
  }
};

template <typename T, bool Logits>
void test_building(std::mt19937_64& random) {
  for (const int64_t cells : {1, 7, 31, 32, 33, 64, 1000, 32 * 32 * 3 + 5, 32 * 32 * 32 + 77}) {
    std::vector<T> data = some_cells<T, Logits>(random, cells);
    const Tree<T, Logits> expected(data);
    Tree<T, Logits> tree(data);
    for (int64_t chunk = 0; chunk < chunk_count(cells); ++chunk)
      on_every_cpu<BuildChunk<T, Logits>>([](const auto& run) { run(); }, &expected.row, &tree.shape, tree.sums.data(),
                                          chunk);
    on_every_cpu<BuildChunk<T, Logits>>(
        [&](const auto& run) {
          for (int64_t e = 0; e < std::min<int64_t>(tree.shape.padded[0], kFan * kFan); ++e)
            tree.sums[size_t(e)] = -1.0;
          run();
          on_this_cpu<BuildTop>(&tree.shape, tree.sums.data());
          for (size_t e = 0; e < tree.sums.size(); ++e) CHECK(same_bits(tree.sums[e], expected.sums[e]));
        },
        &expected.row, &tree.shape, tree.sums.data(), int64_t(0));

    double largest = double(load(data[0]));
    for (const T& x : data) largest = std::fmax(largest, double(load(x)));
    on_every_cpu<Largest<T>>([&](const auto& run) { CHECK(run() == largest); }, static_cast<const T*>(data.data()),
                             int64_t(0), cells);
    if (Logits) continue;
    data[static_cast<size_t>(random() % uint64_t(cells))] = store<T>(-1.0);  // one negative weight: some sum is NaN
    for (double& sum : tree.sums) sum = 0.0;
    bool found = false;
    for (int64_t chunk = 0; chunk < chunk_count(cells); ++chunk)
      on_every_cpu<BuildChunk<T, Logits>>([](const auto& run) { run(); }, &expected.row, &tree.shape, tree.sums.data(),
                                          chunk);
    for (const double sum : tree.sums) found |= std::isnan(sum);
    CHECK(found);
  }
}

// The parts of a draw that all dtypes share; what is left of every group drawn from is a quarter.
template <typename Draw>
struct WholeStep {
  ATS_INLINE static void run(DrawStep<Draw>* step, uint64_t row, uint64_t draw) {
    step->fill(5, row, draw);
    for (int r = 0; r < step->rows; ++r) step->target[r] = step->uniform[r][0] * 1000.0, step->mass[r] = 0.25;
    step->descend();
    step->update();
  }
};

void test_steps(std::mt19937_64& random) {
  constexpr int kRows = VectorDraw::kTogether;
  const Tree<double, false> fresh(some_cells<double, false>(random, 5000));
  std::vector<Tree<double, false>> trees(kRows, fresh);
  VectorDraw::Step step(fresh.shape, kRows);
  on_every_cpu<WholeStep<VectorDraw>>(
      [&](const auto& run) {
        for (int r = 0; r < kRows; ++r) {
          trees[size_t(r)] = fresh;
          step.tree[r] = trees[size_t(r)].sums.data();
        }
        run();
        for (int r = 0; r < kRows; ++r) {
          Tree<double, false> tree = fresh;
          ScalarDraw::Step one(fresh.shape, 1);
          one.tree[0] = tree.sums.data();
          WholeStep<ScalarDraw>::run(&one, 100 + uint64_t(r), 40);
          CHECK(same_bits(step.uniform[r][0], one.uniform[0][0]) && same_bits(step.wait[r][0], one.wait[0][0]));
          CHECK(same_bits(step.target[r], one.target[0]) && same_bits(step.mass[r], one.mass[0]));
          CHECK(trees[size_t(r)].sums == tree.sums);
        }
      },
      &step, uint64_t(100), uint64_t(40));
}

// Rows drawn together by vectors, and each alone by the scalar code.
template <typename T, bool Logits>
void test_draws(std::mt19937_64& random) {
  using P = std::conditional_t<std::is_same_v<T, double>, double, float>;
  for (const int64_t cells : {1, 5, 32, 33, 1000, 32 * 32 * 2 + 9, 40000}) {
    constexpr int kRows = VectorDraw::kTogether;
    const int64_t n = std::min<int64_t>(cells + 1, 70);  // one more than there is, where there is little
    std::vector<std::vector<T>> data;
    const size_t count = size_t(n);
    std::vector<int64_t> indices(count), drawn(1);
    std::vector<P> probabilities(count);
    std::vector<std::vector<int64_t>> expected_indices;
    std::vector<std::vector<P>> expected_probabilities;
    std::vector<double> expected_threshold;
    std::vector<int64_t> expected_drawn;
    for (int r = 0; r < kRows; ++r) {
      data.push_back(some_cells<T, Logits>(random, cells));
      Tree<T, Logits> tree(data.back());
      auto state = tree.template state<ScalarDraw>();
      double threshold;
      draw_rows(&state, 1, 77, 1000 + uint64_t(r), n, false, indices.data(), probabilities.data(), &threshold,
                drawn.data());
      expected_indices.push_back(indices);
      expected_probabilities.push_back(probabilities);
      expected_threshold.push_back(threshold);
      expected_drawn.push_back(drawn[0]);
    }
    for (int rows = 1; rows <= kRows; rows += kRows - 1) {
      std::vector<Tree<T, Logits>> trees;
      for (int r = 0; r < rows; ++r) trees.emplace_back(data[size_t(r)]);
      const std::vector<Tree<T, Logits>> fresh = trees;
      CpuRowState<T, Logits> states[kRows];
      indices.assign(count * kRows, -1);
      probabilities.assign(count * kRows, P(-1));
      double threshold[kRows];
      int64_t counts[kRows];
      on_every_cpu<DrawRows<T, Logits, P>>(
          [&](const auto& run) {
            for (int r = 0; r < rows; ++r) {
              const size_t row = size_t(r);
              std::copy(fresh[row].sums.begin(), fresh[row].sums.end(), trees[row].sums.begin());
              std::fill(trees[row].taken.begin(), trees[row].taken.end(), 0u);
              states[r] = trees[row].template state<VectorDraw>();
            }
            run();
            for (int r = 0; r < rows; ++r) {
              const size_t row = size_t(r);
              CHECK(counts[r] == expected_drawn[row] && same_bits(threshold[r], expected_threshold[row]));
              for (size_t i = 0; i < size_t(counts[r]); ++i) {
                CHECK(indices[row * count + i] == expected_indices[row][i]);
                CHECK(same_bits(probabilities[row * count + i], expected_probabilities[row][i]));
              }
            }
          },
          &states[0], rows, uint64_t(77), uint64_t(1000), n, false, indices.data(), probabilities.data(), &threshold[0],
          &counts[0]);
    }
  }
}

// Every entry of a node is chosen for exactly the targets that fall into it, and none without mass ever.
void test_descent(std::mt19937_64& random) {
  for (int round = 0; round < 200; ++round) {
    double entry[kFan];
    for (double& x : entry) x = random() % 3 ? double(random() % 1000) * 0.25 : 0.0;
    entry[random() % kFan] = 8.0;
    const Node node = Node::load(entry);
    const double mass = node.sum();
    double before = 0.0;  // in the order of lanes; quarters are exact
    for (int l = 0; l < kLanes; ++l) {
      for (int e = l; e < kFan; before += entry[e], e += kLanes) {
        if (entry[e] == 0.0) continue;
        for (const double inside : {0.0, 0.125, entry[e] - 0.125}) {
          double target = before + inside;
          CHECK(node.descend(target) == e && target == inside);
        }
      }
    }
    CHECK(before == mass);
    double past = mass * 1.001;
    CHECK(entry[node.descend(past)] > 0.0);
  }
}

template <typename T>
void test_softmax_gradient(std::mt19937_64& random) {
  const std::vector<T> x = some_cells<T, true>(random, 1003);
  std::vector<T> out(x.size());
  for (const double factor : {-0.3, 1e300, -1e300, double(NAN)}) {
    on_every_cpu<SoftmaxGradient<T>>(
        [&](const auto& run) {
          std::fill(out.begin(), out.end(), store<T>(7.0));
          run();
          for (size_t i = 0; i < x.size(); ++i) {
            const T expected = store_clamped<T>(factor * portable_exp(double(load(x[i])) - 1.5));
            const bool nan = std::isnan(load(expected)) && std::isnan(load(out[i]));
            CHECK(nan || memcmp(&out[i], &expected, sizeof(T)) == 0);
          }
        },
        x.data(), int64_t(0), int64_t(x.size()), factor, 1.5, out.data());
  }
}

struct Exponentials {
  ATS_INLINE static void run(const double* x, int64_t count, double* y) {
    for (int64_t i = 0; i < count; i += kLanes) store_lanes(y + i, portable_exp<Doubles, Words>(load_lanes(x + i)));
  }
};

struct Logarithms {
  ATS_INLINE static void run(const double* x, int64_t count, double* y) {
    for (int64_t i = 0; i < count; i += kLanes) store_lanes(y + i, portable_log<Doubles, Words>(load_lanes(x + i)));
  }
};

void test_exp_log(std::mt19937_64& random) {
  std::uniform_real_distribution<double> any(-800.0, 709.0);
  std::vector<double> x = {0.0, -0.0, -INFINITY, double(NAN), 709.0, -708.0, -708.1, -1e300};
  while (x.size() < 8000) x.push_back(x.size() % 3 ? any(random) : any(random) * 1e-3);
  std::vector<double> y(x.size());
  on_every_cpu<Exponentials>(
      [&](const auto& run) {
        run();
        for (size_t i = 0; i < x.size(); ++i)
          CHECK(same_bits(y[i], portable_exp(x[i])) || (std::isnan(y[i]) && std::isnan(portable_exp(x[i]))));
      },
      static_cast<const double*>(x.data()), int64_t(x.size()), y.data());
  for (double& value : x) value = std::isfinite(value) ? std::exp(value) + 5e-324 : 1.0;
  on_every_cpu<Logarithms>(
      [&](const auto& run) {
        run();
        for (size_t i = 0; i < x.size(); ++i) CHECK(same_bits(y[i], portable_log(x[i])));
      },
      static_cast<const double*>(x.data()), int64_t(x.size()), y.data());
}

struct FloatExponentials {
  ATS_INLINE static void run(const float* x, int64_t count, float reference, double* y) {
    for (int64_t i = 0; i < count; i += 2 * kLanes) {
      const TwoDoubles two = float_exp(load_floats(x + i), reference);
      store_lanes(y + i, two.low);
      store_lanes(y + i + kLanes, two.high);
    }
  }
};

void test_float_exp(std::mt19937_64& random) {
  for (const float reference : {0.0f, 1.3f, 1e4f, -INFINITY, INFINITY, float(NAN)}) {
    std::uniform_real_distribution<float> any(-720.0f, 0.0f);
    std::vector<float> x = {reference, -INFINITY, float(NAN), -float(NAN), -708.0f, -708.1f, -3e38f, 3e38f};
    while (x.size() < 4096) x.push_back((std::isfinite(reference) ? reference : 0.0f) + any(random));
    std::vector<double> y(x.size());
    on_every_cpu<FloatExponentials>(
        [&](const auto& run) {
          run();
          for (size_t i = 0; i < x.size(); ++i) {
            if (x[i] > reference) continue;  // means nothing
            const double expected = float_exp(x[i], reference);
            CHECK(same_bits(y[i], expected) || (std::isnan(y[i]) && std::isnan(expected)));
          }
        },
        static_cast<const float*>(x.data()), int64_t(x.size()), reference, y.data());
  }
}

template <typename T>
void test_dtype(std::mt19937_64& random) {
  test_building<T, false>(random);
  test_building<T, true>(random);
  test_draws<T, false>(random);
  test_draws<T, true>(random);
  test_softmax_gradient<T>(random);
}

int main() {
  std::mt19937_64 random(7);
  test_dtype<float>(random);
  test_dtype<double>(random);
  test_dtype<float16>(random);
  test_dtype<bfloat16>(random);
  test_steps(random);
  test_descent(random);
  test_exp_log(random);
  test_float_exp(random);
  return finish();
}
