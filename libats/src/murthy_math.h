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

// exp(x) = scale + scale * fraction to 3e-15, with all digits of exp(x) - 1 for small x; -708 <= x <= 708. In the way
// of portable_exp, but shorter. Real is double with Bits uint64_t, or vectors of them (lanes.h).
template <typename Real>
struct ShortExp {
  Real scale, fraction;
};
template <typename Real, typename Bits>
ATS_HD ATS_INLINE ShortExp<Real> short_exp(Real x) {
  // x = n ln 2 + r, |r| <= ln 2 / 2
  constexpr double kRound = 0x1.8p52;
  const Real shifted = x * 0x1.71547652b82fep0 + kRound;
  const Real n = shifted - kRound;
  const Real r = (x - n * kLn2High) - n * kLn2Low;
  // (exp(r) - 1 - r) / r^2, interpolated at the Chebyshev nodes of the interval.
  const Real r2 = r * r, r4 = r2 * r2;
  const Real first = (0.5 + r * 0x1.5555555553b63p-3) + r2 * (0x1.5555555554cb0p-5 + r * 0x1.1111111c4e74fp-7);
  const Real second =
      (0x1.6c16c173948e7p-10 + r * 0x1.a019ad80eed25p-13) + r2 * (0x1.a019c98e708e7p-16 + r * 0x1.72c75c67ac6b9p-19);
  const Real fraction = r + r2 * (first + r4 * (second + r4 * 0x1.288060f149570p-22));
  return {power_of_two<Real>(Bits(bit_cast<Bits>(shifted) - bit_cast<uint64_t>(kRound))), fraction};
}

// u = x / (1 - exp(-x)) for 0 <= x.
template <typename Real, typename Bits>
ATS_HD ATS_INLINE Real race_ratio(Real x) {
  const Real least = x < 64.0 ? -x : Real{} - 64.0;  // exp(-64) is nothing beside 1
  const ShortExp<Real> e = short_exp<Real, Bits>(least);
  const Real rung = (1.0 - e.scale) - e.scale * e.fraction;  // 1 - exp(-x)
  return x < 1e-300 ? Real{} + 1.0 : x / rung;
}

// A product of numbers from 1 to 1e300, of any length, as mantissa * 2^exponent with 1 <= mantissa < 2, takes another
// factor. The exponent is 1023 a factor too large, which differences of equally many factors do not see.
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

// What the number of cells decides alone.
struct MurthySize {
  int64_t n;
  double widest;  // between the brackets of the peak
  double cliff;
  ATS_HD explicit MurthySize(int64_t size)
      : n(size), widest(portable_log(double(size + 1))), cliff(portable_log(1.0 + 0.1 * double(size))) {}
};

// A peak of curvature k is 1 / sqrt(k) wide, and a step h of the trapezoid rule errs by exp(-2 pi^2 / (h^2 k)); the
// 7.1 is for peaks near r t = 1, which are not Gaussian. Where the sample holds nearly all mass, a wide peak has a
// cliff on its left: n equal cells with x = a t lose m = n exp(-x) in the logarithm and add m x^2 to the curvature, a
// narrow thing of the weight exp(-m): the last term is the largest (28 - m) m log^2(n / m) over m, per 28. The right
// tail, which falls at least as that of a gamma distribution does, ends at 1e-13 of the peak; the left one where all
// that follows, of which an estimate is added, is 1e-11 of the peak.
constexpr double kMurthyTail = 1e-11;
ATS_HD inline void set_murthy_steps(MurthyGrid& grid, const MurthySize& size, double curvature) {
  const double g = grid.rate;
  grid.step = 0.84 / sqrt(curvature + 7.1 + 6.5 * size.cliff * size.cliff);
  grid.right = portable_log(1.0 + (7.7 * sqrt(g) + 26.0) / g);
}

// The integrand over its value near the peak, at `offset` from it in y, where r t = rate.
template <typename Real, typename Bits>
ATS_HD ATS_INLINE Real murthy_weight(const MurthyGrid& grid, int64_t n, Real offset, Real rate, Real mantissa,
                                     Bits exponent) {
  // The difference of two exponents as a double: added to 1.5 * 2^52 it stands in the low bits.
  constexpr double kRound = 0x1.8p52;
  const Real doublings = bit_cast<Real>(Bits(exponent - grid.exponent + bit_cast<uint64_t>(kRound))) - kRound;
  const Real value = double(n + 1) * offset - (rate - grid.rate) - doublings * 0x1.62e42fefa39efp-1;
  const Real least = value < -708.0 ? Real{} - 708.0 : value;
  const ShortExp<Real> e = short_exp<Real, Bits>(least);
  return (e.scale + e.scale * e.fraction) * (1.0 / mantissa);
}

}  // namespace ats
