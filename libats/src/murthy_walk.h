// The walk over murthy's nodes (murthy_math.h), eight of them at a time, and what c and M h gather on it. What eight
// nodes are, Nodes says: a vector of a CPU (murthy_lanes.h), or threads of a GPU side by side (murthy_warp.cuh), which
// may also share the cells out among each other. The bits are the same.
//
//   Real, Bits            a number of each of the eight nodes; Bits are as wide as doubles
//   values(scratch, k, n) the k-th memory for n such numbers, one a cell: values[i]
//   total(values, i)      sum(values[i])
//   number()              0 .. 7, the number of the node
//   at(x, node)           that of one node
//   sum(x)                of all nodes, in the order of sum_lanes
//   highest(x)            of all nodes
//   first_fallen(x)       the first node where x is not positive, or else the last
//   times_last(x, y)      x, that of the last node times y
//   first(), step()       the first cell that this thread computes at its node, and how far it is to its next
//   together(n)           how many cells are computed before any is read by others: 1, or n
//   first_cell(), cell_step()  the same of cells of which a thread has all nodes
//   meet()                waits until what other threads wrote can be read
#pragma once

#include "murthy_math.h"

namespace ats {

// u of every cell at the times t, and their product.
template <typename Nodes>
struct MurthyProduct {
  typename Nodes::Real mantissa;
  typename Nodes::Bits exponent;
};
template <typename Nodes>
ATS_HD ATS_INLINE MurthyProduct<Nodes> murthy_factors(const Nodes& nodes, const double* a, int64_t n,
                                                      typename Nodes::Real t, typename Nodes::Values u) {
  using Real = typename Nodes::Real;
  using Bits = typename Nodes::Bits;
  MurthyProduct<Nodes> product{Real{} + 1.0, Bits{}};
  nodes.meet();  // the u before these are no longer read
  const int64_t together = nodes.together(n);
  for (int64_t begin = 0; begin < n; begin += together) {
    for (int64_t s = begin + nodes.first(); s < begin + together; s += nodes.step())
      u[s] = race_ratio<Real, Bits>(a[s] * t);
    nodes.meet();
    for (int64_t s = begin; s < begin + together; ++s)
      multiply_long<Real, Bits>(u[s], product.mantissa, product.exponent);
  }
  return product;
}

// The peak: the slope in y, 1 - r t + sum_s f_s with f_s = x / (exp(x) - 1), x = a_s t, falls with y, and has its zero
// between r t = 1 and N + 1. The curvature k there is r t + sum_s f_s (u_s - 1). It is found to within a factor of 1.5,
// from above, and so near that the integrand at the peak is no more than exp(50) times what it is at the place found: u
// is left at the times last tried, and `node` says which of them it was.
template <typename Nodes>
ATS_HD ATS_INLINE MurthyGrid murthy_grid(const Nodes& nodes, const double* a, const MurthySize& size, double rest,
                                         typename Nodes::Values u, int& node) {
  using Real = typename Nodes::Real;
  using Bits = typename Nodes::Bits;
  const Real nth = nodes.number() + 1.0;
  const int64_t n = size.n;
  MurthyGrid grid{};
  grid.rest = rest;
  double low = 0.0, part = size.widest / 8.0;
  for (;;) {
    const Real y = low + part * nth, rate = portable_exp<Real, Bits>(y), t = rate * (1.0 / rest);
    const MurthyProduct<Nodes> product = murthy_factors(nodes, a, n, t, u);
    Real slope = 1.0 - rate, curvature = rate;
    for (int64_t s = 0; s < n; ++s) {
      const Real x = a[s] * t, f = x < 64.0 ? u[s] - x : Real{};  // x / (exp(x) - 1)
      slope += f;
      curvature += f * (u[s] - 1.0);
    }
    node = nodes.first_fallen(slope);
    const double here = nodes.at(curvature, node), before = nodes.at(curvature, node > 0 ? node - 1 : 0),
                 largest = before > here ? before : here;
    if (part <= 0.4 && part * part * largest <= 100.0) {
      grid.peak = nodes.at(y, node);
      grid.rate = nodes.at(rate, node);
      grid.exponent = nodes.at(product.exponent, node);
      set_murthy_steps(grid, size, largest);
      return grid;
    }
    low += part * node;
    part /= 8.0;
  }
}

// visit.take(weight, 1 / t, u) at every eight nodes, where `u` may be overwritten; returns the sum of the weights.
// 1 / t times u is psi.
template <typename Nodes, typename Visit>
ATS_HD ATS_INLINE double murthy_walk(const Nodes& nodes, const double* a, const MurthySize& size, double rest,
                                     typename Nodes::Values u, Visit& visit) {
  using Real = typename Nodes::Real;
  using Bits = typename Nodes::Bits;
  const int64_t n = size.n;
  int64_t slowest = 0;
  for (int64_t s = 1; s < n; ++s) slowest = a[s] < a[slowest] ? s : slowest;
  int node = 0;
  const MurthyGrid grid = murthy_grid(nodes, a, size, rest, u, node);
  const double slowest_at_peak = nodes.at(u[slowest], node) / grid.rate;
  // Eight nodes to the left the rate is that of now times `fall`.
  const double fall = portable_exp(-8.0 * grid.step), per_fall = 1.0 / fall;
  Real offset = grid.right - grid.step * nodes.number();
  Real rate = portable_exp<Real, Bits>(grid.peak + offset), per_rate = 1.0 / rate;
  Real total = {}, highest = {};
  for (;;) {
    const MurthyProduct<Nodes> product = murthy_factors(nodes, a, n, rate * (1.0 / rest), u);
    Real weight = murthy_weight<Real, Bits>(grid, n, offset, rate, product.mantissa, product.exponent);
    // No two cells' psi rises faster to the left than that of the smallest attention does, twice.
    const Real rise = u[slowest] * per_rate * (1.0 / slowest_at_peak), least = weight * rise * rise;
    highest = highest > least ? highest : least;
    const double top = nodes.highest(highest), last = nodes.at(least, 7);
    // From node to node it falls by an ever smaller factor: those that follow the last are together no more than a
    // geometric series, which the last one then stands for.
    const double fallen = nodes.at(least, 6) - last;
    const bool done = !(last * last > top * kMurthyTail * fallen);
    if (done && fallen > 0.0) weight = nodes.times_last(weight, nodes.at(least, 6) / fallen);
    total += weight;
    visit.take(weight, per_rate * rest, u);
    if (done) return nodes.sum(total);
    offset -= 8.0 * grid.step;
    rate *= fall;
    per_rate *= per_fall;
  }
}

template <typename Nodes>
struct MurthyCoefficientSums {
  using Real = typename Nodes::Real;
  const Nodes& nodes;
  int64_t n;
  typename Nodes::Values c;

