// The walk over murthy's nodes (murthy_math.h), eight of them at a time, one a lane. Scratch memory begins where a
// vector may.
#pragma once

#include "lanes.h"
#include "murthy_math.h"

namespace ats {

ATS_INLINE int64_t padded_to_lanes(int64_t n) { return (n + 7) / 8 * 8; }

// u of every cell at the times t, and their product.
struct MurthyProduct {
  Doubles mantissa;
  Words exponent;
};
ATS_INLINE MurthyProduct murthy_factors(const double* a, int64_t n, Doubles t, Doubles* u) {
  MurthyProduct product{Doubles{} + 1.0, Words{}};
  for (int64_t s = 0; s < n; ++s) {
    u[s] = race_ratio<Doubles, Words>(a[s] * t);
    multiply_long<Doubles, Words>(u[s], product.mantissa, product.exponent);
  }
  return product;
}

// The peak: the slope in y, 1 - r t + sum_s f_s with f_s = x / (exp(x) - 1), x = a_s t, falls with y, and has its zero
// between r t = 1 and N + 1. The curvature k there is r t + sum_s f_s (u_s - 1). It is found to within a factor of 1.5,
// from above, and so near that the integrand at the peak is no more than exp(50) times what it is at the place found: u
// is left at the times last tried, and `lane` says which of them it was.
ATS_INLINE MurthyGrid murthy_grid(const double* a, const MurthySize& size, double rest, Doubles* u, int& lane) {
  const Doubles nth = {1, 2, 3, 4, 5, 6, 7, 8};
  const int64_t n = size.n;
  MurthyGrid grid{};
  grid.rest = rest;
  double low = 0.0, part = size.widest / 8.0;
  for (;;) {
    const Doubles y = low + part * nth, rate = portable_exp<Doubles, Words>(y), t = rate * (1.0 / rest);
    const MurthyProduct product = murthy_factors(a, n, t, u);
    Doubles slope = 1.0 - rate, curvature = rate;
    for (int64_t s = 0; s < n; ++s) {
      const Doubles x = a[s] * t, f = x < 64.0 ? u[s] - x : Doubles{};  // x / (exp(x) - 1)
      slope += f;
      curvature += f * (u[s] - 1.0);
    }
    for (lane = 0; lane < 7 && slope[lane] > 0.0;) ++lane;
    const double before = curvature[lane > 0 ? lane - 1 : 0],
                 largest = before > curvature[lane] ? before : curvature[lane];
    if (part <= 0.4 && part * part * largest <= 100.0) {
      grid.peak = y[lane];
      grid.rate = rate[lane];
      grid.exponent = product.exponent[lane];
      set_murthy_steps(grid, size, largest);
      return grid;
    }
    low += part * lane;
    part /= 8.0;
  }
}

// visit.take(weight, 1 / t, u) at every eight nodes, `u` being n vectors that it may overwrite; returns the sum of the
// weights. 1 / t times u is psi.
template <typename Visit>
ATS_INLINE double murthy_walk(const double* a, const MurthySize& size, double rest, Doubles* u, Visit& visit) {
  const Doubles nth = {0, 1, 2, 3, 4, 5, 6, 7};
  const int64_t n = size.n;
  int64_t slowest = 0;
  for (int64_t s = 1; s < n; ++s) slowest = a[s] < a[slowest] ? s : slowest;
  int lane = 0;
  const MurthyGrid grid = murthy_grid(a, size, rest, u, lane);
  const double slowest_at_peak = u[slowest][lane] / grid.rate;
  // Eight nodes to the left the rate is that of now times `fall`.
  const double fall = portable_exp(-8.0 * grid.step), per_fall = 1.0 / fall;
  Doubles offset = grid.right - grid.step * nth;
  Doubles rate = portable_exp<Doubles, Words>(grid.peak + offset), per_rate = 1.0 / rate;
  Doubles total = {}, highest = {};
  for (;;) {
    const MurthyProduct product = murthy_factors(a, n, rate * (1.0 / rest), u);
    Doubles weight = murthy_weight<Doubles, Words>(grid, n, offset, rate, product.mantissa, product.exponent);
    // No two cells' psi rises faster to the left than that of the smallest attention does, twice.
    const Doubles rise = u[slowest] * per_rate * (1.0 / slowest_at_peak), least = weight * rise * rise;
    highest = higher(highest, least);
    double top = highest[0];
    for (int l = 1; l < 8; ++l) top = highest[l] > top ? highest[l] : top;
    // From node to node it falls by an ever smaller factor: those that follow the last are together no more than a
    // geometric series, which the last one then stands for.
    const double fallen = least[6] - least[7];
    const bool last = !(least[7] * least[7] > top * kMurthyTail * fallen);
    if (last && fallen > 0.0) weight[7] *= least[6] / fallen;
    total += weight;
    visit.take(weight, per_rate * rest, u);
    if (last) return sum_lanes(total);
    offset -= 8.0 * grid.step;
    rate *= fall;
    per_rate *= per_fall;
  }
}

struct MurthyCoefficients {
  int64_t n;
  Doubles* c;

