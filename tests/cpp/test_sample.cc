// sample and topk through the C API: the law, the edges, and the same bits however the work is split.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "ats/ats.hpp"
#include "half.h"

namespace {

struct Draw {
  std::vector<int64_t> indices;
  std::vector<double> probabilities, threshold, log_mass;
  int status = ATS_OK;
};

template <typename T>
Draw draw(const std::vector<T>& weights, int64_t rows, int64_t n, int64_t seed, int64_t offset = 0,
          bool replace = false, bool logits = false, const ats_executor* executor = nullptr, bool top = false) {
  using P = std::conditional_t<std::is_same_v<T, double>, double, float>;
  const int64_t cells = rows ? int64_t(weights.size()) / rows : 3;
  const ats_tensor attention = ats::view(weights.data(), {rows, cells});
  const int64_t key[2] = {seed, offset};
  const ats_tensor rng = ats::view(key, {2});
  const ats_sample_options options{n, replace, logits};
  Draw out;
  std::vector<P> p(size_t(rows * n)), t(static_cast<size_t>(rows));
  out.indices.resize(size_t(rows * n));
  out.log_mass.resize(size_t(rows));
  size_t bytes = 0;
  CHECK_OK((top ? ats_topk_workspace : ats_sample_workspace)(&attention, &options, &bytes));
  std::vector<double> workspace(bytes / sizeof(double) + 1, std::numeric_limits<double>::quiet_NaN());
  const ats_tensor indices = ats::view(out.indices.data(), {rows, n}), probs = ats::view(p.data(), {rows, n});
  const ats_tensor times = ats::view(t.data(), {rows}), mass = ats::view(out.log_mass.data(), {rows});
  out.status =
      top ? ats_topk(&attention, &options, &indices, &probs, &times, &mass, workspace.data(), executor)
          : ats_sample(&attention, &rng, &options, &indices, &probs, &times, &mass, workspace.data(), executor);
  out.probabilities.assign(p.begin(), p.end());
  out.threshold.assign(t.begin(), t.end());
  return out;
}

template <typename T>
std::vector<T> repeat(const std::vector<T>& row, int64_t rows) {
  std::vector<T> all;
  for (int64_t r = 0; r < rows; ++r) all.insert(all.end(), row.begin(), row.end());
  return all;
}

// Chi-square of all ordered draws of 3 of 4 unequal cells (and one of weight 0); 23 degrees of freedom, 1e-4: 56.4.
void test_law() {
  const std::vector<double> weights{0.1, 3.0, 0.0, 1.0, 0.5};
  const double total = 4.6;
  constexpr int64_t kRows = 200000;
  for (const bool logits : {false, true}) {
    std::vector<double> input = weights;
    if (logits)
      for (double& x : input) x = std::log(x) + 123.0;
    const Draw out = draw(repeat(input, kRows), kRows, 3, 1, 0, false, logits);
    CHECK(out.status == ATS_OK);
    std::map<std::vector<int64_t>, int64_t> counts;
    for (int64_t r = 0; r < kRows; ++r) ++counts[{out.indices.begin() + r * 3, out.indices.begin() + r * 3 + 3}];
    double chi_square = 0.0;
    int64_t seen = 0;
    for (const auto& [cells, count] : counts) {
      double p = 1.0, left = total;
      for (const int64_t cell : cells) p *= weights[size_t(cell)] / left, left -= weights[size_t(cell)];
      CHECK(p > 0.0);
      chi_square += std::pow(double(count) - p * kRows, 2) / (p * kRows);
      seen += count;
    }
    std::printf("chi-square %.1f over %zu ordered draws\n", chi_square, counts.size());
    CHECK(counts.size() == 24 && seen == kRows && chi_square < 56.4);
  }
}

// n = K draws every cell once, whatever side of a group's or a level's border K lies on.
void test_exhaustion() {
  std::mt19937_64 random(5);
  for (const int64_t cells : {1, 2, 31, 32, 33, 63, 64, 65, 1023, 1024, 1025, 32767, 32768, 32769, 70001}) {
    std::vector<float> weights(static_cast<size_t>(cells));
    for (float& w : weights) w = float(random() % 1000 + 1);
    const Draw out = draw(weights, 1, cells, 3);
    CHECK(out.status == ATS_OK);
    std::vector<int64_t> sorted = out.indices;
    std::sort(sorted.begin(), sorted.end());
    std::vector<int64_t> all(static_cast<size_t>(cells));
    std::iota(all.begin(), all.end(), 0);
    CHECK(sorted == all && std::isinf(out.threshold[0]));
    const double sum = std::accumulate(out.probabilities.begin(), out.probabilities.end(), 0.0);
    CHECK(std::fabs(sum - 1.0) < 1e-5);
    CHECK(std::fabs(out.log_mass[0] - std::log(std::accumulate(weights.begin(), weights.end(), 0.0))) < 1e-12);
  }
}

void test_same_bits() {
  std::mt19937_64 random(11);
  for (const bool logits : {false, true}) {
    const int64_t rows = 5, cells = 80000, n = 50;
    std::vector<float> weights(size_t(rows * cells));
    for (float& w : weights) w = float(random() % 100000) * 1e-4f;
    CHECK_OK(ats_set_num_threads(4));
    const Draw serial = draw(weights, rows, n, 42, 100, false, logits);
    const Draw pooled = draw(weights, rows, n, 42, 100, false, logits, ats_thread_pool());
    CHECK(serial.indices == pooled.indices && serial.threshold == pooled.threshold);
    CHECK(serial.log_mass == pooled.log_mass);
    for (int64_t r = 0; r < rows; ++r) {
      const std::vector<float> row(weights.begin() + r * cells, weights.begin() + (r + 1) * cells);
      const Draw alone = draw(row, 1, n, 42, 100 + r, false, logits);
      CHECK(std::equal(alone.indices.begin(), alone.indices.end(), serial.indices.begin() + r * n));
      CHECK(alone.threshold[0] == serial.threshold[size_t(r)]);
    }
  }
  // The row number wraps around.
  const std::vector<double> four = repeat(std::vector<double>(40, 1.0), 2);
  const Draw wrapped = draw(four, 2, 10, 1, std::numeric_limits<int64_t>::max());
  const Draw second = draw(std::vector<double>(40, 1.0), 1, 10, 1, std::numeric_limits<int64_t>::min());
  CHECK(std::equal(second.indices.begin(), second.indices.end(), wrapped.indices.begin() + 10));
}

// What is left is exact however small it is beside what was taken.
template <typename T>
void test_range(T large, T small, bool logits) {
  constexpr int64_t kRows = 4000;
  const Draw out = draw(repeat(std::vector<T>{small, large, small, small}, kRows), kRows, 4, 9, 0, false, logits);
  CHECK(out.status == ATS_OK);
  int64_t counts[4] = {};
  bool first = true;
  for (int64_t r = 0; r < kRows; ++r) {
    first &= out.indices[size_t(r * 4)] == 1;
    ++counts[out.indices[size_t(r * 4 + 1)]];
  }
  CHECK(first);
  for (const int cell : {0, 2, 3})
    CHECK(std::fabs(double(counts[cell]) - kRows / 3.0) < 5 * std::sqrt(kRows * 2 / 9.0));
}

void test_ranges() {
  test_range<float>(1.0f, 1e-30f, false);
  test_range<float>(3e38f, 1e-45f, false);
  test_range<double>(1e300, 1e-300, false);
  test_range<double>(1.7e308, 5e-324, false);
  test_range<double>(1e4, -1e4, true);
  test_range<float>(1e4f, -1e4f, true);
  test_range<double>(1e300, -1e300, true);
  // The sum overflows, the law does not mind.
  const Draw huge = draw(std::vector<double>(5000, 1.7e308), 1, 5000, 4);
  CHECK(huge.status == ATS_OK && std::isfinite(huge.log_mass[0]) && std::fabs(huge.probabilities[7] * 5000 - 1) < 1e-9);
}

void test_errors() {
  const double inf = std::numeric_limits<double>::infinity(), nan = std::nan("");
  const auto fails = [](const Draw& out, const char* words) {
    return out.status == ATS_INVALID_ARGUMENT && std::strstr(ats_last_error(), words) != nullptr;
  };
  for (const bool top : {false, true}) {
    const auto one = [top](std::vector<double> w, int64_t n, bool logits = false) {
      return draw(w, 1, n, 0, 0, false, logits, nullptr, top);
    };
    CHECK(fails(one({1, -1, 1}, 1), "-1 at cell 1"));
    CHECK(fails(one({1, 1, nan}, 1), "nan at cell 2"));
    CHECK(fails(one({inf, 1, 1}, 1), "inf at cell 0"));
    CHECK(fails(one({1, -inf, 1}, 1), "-inf at cell 1"));
    CHECK(fails(one({0, 0, 0}, 1), "no cell of positive weight"));
    CHECK(fails(one({1, inf, 1}, 1, true), "inf at cell 1"));
    CHECK(fails(one({1, nan, 1}, 1, true), "nan at cell 1"));
    CHECK(fails(one({-inf, -inf, -inf}, 1, true), "no cell of positive weight"));
    CHECK(fails(one({0.0, -0.0, 0.0}, 1), "no cell of positive weight"));
  }
  CHECK(fails(draw(std::vector<double>{1, 0, 2, 1, 1, 1}, 2, 3, 0), "2 cells of positive weight in row 0"));
  CHECK(fails(draw(std::vector<double>{0, -inf, 2}, 1, 3, 0, 0, false, true), "2 cells"));
  CHECK(draw(std::vector<double>{}, 0, 2, 0).status == ATS_OK);

  // A row without cells, and sizes that are not known yet.
  double nothing = 0.0;
  const ats_tensor empty = ats::view(&nothing, {2, 0});
  const ats_sample_options with_replacement{1, 1, 1};
  ats_tensor shapes[4];
  CHECK(ats_sample_shape(&empty, &with_replacement, &shapes[0], &shapes[1], &shapes[2], &shapes[3]) ==
        ATS_INVALID_ARGUMENT);
  ats_tensor described = ats::view(&nothing, {4, 1, 1000});
  described.shape[1] = -1;
  size_t bytes = 0;
  const ats_sample_options one{1, 0, 0};
  CHECK(ats_sample_shape(&described, &one, &shapes[0], &shapes[1], &shapes[2], &shapes[3]) == ATS_OK);
  CHECK(shapes[0].shape[0] == 4 && shapes[0].shape[1] == 1);
  CHECK(ats_sample_workspace(&described, &one, &bytes) == ATS_INVALID_ARGUMENT);
  CHECK(ats_topk_workspace(&described, &one, &bytes) == ATS_INVALID_ARGUMENT);
  CHECK(ats_sample_workspace(&described, &one, nullptr) == ATS_INVALID_ARGUMENT);
}

// A cell drawn often gets the sum of its draws, not what is left of it when every addition is rounded to a half.
void test_backward_of_repeated_cells() {
  constexpr int64_t kDraws = 1000;
  const uint16_t weights[] = {0x3f80, 0x3f80};  // bfloat16 ones
  ats_tensor attention = ats::view(weights, {1, 2});
  attention.dtype = ATS_BFLOAT16;
  const std::vector<int64_t> cells(kDraws, 0);
  const std::vector<float> halves(kDraws, 0.5f), ones(kDraws, 1.0f);
  const double mass = std::log(2.0);
  uint16_t gradient[2];
  const ats_tensor grad = ats::view(ones.data(), {1, kDraws}), probabilities = ats::view(halves.data(), {1, kDraws});
  const ats_tensor indices = ats::view(cells.data(), {1, kDraws}), log_mass = ats::view(&mass, {1});
  ats_tensor d_attention = ats::view(gradient, {1, 2});
  d_attention.dtype = ATS_BFLOAT16;
  CHECK_OK(ats_sample_backward(&grad, &attention, &indices, &probabilities, &log_mass, 0, &d_attention, nullptr));
  CHECK(ats::to_float(ats::bfloat16{gradient[0]}) == 250.0f && ats::to_float(ats::bfloat16{gradient[1]}) == -250.0f);
  // A total weight whose inverse is out of range, and no gradient: zeros, not NaN.
  const double tiny[] = {1e-310, 1e-310};
  const std::vector<int64_t> cell{0};
  const double half = 0.5, zero = 0.0, log_tiny = std::log(2e-310);
  double result[2];
  const ats_tensor small = ats::view(tiny, {1, 2}), i = ats::view(cell.data(), {1, 1}), p = ats::view(&half, {1, 1});
  const ats_tensor g = ats::view(&zero, {1, 1}), m = ats::view(&log_tiny, {1}), d = ats::view(result, {1, 2});
  CHECK_OK(ats_sample_backward(&g, &small, &i, &p, &m, 0, &d, nullptr));
  CHECK(result[0] == 0.0 && result[1] == 0.0);
}

void test_replace_and_topk() {
  constexpr int64_t kDraws = 90000;
  const Draw many = draw(std::vector<float>{1, 0, 2, 6}, 1, kDraws, 8, 0, true);
  int64_t counts[4] = {};
  for (const int64_t cell : many.indices) ++counts[cell];
  CHECK(counts[1] == 0 && std::fabs(double(counts[0]) - 1e4) < 500 && std::fabs(double(counts[2]) - 2e4) < 700);
  CHECK(std::isinf(many.threshold[0]));

  std::mt19937_64 random(3);
  for (const int64_t cells : {1, 5, 32, 100, 40000}) {
    std::vector<float> weights(static_cast<size_t>(cells));
    for (float& w : weights) w = float(random() % 50);  // many ties
    weights[0] += 1;
    const int64_t n = std::min<int64_t>(cells, 37);
    const Draw top = draw(weights, 1, n, 0, 0, false, false, nullptr, true);
    std::vector<int64_t> order(static_cast<size_t>(cells));
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t a, int64_t b) { return weights[size_t(a)] > weights[size_t(b)]; });
    CHECK(top.status == ATS_OK && std::equal(top.indices.begin(), top.indices.end(), order.begin()));
  }
}

}  // namespace

int main() {
  test_law();
  test_exhaustion();
  test_same_bits();
  test_ranges();
  test_errors();
  test_backward_of_repeated_cells();
  test_replace_and_topk();
  return finish();
}
