// The estimators, as functions of one row of sampled attention a_0..a_{N-1} (docs/estimators.md has the formulas).
//
//   c_i   F^ = sum_i c_i f_i, and the gradient to the features
//   M_ij  the gradient to the attention, da_i = sum_j M_ij h_j with h_j = <f_j, dL/dF^>
//
// M is never built for a backward pass: for every estimator M h costs no more than c does. What murthy integrates is in
// murthy_math.h; here are the rows where it has nothing to integrate.
#pragma once

#include <ats/ats.h>

#include <cmath>
#include <cstdint>
#include <limits>

#include "half.h"
#include "host_device.h"

namespace ats {

// A row: its attention and what else its estimator reads.
struct EstimatorRow {
  const double* a;
  int64_t n;
  double threshold;
  const double* weights;  // NULL: 1/N

  ATS_HD double weight(int64_t i) const { return weights ? weights[i] : 1.0 / double(n); }
};

// 1 - a_0 - ... - a_{count-1}, not below 0, with the rounding error of every step carried along (Neumaier 1974): when
// the sample holds nearly all mass, the difference is all that counts.
struct MassLeft {
  double value = 1.0, error = 0.0;
  ATS_HD void take(double a) {
    const double next = value - a;
    error += value >= a ? (value - next) - a : -((a + next) - value);
    value = next;
  }
  ATS_HD double get() const {
    const double left = value + error;
    return left > 0.0 ? left : 0.0;
  }
};

// Division by a probability that may have underflowed to 0.
ATS_HD inline double over_probability(double value, double a) {
  return value / (a > 0.0 ? a : std::numeric_limits<double>::denorm_min());
}

// x / (1 - exp(-x)) for x >= 0.
ATS_HD inline double inverse_inclusion(double x) { return x < 1e-9 ? 1.0 + 0.5 * x : x / -expm1(-x); }

// What the sample leaves of the mass. 0: it holds all of it, and R = R2 = 1 exactly. (Times are divided by what is
// left; below 1e-290 they would overflow, and the sample holds all the mass there is.)
ATS_HD inline double mass_left(const EstimatorRow& row) {
  MassLeft left;
  for (int64_t i = 0; i < row.n; ++i) left.take(row.a[i]);
  return left.get() < 1e-290 ? 0.0 : left.get();
}

// What is left of the mass for murthy to integrate over, or 0: then the formulas below do.
ATS_HD inline double murthy_rest(int estimator, const EstimatorRow& row) {
  return estimator == ATS_MURTHY && row.n > 1 ? mass_left(row) : 0.0;
}

// Cells drawn without replacement are different ones, so that their probabilities cannot pass 1 together. (The
// softmax of a half dtype may leave a little more than 1.)
constexpr double kMostProbability = 1.01;

// Whether the attention of a row is what the estimator takes, found while it is read.
struct RowCheck {
  int estimator;
  double sum = 0.0;
  bool good = true;

  ATS_HD void take(double a) {
    const double most = estimator == ATS_NORMALIZED ? std::numeric_limits<double>::max() : kMostProbability;
    good &= a >= 0.0 && a <= most;
    sum += a;
  }
  ATS_HD bool get() const {
    if (estimator == ATS_NORMALIZED) return good && sum > 0.0;
    return good && (estimator == ATS_IID || sum <= kMostProbability);
  }
};
ATS_HD inline bool good_threshold(double threshold) { return threshold > 0.0; }

// ---- c ------------------------------------------------------------------------------------------------------------
// murthy: of one draw, or of the whole mass.
ATS_HD inline void coefficients(int estimator, const EstimatorRow& row, double* c) {
  const int64_t n = row.n;
  const double* a = row.a;
  switch (estimator) {
    case ATS_IID:
      for (int64_t i = 0; i < n; ++i) c[i] = 1.0 / double(n);
      return;
    case ATS_DES_RAJ: {
      double later = 0.0;  // weights of the draws after i
      for (int64_t i = n - 1; i >= 0; --i) {
        c[i] = later;
        later += row.weight(i);
      }
      MassLeft left;  // mass available before draw i
      for (int64_t i = 0; i < n; ++i) {
        c[i] = row.weight(i) * left.get() + a[i] * c[i];
        left.take(a[i]);
      }
      return;
    }
    case ATS_MURTHY:
      for (int64_t i = 0; i < n; ++i) c[i] = n > 1 ? a[i] : 1.0;
      return;
    case ATS_HORVITZ_THOMPSON:  // a / (1 - exp(-a t)); with t = inf every cell was taken
      for (int64_t i = 0; i < n; ++i)
        c[i] = std::isinf(row.threshold) ? a[i] : inverse_inclusion(a[i] * row.threshold) / row.threshold;
      return;
    default: {  // ATS_NORMALIZED
      double sum = 0.0;
      for (int64_t i = 0; i < n; ++i) sum += a[i];
      for (int64_t i = 0; i < n; ++i) c[i] = a[i] / sum;
    }
  }
}

// ---- M h ----------------------------------------------------------------------------------------------------------
// da = M h from h and c; murthy as above.
ATS_HD inline void attention_gradient(int estimator, const EstimatorRow& row, const double* c, const double* h,
                                      double* da) {
  const int64_t n = row.n;
  const double* a = row.a;
  switch (estimator) {
    case ATS_IID: {  // every draw is compared with the mean of the others
      double sum = 0.0;
      for (int64_t i = 0; i < n; ++i) sum += h[i];
      for (int64_t i = 0; i < n; ++i) {
        const double baseline = n > 1 ? (sum - h[i]) / double(n - 1) : 0.0;
        da[i] = over_probability((h[i] - baseline) / double(n), a[i]);
      }
      return;
    }
    case ATS_DES_RAJ:
    case ATS_HORVITZ_THOMPSON:  // M = diag(c / a)
      for (int64_t i = 0; i < n; ++i) da[i] = over_probability(c[i] * h[i], a[i]);
      return;
    case ATS_MURTHY: {  // one draw has no other to be compared with
      double sum = 0.0;
      for (int64_t i = 0; i < n; ++i) sum += a[i] * h[i];
      for (int64_t i = 0; i < n; ++i) da[i] = n > 1 ? h[i] - sum : over_probability(h[i], a[i]);
      return;
    }
    default: {  // ATS_NORMALIZED: the derivative of sum_j a_j h_j / sum_j a_j
      double sum = 0.0, mean = 0.0;
      for (int64_t i = 0; i < n; ++i) sum += a[i];
      for (int64_t i = 0; i < n; ++i) mean += c[i] * h[i];
      for (int64_t i = 0; i < n; ++i) da[i] = (h[i] - mean) / sum;
    }
  }
}

// M itself, n x n: its columns are M e_j, of which those from `first` on are filled, `step` apart. `unit` and `column`
// are room for n numbers each. murthy as above.
template <typename T>
ATS_HD inline void attention_matrix(int estimator, const EstimatorRow& row, const double* c, double* unit,
                                    double* column, T* m, int64_t first = 0, int64_t step = 1) {
  const int64_t n = row.n;
  for (int64_t j = 0; j < n; ++j) unit[j] = 0.0;
  for (int64_t j = first; j < n; j += step) {
    unit[j] = 1.0;
    attention_gradient(estimator, row, c, unit, column);
    unit[j] = 0.0;
    for (int64_t i = 0; i < n; ++i) m[i * n + j] = store_clamped<T>(column[i]);
  }
}

}  // namespace ats