  ATS_INLINE void take(Doubles weight, Doubles per_time, const Doubles* u) {
    for (int64_t i = 0; i < n; ++i) c[i] += weight * (u[i] * per_time);
  }

  // c; scratch is of 16 n doubles.
  ATS_INLINE static void run(const double* a, MurthySize size, double rest, double* scratch, double* c) {
    const int64_t n = size.n;
    Doubles* const lanes = reinterpret_cast<Doubles*>(scratch);
    MurthyCoefficients sums{n, lanes + n};
    for (int64_t i = 0; i < n; ++i) sums.c[i] = Doubles{};
    const double total = murthy_walk(a, size, rest, lanes, sums);
    for (int64_t i = 0; i < n; ++i) c[i] = sum_lanes(sums.c[i]) / total;
  }
};

struct MurthyGradient {
  int64_t n;
  const double* h;
  Doubles *c, *others;

  ATS_INLINE void take(Doubles weight, Doubles per_time, Doubles* u) {
    Doubles sum = {};
    for (int64_t i = 0; i < n; ++i) {
      u[i] *= per_time;
      sum += u[i] * h[i];
    }
    for (int64_t i = 0; i < n; ++i) {
      const Doubles weighted = weight * u[i];
      c[i] += weighted;
      others[i] += weighted * (sum - u[i] * h[i]);
    }
  }

  // c and da = M h; scratch is of 24 n doubles.
  ATS_INLINE static void run(const double* a, MurthySize size, double rest, const double* h, double* scratch, double* c,
                             double* da) {
    const int64_t n = size.n;
    Doubles* const lanes = reinterpret_cast<Doubles*>(scratch);
    MurthyGradient sums{n, h, lanes + n, lanes + 2 * n};
    for (int64_t i = 0; i < n; ++i) sums.c[i] = sums.others[i] = Doubles{};
    const double total = murthy_walk(a, size, rest, lanes, sums);
    for (int64_t i = 0; i < n; ++i) {
      c[i] = sum_lanes(sums.c[i]) / total;
      da[i] = over_probability(c[i] * (1.0 - a[i]) * h[i] - sum_lanes(sums.others[i]) / total, a[i]);
    }
  }
};

// The arrays themselves, M in the type that is wanted.
template <typename T>
struct MurthyMatrix {
  int64_t n, stride;
  Doubles* c;
  double *nodes, *pairs;  // psi with the cells side by side, (8, stride); the sums of psi_i psi_j, (n, stride)

  // The sums of pairs grow by a product of matrices, its eight terms always in the same order; those with j >= i are
  // enough.
  ATS_INLINE void take(Doubles weight, Doubles per_time, Doubles* u) {
    for (int64_t i = 0; i < n; ++i) u[i] *= per_time;
    for (int64_t i = 0; i < n; ++i)
      for (int l = 0; l < 8; ++l) nodes[l * stride + i] = u[i][l];
    for (int64_t i = 0; i < n; ++i) {
      const Doubles weighted = weight * u[i];
      c[i] += weighted;
      for (int64_t j = i / 8 * 8; j < n; j += 8) {
        Doubles sum = load_lanes(pairs + i * stride + j);
        for (int l = 0; l < 8; ++l) sum += weighted[l] * load_lanes(nodes + l * stride + j);
        memcpy(pairs + i * stride + j, &sum, sizeof(sum));
      }
    }
  }

  // c and M, which is n x n; scratch is of 16 n + (8 + n) padded_to_lanes(n) doubles.
  ATS_INLINE static void run(const double* a, MurthySize size, double rest, double* scratch, double* c, T* m) {
    const int64_t n = size.n;
    Doubles* const lanes = reinterpret_cast<Doubles*>(scratch);
    double* const nodes = scratch + 16 * n;
    const int64_t stride = padded_to_lanes(n);
    MurthyMatrix sums{n, stride, lanes + n, nodes, nodes + 8 * stride};
    for (int64_t i = 0; i < n; ++i) sums.c[i] = Doubles{};
    for (int64_t k = 0; k < (8 + n) * stride; ++k) nodes[k] = 0.0;
    const double total = murthy_walk(a, size, rest, lanes, sums);
    for (int64_t i = 0; i < n; ++i) c[i] = sum_lanes(sums.c[i]) / total;
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < n; ++j) {
        const double pair = i < j ? sums.pairs[i * stride + j] : sums.pairs[j * stride + i];
        m[i * n + j] = store_clamped<T>(over_probability(i == j ? c[i] * (1.0 - a[i]) : -pair / total, a[i]));
      }
  }
};

}  // namespace ats