  ATS_HD ATS_INLINE void take(Real weight, Real per_time, typename Nodes::Values u) {
    for (int64_t i = nodes.first(); i < n; i += nodes.step()) c[i] += weight * (u[i] * per_time);
  }
};

// c; scratch is of 16 n doubles.
template <typename Nodes>
ATS_HD ATS_INLINE void murthy_coefficients(const Nodes& nodes, const double* a, const MurthySize& size, double rest,
                                           double* scratch, double* c) {
  const int64_t n = size.n;
  MurthyCoefficientSums<Nodes> sums{nodes, n, nodes.values(scratch, 1, n)};
  for (int64_t i = nodes.first(); i < n; i += nodes.step()) sums.c[i] = typename Nodes::Real{};
  const double total = murthy_walk(nodes, a, size, rest, nodes.values(scratch, 0, n), sums);
  nodes.meet();
  for (int64_t i = nodes.first_cell(); i < n; i += nodes.cell_step()) c[i] = nodes.total(sums.c, i) / total;
}

template <typename Nodes>
struct MurthyGradientSums {
  using Real = typename Nodes::Real;
  const Nodes& nodes;
  int64_t n;
  const double* h;
  typename Nodes::Values c, others;

  ATS_HD ATS_INLINE void take(Real weight, Real per_time, typename Nodes::Values u) {
    Real sum = {};
    nodes.meet();  // u is no longer read
    const int64_t together = nodes.together(n);
    for (int64_t begin = 0; begin < n; begin += together) {
      for (int64_t i = begin + nodes.first(); i < begin + together; i += nodes.step()) u[i] *= per_time;
      nodes.meet();
      for (int64_t i = begin; i < begin + together; ++i) sum += u[i] * h[i];
    }
    for (int64_t i = nodes.first(); i < n; i += nodes.step()) {
      const Real weighted = weight * u[i];
      c[i] += weighted;
      others[i] += weighted * (sum - u[i] * h[i]);
    }
  }
};

// c and da = M h; scratch is of 24 n doubles.
template <typename Nodes>
ATS_HD ATS_INLINE void murthy_gradient(const Nodes& nodes, const double* a, const MurthySize& size, double rest,
                                       const double* h, double* scratch, double* c, double* da) {
  const int64_t n = size.n;
  MurthyGradientSums<Nodes> sums{nodes, n, h, nodes.values(scratch, 1, n), nodes.values(scratch, 2, n)};
  for (int64_t i = nodes.first(); i < n; i += nodes.step()) sums.c[i] = sums.others[i] = typename Nodes::Real{};
  const double total = murthy_walk(nodes, a, size, rest, nodes.values(scratch, 0, n), sums);
  nodes.meet();
  for (int64_t i = nodes.first_cell(); i < n; i += nodes.cell_step()) {
    c[i] = nodes.total(sums.c, i) / total;
    da[i] = over_probability(c[i] * (1.0 - a[i]) * h[i] - nodes.total(sums.others, i) / total, a[i]);
  }
}

// M_ij, from the sum of psi_i psi_j over the nodes.
ATS_HD ATS_INLINE double murthy_entry(bool diagonal, double c, double a, double pair, double total) {
  return over_probability(diagonal ? c * (1.0 - a) : -pair / total, a);
}

}  // namespace ats
