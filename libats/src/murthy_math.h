// murthy's integral, for scalars (a GPU's threads) and for vectors of nodes alike.
//
// P(S) is the probability that the race of exponential clocks rings the sample before all else, whose rate is r:
//   P(S) = r * integral_0^inf exp(-r t) prod_s (1 - exp(-a_s t)) dt
// and leaving a cell out of the sample drops its factor. With psi_i(t) = a_i / (1 - exp(-a_i t)), which stays of the
// order of max(1/t, a_i) even for a_i = 0, and W the density proportional to the integrand of P(S),
//   c_i = a_i P(S\i) / P(S) = E_W[psi_i],      a_i a_j P(S\ij) / P(S) = E_W[psi_i psi_j],
//   da_i = (c_i (1 - a_i) h_i - sum_{j != i} E_W[psi_i psi_j] h_j) / a_i.
//
// The integral is a trapezoid sum in y = log(r t), which converges geometrically. The logarithm of the integrand is
// concave in y, so it is walked from beyond its right end to the left, past the peak, until even the integrand that
// has lost two factors has died away.
//
// One exponential a cell and node: with u = a t / (1 - exp(-a t)) >= 1, psi = u / t, and the integrand is
// t^(N+1) exp(-r t) / prod u, whose product is kept as a mantissa and an exponent, so that no logarithm is needed.
#pragma once

#include "expectation_math.h"
#include "portable_math.h"

namespace ats {

// u = x / (1 - exp(-x)) for 0 <= x, in the way of portable_exp, but with all digits of 1 - exp(-x) for small x. Real is double
// with Bits uint64_t, or vectors of them (lanes.h).
template <typename Real, typename Bits>
ATS_HD ATS_INLINE Real race_ratio(Real x) {
  const Real most = x < 64.0 ? x : Real{} + 64.0;  // exp(-64) is nothing beside 1
  // -x = n ln 2 + r, |r| <= ln 2 / 2
  constexpr double kRound = 0x1.8p52;
  const Real shifted = most * -0x1.71547652b82fep0 + kRound;
  const Real n = shifted - kRound;
  const Real r = (-most - n * kLn2High) - n * kLn2Low;
  const Real r2 = r * r, r4 = r2 * r2, r8 = r4 * r4;
  const Real first = (0.5 + r * (1.0 / 6.0)) + r2 * (1.0 / 24.0 + r * (1.0 / 120.0));
  const Real second = (1.0 / 720.0 + r * (1.0 / 5040.0)) + r2 * (1.0 / 40320.0 + r * (1.0 / 362880.0));
  const Real third = (1.0 / 3628800.0 + r * (1.0 / 39916800.0)) + r2 * (1.0 / 479001600.0 + r * (1.0 / 6227020800.0));
  const Real fraction = r + r2 * ((first + r4 * second) + r8 * third);  // exp(r) - 1
  const Real scale = power_of_two<Real>(Bits(bit_cast<Bits>(shifted) - bit_cast<uint64_t>(kRound)));
  const Real rung = (1.0 - scale) - scale * fraction;  // 1 - exp(-x)
  return x < 1e-300 ? Real{} + 1.0 : x / rung;
}

// A product of numbers from 1 to 1e300, of any length, as mantissa * 2^exponent with 1 <= mantissa < 2, takes another factor.
// The exponent is 1023 a factor too large, which differences of equally many factors do not see.
template <typename Real, typename Bits>
ATS_HD ATS_INLINE void multiply_long(Real factor, Real& mantissa, Bits& exponent) {
  const Bits bits = bit_cast<Bits>(Real(mantissa * factor));
  exponent += bits >> 52;
  mantissa = bit_cast<Real>((bits & 0xfffffffffffffull) | 0x3ff0000000000000ull);
}

// Where the nodes lie, and what the integrand is measured by: its value near the peak.
struct MurthyGrid {
  double rest;        // r
  double peak;        // log(r t)
  double rate;        // exp(peak)
  uint64_t exponent;  // of the product
  double step;        // between nodes
  double right;       // the first node, from the peak
};

// A peak of curvature k is 1 / sqrt(k) wide, and a step h of the trapezoid rule errs by exp(-2 pi^2 / (h^2 k)); the 5 is for
// peaks near r t = 1, which are not Gaussian. Where the sample holds nearly all mass, a wide peak has a cliff on its left:
// n equal cells with x = a t lose m = n exp(-x) in the logarithm and add m x^2 to the curvature, a narrow thing of the weight
// exp(-m): the last term is the largest (28 - m) m log^2(n / m) over m, per 28. Tails end at exp(-32) = 1e-14 of the
// peak; the right one falls at least as that of a gamma distribution does.
constexpr double kMurthyTail = 1e-14;
ATS_HD inline void set_murthy_steps(MurthyGrid& grid, int64_t n, double curvature) {
  const double g = grid.rate, cliff = portable_log(1.0 + 0.1 * double(n));
  grid.step = 0.75 / sqrt(curvature + 5.0 + 6.5 * cliff * cliff);
  grid.right = portable_log(1.0 + (8.0 * sqrt(g) + 28.0) / g);
}

// The integrand over its value near the peak, at `offset` from it in y, where r t = rate.
template <typename Real, typename Bits>
ATS_HD ATS_INLINE Real murthy_weight(const MurthyGrid& grid, int64_t n, Real offset, Real rate, Real mantissa,
                                     Bits exponent) {
  // The difference of two exponents as a double: added to 1.5 * 2^52 it stands in the low bits.
  constexpr double kRound = 0x1.8p52;
  const Real doublings = bit_cast<Real>(Bits(exponent - grid.exponent + bit_cast<uint64_t>(kRound))) - kRound;
  const Real value = double(n + 1) * offset - (rate - grid.rate) - doublings * 0x1.62e42fefa39efp-1;
  return portable_exp<Real, Bits>(value) / mantissa;
}

}  // namespace ats
