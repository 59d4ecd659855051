// The estimators, as functions of one row of sampled attention a_0..a_{N-1} (docs/estimators.md has the formulas).
//
//   c_i   F^ = sum_i c_i f_i, and the gradient to the features
//   M_ij  the gradient to the attention, da_i = sum_j M_ij h_j with h_j = <f_j, dL/dF^>
//
// M is never built for a backward pass: for every estimator M h costs no more than c does.
#pragma once

#include <ats/ats.h>

#include <cmath>
#include <cstdint>
#include <limits>

#include "host_device.h"

namespace ats {

// A row: its attention, what else its estimator reads, and N doubles of scratch.
struct EstimatorRow {
  const double* a;
  int64_t n;
  double threshold;
  const double* weights;  // NULL: 1/N
  double* scratch;

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

// ---- murthy -------------------------------------------------------------------------------------------------------
// P(S) is the probability that the race of exponential clocks rings the sample before all else, whose rate is r:
//   P(S) = r * integral_0^inf exp(-r t) prod_s (1 - exp(-a_s t)) dt
// and leaving a cell out of the sample drops its factor. With psi_i(t) = a_i / (1 - exp(-a_i t)), which stays of the
// order of max(1/t, a_i) even for a_i = 0, and W the density proportional to the integrand of P(S),
//   c_i = a_i P(S\i) / P(S) = E_W[psi_i],      a_i a_j P(S\ij) / P(S) = E_W[psi_i psi_j].
//
// The integral is a trapezoid sum in y = log t, which converges geometrically. The logarithm of the integrand is
// concave in y, so it is walked from beyond its right end to the left, past the peak, until even the integrand that
// has lost its two slowest factors has died away.
struct MurthyGrid {
  double rest;         // r
  double right;        // the first node, as log(r t)
  double step;         // between nodes
  double reference;    // log of the integrand near its peak
  int64_t slowest[2];  // the cells of smallest attention: their factors fall last on the way to the left
};

// psi of every cell at t; returns the logarithm of the integrand of P(S) in y, up to a constant.
ATS_HD inline double murthy_node(const EstimatorRow& row, double rest, double rate, double* psi) {
  const double t = rate / rest;
  double value = log(rate) - rate;
  for (int64_t s = 0; s < row.n; ++s) {
    psi[s] = inverse_inclusion(row.a[s] * t) / t;
    value -= log(psi[s]);
  }
  return value;
}

ATS_HD inline MurthyGrid murthy_grid(const EstimatorRow& row, double rest) {
  MurthyGrid grid{};
  grid.rest = rest;
  // The peak: d/dy = 1 - r t + sum_s x / (exp(x) - 1), x = a_s t, falls with y, and has its zero at r t <= N + 1.
  double low = 0.0, high = log(double(row.n + 1));
  for (int halving = 0; halving < 6; ++halving) {
    const double middle = 0.5 * (low + high), rate = exp(middle), t = rate / rest;
    double slope = 1.0 - rate;
    for (int64_t s = 0; s < row.n; ++s) {
      const double x = row.a[s] * t;
      slope += x < 1e-9 ? 1.0 : x / expm1(x);
    }
    (slope > 0.0 ? low : high) = middle;
  }
  const double peak = exp(high);
  // A peak at r t = g has the width 1/sqrt(g); this step gave 1e-11 or better against exact sums. The right tail falls at least as that of a gamma distribution does.
  grid.step = fmin(0.2, 0.5 / sqrt(peak));
  grid.right = log(peak + 9.0 * sqrt(peak) + 40.0);
  grid.reference = murthy_node(row, rest, peak, row.scratch);
  for (int64_t s = 0; s < row.n; ++s) {
    if (row.a[s] < row.a[grid.slowest[0]]) grid.slowest[0] = s;
  }
  if (row.n > 1) {
    grid.slowest[1] = grid.slowest[0] == 0;
    for (int64_t s = 0; s < row.n; ++s)
      if (s != grid.slowest[0] && row.a[s] < row.a[grid.slowest[1]]) grid.slowest[1] = s;
  }
  return grid;
}

// Calls visit(weight, psi) at every node; the weights make up W times their sum.
template <typename Visit>
ATS_HD inline void murthy_integrate(const EstimatorRow& row, double rest, const Visit& visit) {
  const MurthyGrid grid = murthy_grid(row, rest);
  double* psi = row.scratch;
  double highest = -std::numeric_limits<double>::infinity();
  for (int64_t node = 0;; ++node) {
    const double value = murthy_node(row, rest, exp(grid.right - double(node) * grid.step), psi) - grid.reference;
    visit(exp(value), static_cast<const double*>(psi));
    double slowest = value + log(psi[grid.slowest[0]]);
    if (row.n > 1) slowest += log(psi[grid.slowest[1]]);
    if (slowest > highest) highest = slowest;
    if (!(slowest > highest - 36.0)) return;  // exp(-36) = 2e-16
  }
}

// What the sample leaves of the mass. 0: it holds all of it, and R = R2 = 1 exactly. (Times are divided by what is
// left; below 1e-290 they would overflow, and the sample holds all the mass there is.)
ATS_HD inline double mass_left(const EstimatorRow& row) {
  MassLeft left;
  for (int64_t i = 0; i < row.n; ++i) left.take(row.a[i]);
  return left.get() < 1e-290 ? 0.0 : left.get();
}

// ---- c ------------------------------------------------------------------------------------------------------------
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
    case ATS_MURTHY: {
      const double rest = mass_left(row);
      if (rest == 0.0) {
        for (int64_t i = 0; i < n; ++i) c[i] = a[i];
        return;
      }
      for (int64_t i = 0; i < n; ++i) c[i] = 0.0;
      double total = 0.0;
      murthy_integrate(row, rest, [&](double weight, const double* psi) {
        total += weight;
        for (int64_t i = 0; i < n; ++i) c[i] += weight * psi[i];
      });
      for (int64_t i = 0; i < n; ++i) c[i] /= total;
      return;
    }
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
// da = M h from h and c.
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
    case ATS_MURTHY: {
      // da_i = (c_i (1 - a_i) h_i - sum_{j != i} E_W[psi_i psi_j] h_j) / a_i. One draw has no other to be compared with.
      const double rest = mass_left(row);
      for (int64_t i = 0; i < n; ++i) da[i] = 0.0;
      if (rest == 0.0) {
        double sum = 0.0;
        for (int64_t j = 0; j < n; ++j) sum += a[j] * h[j];
        for (int64_t i = 0; i < n; ++i) da[i] = n > 1 ? h[i] - sum : h[i];
        return;
      }
      double total = 0.0;
      if (n > 1)
        murthy_integrate(row, rest, [&](double weight, const double* psi) {
          total += weight;
          double sum = 0.0;
          for (int64_t j = 0; j < n; ++j) sum += psi[j] * h[j];
          for (int64_t i = 0; i < n; ++i) da[i] += weight * psi[i] * (sum - psi[i] * h[i]);
        });
      for (int64_t i = 0; i < n; ++i) {
        const double own = n > 1 ? c[i] * (1.0 - a[i]) * h[i] : c[i] * h[i];
        da[i] = over_probability(n > 1 ? own - da[i] / total : own, a[i]);
      }
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

// M itself, n x n doubles. Its columns are M e_j; murthy's are filled together in one walk over the nodes.
ATS_HD inline void attention_matrix(int estimator, const EstimatorRow& row, const double* c, double* unit,
                                    double* column, double* m) {
  const int64_t n = row.n;
  const double rest = estimator == ATS_MURTHY ? mass_left(row) : 0.0;
  if (estimator == ATS_MURTHY && rest > 0.0 && n > 1) {
    for (int64_t k = 0; k < n * n; ++k) m[k] = 0.0;
    double total = 0.0;
    murthy_integrate(row, rest, [&](double weight, const double* psi) {
      total += weight;
      for (int64_t i = 0; i < n; ++i)
        for (int64_t j = 0; j < n; ++j) m[i * n + j] += weight * psi[i] * psi[j];
    });
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < n; ++j)
        m[i * n + j] = over_probability(i == j ? c[i] * (1.0 - row.a[i]) : -m[i * n + j] / total, row.a[i]);
    return;
  }
  for (int64_t j = 0; j < n; ++j) unit[j] = 0.0;
  for (int64_t j = 0; j < n; ++j) {
    unit[j] = 1.0;
    attention_gradient(estimator, row, c, unit, column);
    unit[j] = 0.0;
    for (int64_t i = 0; i < n; ++i) m[i * n + j] = column[i];
  }
}

}  // namespace ats
