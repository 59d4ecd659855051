// Every ordered draw, enumerated: the estimators' averages are the expectation and its gradient.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "check.h"
#include "ats/ats.hpp"

namespace {

const std::vector<double> kAttention{0.35, 0.05, 0.4, 0.15, 0.05};
const std::vector<double> kValues{1.0, -2.0, 0.5, 3.0, -1.0};
constexpr int kCells = 5;

struct Result {
  double expected;
  std::vector<double> d_features, d_attention;
};

Result estimate(const std::vector<double>& a, std::vector<double> f, int estimator, const ats_executor* executor) {
  const int64_t n = int64_t(a.size());
  const ats_tensor attention = ats::view(a.data(), {1, n}), features = ats::view(f.data(), {1, n, 1});
  Result result{0.0, std::vector<double>(a.size()), std::vector<double>(a.size())};
  const double one = 1.0;
  const ats_tensor grad = ats::view(&one, {1, 1}), expected = ats::view(&result.expected, {1, 1});
  const ats_tensor df = ats::view(result.d_features.data(), {1, n, 1}),
                   da = ats::view(result.d_attention.data(), {1, n});
  size_t bytes = 0;
  CHECK_OK(ats_expectation_backward_workspace(&attention, &bytes));
  std::vector<double> workspace(bytes / sizeof(double) + 1);
  CHECK_OK(ats_expectation(&features, &attention, nullptr, nullptr, estimator, &expected, workspace.data(), executor));
  CHECK_OK(ats_expectation_backward(&grad, &features, &attention, nullptr, nullptr, estimator, &df, &da,
                                    workspace.data(), executor));

  // M h is the backward pass.
  std::vector<double> c(a.size()), m(a.size() * a.size());
  const ats_tensor c_view = ats::view(c.data(), {1, n}), m_view = ats::view(m.data(), {1, n, n});
  CHECK_OK(ats_estimator_arrays_workspace(&attention, &bytes));
  workspace.resize(bytes / sizeof(double) + 1);
  CHECK_OK(ats_estimator_arrays(&attention, nullptr, nullptr, estimator, &c_view, &m_view, workspace.data(), executor));
  for (size_t i = 0; i < a.size(); ++i) {
    if (a[i] == 0.0) continue;  // that row of M is at the end of double's range
    double sum = 0.0;
    for (size_t j = 0; j < a.size(); ++j) sum += m[i * a.size() + j] * f[j];
    CHECK(std::fabs(sum - result.d_attention[i]) < 1e-9 * (1.0 + std::fabs(sum)));
    CHECK(std::fabs(c[i] - result.d_features[i]) < 1e-12);
  }
  return result;
}

void test_unbiased(int estimator, size_t n, bool replace) {
  double forward = 0.0;
  std::vector<double> to_values(kCells, 0.0), to_logits(kCells, 0.0);
  std::vector<size_t> draw(n, 0);
  const auto visit = [&] {
    std::vector<double> a, f;
    double p = 1.0, left = 1.0;
    for (size_t i = 0; i < n; ++i) {
      if (!replace && std::count(draw.begin(), draw.begin() + std::ptrdiff_t(i), draw[i])) return;
      a.push_back(kAttention[draw[i]]);
      f.push_back(kValues[draw[i]]);
      p *= a.back() / left;
      if (!replace) left -= a.back();
    }
    const Result one = estimate(a, f, estimator, nullptr);
    forward += p * one.expected;
    for (size_t i = 0; i < n; ++i) {
      to_values[draw[i]] += p * one.d_features[i];
      for (size_t k = 0; k < kCells; ++k)  // d a_q / d logit_k = a_q ([q = k] - a_k)
        to_logits[k] += p * one.d_attention[i] * a[i] * (double(draw[i] == k) - kAttention[k]);
    }
  };
  for (;;) {
    visit();
    size_t i = 0;
    while (i < n && ++draw[i] == kCells) draw[i++] = 0;
    if (i == n) break;
  }
  const double exact = std::inner_product(kAttention.begin(), kAttention.end(), kValues.begin(), 0.0);
  CHECK(std::fabs(forward - exact) < 1e-10);
  for (size_t k = 0; k < kCells; ++k) {
    CHECK(std::fabs(to_values[k] - kAttention[k]) < 1e-10);
    CHECK(std::fabs(to_logits[k] - kAttention[k] * (kValues[k] - exact)) < 1e-10);
  }
}

void test_refusals() {
  const double f[] = {1.0, 2.0, 3.0};
  const ats_tensor features = ats::view(f, {1, 3, 1});
  double out = 0.0, scratch[64];
  const ats_tensor expected = ats::view(&out, {1, 1});
  const auto status = [&](std::vector<double> a, int estimator) {
    const ats_tensor attention = ats::view(a.data(), {1, 3});
    return ats_expectation(&features, &attention, nullptr, nullptr, estimator, &expected, scratch, nullptr);
  };
  // Different cells cannot have more than all the mass; drawn with replacement they repeat.
  CHECK(status({0.6, 0.6, 0.6}, ATS_MURTHY) == ATS_INVALID_ARGUMENT);
  CHECK(status({0.6, 0.6, 0.6}, ATS_DES_RAJ) == ATS_INVALID_ARGUMENT);
  CHECK(status({0.6, 0.6, 0.6}, ATS_IID) == ATS_OK);
  CHECK(status({0.6, 0.6, 0.6}, ATS_NORMALIZED) == ATS_OK && out == 2.0);
  CHECK(status({0.2, NAN, 0.2}, ATS_MURTHY) == ATS_INVALID_ARGUMENT);
  CHECK(status({0.2, -0.1, 0.2}, ATS_MURTHY) == ATS_INVALID_ARGUMENT);
  CHECK(status({1.0 / 3, 1.0 / 3, 1.0 / 3}, ATS_MURTHY) == ATS_OK && std::fabs(out - 2.0) < 1e-12);
  CHECK(status({0.2, 0.2, 0.2}, ATS_HORVITZ_THOMPSON) == ATS_INVALID_ARGUMENT);  // no threshold
  CHECK(status({0.2, 0.2, 0.2}, 5) == ATS_INVALID_ARGUMENT);
  int32_t estimator = -1;
  CHECK_OK(ats_estimator_by_name("murthy", &estimator));
  CHECK(estimator == ATS_MURTHY && ats_estimator_by_name("best", &estimator) == ATS_INVALID_ARGUMENT);
}

// Features without a channel need no data, whatever their strides are; no attention gets a gradient then.
void test_no_channels() {
  const std::vector<double> a{0.2, 0.3, 0.1, 0.1};
  const ats_tensor attention = ats::view(a.data(), {2, 2});
  ats_tensor features = ats::view(static_cast<const double*>(nullptr), {2, 2, 0});
  ats_tensor row = ats::view(static_cast<const double*>(nullptr), {2, 0});
  features.strides[0] = -6;
  features.strides[1] = row.strides[0] = -3;
  size_t bytes = 0;
  CHECK_OK(ats_expectation_backward_workspace(&attention, &bytes));
  for (const int estimator : {ATS_IID, ATS_DES_RAJ, ATS_MURTHY, ATS_NORMALIZED}) {
    std::vector<double> workspace(bytes / sizeof(double) + 1, 7.0), da(4, 7.0);
    const ats_tensor d_attention = ats::view(da.data(), {2, 2});
    CHECK_OK(ats_expectation(&features, &attention, nullptr, nullptr, estimator, &row, workspace.data(), nullptr));
    CHECK_OK(ats_expectation_backward(&row, &features, &attention, nullptr, nullptr, estimator, &features, &d_attention,
                                      workspace.data(), nullptr));
    for (const double x : da) CHECK(x == 0.0);
  }
}

}  // namespace

int main() {
  for (size_t n = 1; n <= 5; ++n) {
    test_unbiased(ATS_DES_RAJ, n, false);
    test_unbiased(ATS_MURTHY, n, false);
  }
  for (size_t n = 1; n <= 3; ++n) test_unbiased(ATS_IID, n, true);
  test_refusals();
  test_no_channels();
  const Result zero = estimate({0.5, 0.0, 0.2}, {1.0, 2.0, 3.0}, ATS_MURTHY, ats_thread_pool());
  for (const double x : zero.d_attention) CHECK(std::isfinite(x));
  return finish();
}
