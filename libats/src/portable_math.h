// exp and log from IEEE additions, multiplications and divisions alone, in one fixed order: the same bits on every
// compiler, CPU and GPU (built without fused multiply-add). They decide which cell is drawn, so libm's, which differ
// between machines in the last bit, will not do. Errors stay below 2 units in the last place.
#pragma once

#include <cfloat>
#include <cstdint>
#include <limits>

#include "half.h"
#include "host_device.h"

#if defined(__FAST_MATH__)
#error "libats decides picks by the order of its floating-point operations: build it without -ffast-math and -Ofast"
#endif

namespace ats {

static_assert(FLT_EVAL_METHOD == 0, "double arithmetic must be done in double (x87 is not)");

constexpr double kLn2High = 0x1.62e42fefa3800p-1;  // 42 bits, so that small integers times it are exact
constexpr double kLn2Low = 0x1.ef35793c76730p-45;

// 2^n for -1022 <= n <= 1023 (two's complement). Bits is uint64_t, or a vector of them.
template <typename Real = double, typename Bits>
ATS_HD ATS_INLINE Real power_of_two(Bits n) {
  return bit_cast<Real>((n + 1023u) << 52);
}

// exp(x) for x <= 709; 0 below -708, where subnormal numbers begin; NaN for NaN. Real is double, or a vector of doubles
// (lanes.h) with Bits a vector of uint64_t: then every lane is what the scalar function gives.
template <typename Real, typename Bits>
ATS_HD ATS_INLINE Real portable_exp(Real x) {
  // No branches, so that vectors of it are possible. NaN passes through the comparisons and the arithmetic.
  constexpr double kSmallest = -708.0;
  const Real clamped = x < kSmallest ? Real{} + kSmallest : x;
  // x = n ln 2 + r, |r| <= ln 2 / 2; adding 1.5 * 2^52 rounds to an integer in the low bits.
  constexpr double kRound = 0x1.8p52;
  const Real shifted = clamped * 0x1.71547652b82fep0 + kRound;
  const Real n = shifted - kRound;
  const Real r = (clamped - n * kLn2High) - n * kLn2Low;
  // (exp(r) - 1 - r) / r^2, interpolated at the Chebyshev nodes of the interval: exp(r) to 2e-17.
  Real p = Real{} + 0x1.af38a9b0ec855p-26;
  p = p * r + 0x1.289185613a3d6p-22;
  p = p * r + 0x1.71de0dae63bb3p-19;
  p = p * r + 0x1.a019b90d2ae7ap-16;
  p = p * r + 0x1.a01a01a7c41d5p-13;
  p = p * r + 0x1.6c16c1788bd90p-10;
  p = p * r + 0x1.11111111109b3p-7;
  p = p * r + 0x1.5555555553d63p-5;
  p = p * r + 0x1.5555555555556p-3;
  p = p * r + 0x1.0000000000001p-1;
  p = p * r * r + r;  // exp(r) - 1
  const Real result = (1.0 + p) * power_of_two<Real>(Bits(bit_cast<Bits>(shifted) - bit_cast<uint64_t>(kRound)));
  return x < kSmallest ? Real{} : result;
}

ATS_HD inline double portable_exp(double x) { return portable_exp<double, uint64_t>(x); }

// exp(x - reference) of floats, x <= reference: fraction * 2^(exponent - 1023), both 0 below exp(-708); a fraction of
// NaN for NaN. In half the instructions of portable_exp, and to 3e-7 of the value. Real is float with Bits uint32_t, or
// vectors of them.
template <typename Real, typename Bits>
struct FloatExp {
  Real fraction;
  Bits exponent;
};
template <typename Real, typename Bits>
ATS_HD ATS_INLINE FloatExp<Real, Bits> float_exp(Real x, float reference) {
  // x - reference = sum + error, exactly (Knuth's two-sum).
  const Real sum = x - reference, other = sum - x;
  const Real error = (x - (sum - other)) - (reference + other);
  // sum = n ln 2 + r as in portable_exp; with 14 bits of ln 2 the products are exact.
  constexpr float kRound = 0x1.8p23f;
  const Real shifted = sum * 0x1.715476p0f + kRound;
  const Real n = shifted - kRound;
  const Real r = ((sum - n * 0x1.62e8p-1f) - n * -0x1.e8082ep-16f) + error;
  // (exp(r) - 1 - r) / r^2, the minimax polynomial for exp(r) on the interval.
  Real p = Real{} + 0x1.10625p-7f;
  p = p * r + 0x1.572a64p-5f;
  p = p * r + 0x1.5557bp-3f;
  p = p * r + 0x1.fffdfcp-2f;
  p = 1.0f + (p * r * r + r);
  // All bits where something is left. By arithmetic, since compilers take comparisons of vectors wider than the
  // registers apart into single numbers: from 708 (excluded) to infinity both differences are negative.
  const Bits magnitude = Bits(bit_cast<Bits>(sum) & 0x7fffffffu);
  const Bits left = (((bit_cast<uint32_t>(708.0f) - magnitude) & (magnitude - 0x7f800001u)) >> 31) - 1u;
  return {bit_cast<Real>(Bits(bit_cast<Bits>(p) & left)),
          Bits((bit_cast<Bits>(shifted) - (bit_cast<uint32_t>(kRound) - 1023u)) & left)};
}

ATS_HD inline double float_exp(float x, float reference) {
  const FloatExp<float, uint32_t> e = float_exp<float, uint32_t>(x, reference);
  return double(e.fraction) * bit_cast<double>(uint64_t(e.exponent) << 52);
}

// log(x) for finite x > 0; Real and Bits as above.
template <typename Real, typename Bits>
ATS_HD ATS_INLINE Real portable_log(Real x) {
  constexpr double kSmallest = std::numeric_limits<double>::min();
  constexpr double kRound = 0x1.8p52;  // added to an integer, it holds it in its low bits
  const Real subnormal = x < kSmallest ? Real{} + 54.0 : Real{};
  x = x < kSmallest ? x * 0x1p54 : x;
  const Bits bits = bit_cast<Bits>(x);
  Real n = bit_cast<Real>((bits >> 52) - 1023u + bit_cast<uint64_t>(kRound)) - kRound - subnormal;
  Real m = bit_cast<Real>((bits & 0xfffffffffffffull) | 0x3ff0000000000000ull);
  n = m > 1.4142135623730951 ? n + 1.0 : n;
  m = m > 1.4142135623730951 ? m * 0.5 : m;
  // log m = 2 atanh(f), f = (m - 1) / (m + 1), |f| < 0.1716
  const Real f = (m - 1.0) / (m + 1.0);
  const Real s = f * f;
  Real p = Real{} + 1.0 / 23.0;
  p = p * s + 1.0 / 21.0;
  p = p * s + 1.0 / 19.0;
  p = p * s + 1.0 / 17.0;
  p = p * s + 1.0 / 15.0;
  p = p * s + 1.0 / 13.0;
  p = p * s + 1.0 / 11.0;
  p = p * s + 1.0 / 9.0;
  p = p * s + 1.0 / 7.0;
  p = p * s + 1.0 / 5.0;
  p = p * s + 1.0 / 3.0;
  return n * kLn2High + (2.0 * f + (2.0 * f * s * p + n * kLn2Low));
}

ATS_HD inline double portable_log(double x) { return portable_log<double, uint64_t>(x); }

}  // namespace ats
