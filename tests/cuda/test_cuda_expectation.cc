// expectation, its backward and the estimators' arrays on a GPU give the bits that they give on the CPU.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "../cpp/check.h"
#include "both.h"
#include "device.h"

namespace {

struct Problem {
  int estimator;
  int64_t batch, n;
  Shape trailing;
  int features, attention;  // dtypes
  int layout = kContiguous;
  bool weighted = false;
};

// Rows of attention of every kind, one after the other. A mass of just 1 is a whole map that was sampled.
std::vector<double> masses(const Problem& p, std::mt19937_64& random) {
  std::exponential_distribution<double> share;
  std::vector<double> all;
  for (int64_t b = 0; b < p.batch; ++b) {
    std::vector<double> a(static_cast<size_t>(p.n));
    const int kind = int(b % 7);
    double sum = 0.0;
    for (size_t i = 0; i < a.size(); ++i) {
      a[i] = kind == 2 || kind == 4 ? 1.0 : share(random);
      if (kind == 1 && i % 3 == 1) a[i] = 0.0;
      if (kind == 3 && i % 2 == 1) a[i] *= 1e-30;
      sum += a[i];
    }
    const double mass[] = {0.5, 0.7, 1.0, 0.3, 0.9, 1.0 - 1e-12, 1e-9};
    for (double& x : a) x = kind == 2 ? 1.0 / double(p.n) : x * (mass[kind] / sum);
    all.insert(all.end(), a.begin(), a.end());
  }
  return all;
}

struct Tensors {
  Problem p;
  Both attention, threshold, weights, features, grad, expected, d_features, d_attention, c, m;

  static Shape joined(Shape first, const Shape& more) {
    first.insert(first.end(), more.begin(), more.end());
    return first;
  }
  explicit Tensors(const Problem& problem, bool arrays = true)
      : p(problem),
        attention(p.attention, {p.batch, p.n}, 2, p.layout),
        threshold(p.attention, {p.batch}, 1, p.layout),
        weights(p.attention, {p.n}, 1, p.layout),
        features(p.features, joined({p.batch, p.n}, p.trailing), 2, p.layout),
        grad(p.features, joined({p.batch}, p.trailing), 1, p.layout),
        expected(p.features, joined({p.batch}, p.trailing), 1, p.layout),
        d_features(p.features, joined({p.batch, p.n}, p.trailing), 2, p.layout),
        d_attention(p.attention, {p.batch, p.n}, 2, p.layout),
        c(p.attention, {p.batch, p.n}, 0, kContiguous),
        m(p.attention, {p.batch, arrays ? p.n : 0, p.n}, 0, kContiguous) {
    std::mt19937_64 random(3);
    std::normal_distribution<double> normal;
    const std::vector<double> a = masses(p, random);
    attention.fill([&](int64_t i) { return a[size_t(i)]; });
    threshold.fill([&](int64_t i) { return i % 5 == 4 ? INFINITY : 0.5 + double(i) * 3.0; });
    weights.fill([&](int64_t i) { return 2.0 * double(i + 1) / double(p.n * (p.n + 1)); });
    features.fill([&](int64_t) { return normal(random); });
    grad.fill([&](int64_t) { return normal(random); });
  }

  // What one device makes of them.
  template <typename Memory>
  void forward(ats_tensor Both::* side) {
    size_t bytes = 0;
    CHECK_OK(ats_expectation_workspace(&(attention.*side), &bytes));
    const Memory memory((bytes + 7) / 8);
    CHECK_OK(ats_expectation(&(features.*side), &(attention.*side), needed_threshold(side), given_weights(side),
                             p.estimator, &(expected.*side), start(memory), nullptr));
    CHECK(cudaDeviceSynchronize() == cudaSuccess);
  }
  template <typename Memory>
  void run(ats_tensor Both::* side) {
    forward<Memory>(side);
    const ats_tensor *a = &(attention.*side), *t = needed_threshold(side), *w = given_weights(side);
    size_t bytes = 0;
    CHECK_OK(ats_expectation_backward_workspace(a, &bytes));
    const Memory memory((bytes + 7) / 8);
    CHECK_OK(ats_expectation_backward(&(grad.*side), &(features.*side), a, t, w, p.estimator, &(d_features.*side),
                                      &(d_attention.*side), start(memory), nullptr));
    CHECK_OK(ats_estimator_arrays_workspace(a, &bytes));
    const Memory more((bytes + 7) / 8);
    CHECK_OK(ats_estimator_arrays(a, t, w, p.estimator, &(c.*side), &(m.*side), start(more), nullptr));
    CHECK(cudaDeviceSynchronize() == cudaSuccess);
  }
  const ats_tensor* needed_threshold(ats_tensor Both::* side) const {
    return p.estimator == ATS_HORVITZ_THOMPSON ? &(threshold.*side) : nullptr;
  }
  const ats_tensor* given_weights(ats_tensor Both::* side) const { return p.weighted ? &(weights.*side) : nullptr; }
  static void* start(const std::vector<double>& memory) { return const_cast<double*>(memory.data()); }
  static void* start(const OnDevice<double>& memory) { return memory.data(); }
  void run_both() {
    run<std::vector<double>>(&Both::cpu);
    run<OnDevice<double>>(&Both::gpu);
  }
};

void compare(const Problem& p) {
  Tensors t(p);
  t.run_both();
  const int before = failures;
  CHECK(t.expected.same(p.estimator, 10.0));
  CHECK(t.d_features.same(p.estimator));
  CHECK(t.d_attention.same(p.estimator));
  CHECK(t.c.same(p.estimator));
  CHECK(t.m.same(p.estimator));
  if (failures > before)
    std::printf("estimator %d, B %d, N %d, dtypes %d %d, layout %d\n", p.estimator, int(p.batch), int(p.n), p.features,
                p.attention, p.layout);
}

const int kFeatureTypes[] = {ATS_FLOAT32, ATS_BFLOAT16, ATS_FLOAT64, ATS_FLOAT16};
const int kEstimators[] = {ATS_IID, ATS_DES_RAJ, ATS_MURTHY, ATS_HORVITZ_THOMPSON, ATS_NORMALIZED};

void test_estimators() {
  int turn = 0;
  for (const int estimator : kEstimators)
    for (const bool weighted : {false, true}) {
      if (weighted && estimator != ATS_DES_RAJ) continue;
      for (const int64_t n : {1, 2, 7, 8, 9, 33}) {
        const int attention = ++turn % 2 ? ATS_FLOAT32 : ATS_FLOAT64;
        compare({estimator, 7, n, {3}, kFeatureTypes[turn % 4], attention, turn % kLayouts, weighted});
      }
      compare({estimator, 0, 3, {4}, ATS_FLOAT32, ATS_FLOAT32, kContiguous, weighted});
      compare({estimator, 1, 5, {4}, ATS_FLOAT32, ATS_FLOAT64, kContiguous, weighted});
      compare({estimator, 2, 300, {2}, ATS_FLOAT32, ATS_FLOAT32, kContiguous, weighted});
      compare(
          {estimator, 129, 3, {1}, ATS_FLOAT32, ATS_FLOAT32, kContiguous, weighted});  // more than are taken at once
    }
}

void test_features() {
  int turn = 0;
  const std::vector<Shape> shapes{{}, {0}, {1}, {3}, {15}, {16}, {17}, {512}, {2, 3, 4}, {4, 1, 8}, {3, 0}, {40}};
  for (const int dtype : kFeatureTypes)
    for (const Shape& shape : shapes)
      for (const int layout : {int(kContiguous), int(kWideGaps), ++turn % kLayouts})
        compare({ATS_NORMALIZED, 3, 5, shape, dtype, layout % 2 ? ATS_FLOAT32 : ATS_FLOAT64, layout});
  for (const int dtype : kFeatureTypes) {
    compare({ATS_IID, 129, 10, {48}, dtype, ATS_FLOAT32});
    compare({ATS_IID, 5, 33, {130}, dtype, ATS_FLOAT32});
  }
}

// Rows that the estimator does not take are NaN, and the others are what they are without them.
void test_bad_rows() {
  constexpr int64_t batch = 9, n = 4;
  for (const int estimator : kEstimators)
    for (const int dtype : {ATS_FLOAT32, ATS_FLOAT64}) {
      Tensors t({estimator, batch, n, {5}, dtype, dtype});
      t.run<std::vector<double>>(&Both::cpu);
      const bool probabilities = estimator != ATS_NORMALIZED;
      const std::vector<std::vector<double>> bad{
          {0.1, NAN, 0.1, 0.1},
          {0.1, 0.1, 0.1, -1e-300},
          {INFINITY, 0.1, 0.1, 0.1},
          probabilities ? std::vector<double>{1.02, 0, 0, 0} : std::vector<double>(n, 0.0),
          estimator == ATS_IID || !probabilities ? std::vector<double>(n, -1.0) : std::vector<double>(n, 0.26)};
      const auto put = [&](const Both& to, int64_t i, double value) {
        if (dtype == ATS_FLOAT64) static_cast<double*>(to.gpu.data)[i] = value;
        else static_cast<float*>(to.gpu.data)[i] = value < 0 ? -1e-30f * (value < -0.5) - 1e-38f : float(value);
      };
      std::vector<bool> is_bad(batch);
      for (size_t k = 0; k < bad.size(); ++k) {
        const int64_t b = int64_t(k) + int64_t(k > 1);  // 0, 1, 3, 4, 5
        is_bad[size_t(b)] = true;
        for (int64_t i = 0; i < n; ++i) put(t.attention, b * n + i, bad[k][size_t(i)]);
      }
      if (estimator == ATS_HORVITZ_THOMPSON) {
        put(t.threshold, 6, 0.0);
        put(t.threshold, 7, NAN);
        is_bad[6] = is_bad[7] = true;
      }
      t.run<OnDevice<double>>(&Both::gpu);
      for (int64_t b = 0; b < batch; ++b)
        for (const Both* result : {&t.expected, &t.d_features, &t.d_attention, &t.c, &t.m}) {
#if !defined(ATS_EMULATION)
          if (estimator == ATS_HORVITZ_THOMPSON && !is_bad[size_t(b)]) continue;  // not the same bits
#endif
          CHECK(result->same_row(b, batch, is_bad[size_t(b)]));
        }
    }
}

// More rows than have scratch memory: N is too large for shared memory.
void test_many_rows() {
  const Problem p{ATS_DES_RAJ, 514, 2100, {1}, ATS_FLOAT32, ATS_FLOAT32};
  Tensors t(p, false);
  t.forward<std::vector<double>>(&Both::cpu);
  t.forward<OnDevice<double>>(&Both::gpu);
  CHECK(t.expected.same(p.estimator));
}

void test_sizes() {
  for (const auto& [batch, n] : {std::pair<int64_t, int64_t>{int64_t(1) << 31, int64_t(1) << 31},
                                 {1, int64_t(1) << 58},
                                 {int64_t(1) << 58, 1},
                                 {int64_t(1) << 10, int64_t(1) << 47}}) {
    ats_tensor attention = on_gpu(ats::view(static_cast<float*>(nullptr), {batch, n}));
    size_t bytes = 0;
    CHECK(ats_expectation_workspace(&attention, &bytes) == ATS_INVALID_ARGUMENT);
    CHECK(std::strcmp(ats_last_error(), "expectation: attention has too many elements for 64 bits") == 0);
    CHECK(ats_expectation_backward_workspace(&attention, &bytes) == ATS_INVALID_ARGUMENT);
    CHECK(ats_estimator_arrays_workspace(&attention, &bytes) == ATS_INVALID_ARGUMENT);
    CHECK(std::strcmp(ats_last_error(), "estimator_arrays: attention has too many elements for 64 bits") == 0);
  }
  const ats_tensor attention = on_gpu(ats::view(static_cast<float*>(nullptr), {128, 10}));
  size_t bytes = 0;
  CHECK_OK(ats_expectation_workspace(&attention, &bytes));
  CHECK(bytes == 2 * 8 * 128 * 10);  // shared memory does for the rest
}

}  // namespace

int main() {
  in_every_order([] {
    test_estimators();
    test_features();
    test_bad_rows();
  });
  test_many_rows();
  test_sizes();
  return finish();
}
