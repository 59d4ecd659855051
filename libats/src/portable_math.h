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

// exp(x) for x <= 709; 0 below -746 or so; NaN for NaN. Real is double, or a vector of doubles (lanes.h) with Bits a vector
// of uint64_t: then every lane is what the scalar function gives.
template <typename Real, typename Bits>
ATS_HD ATS_INLINE Real portable_exp(Real x) {
  // No branches, so that vectors of it are possible. NaN passes through the comparison and the arithmetic.
  x = x < -800.0 ? Real{} - 800.0 : x;
  // x = n ln 2 + r, |r| <= ln 2 / 2; adding 1.5 * 2^52 rounds to an integer in the low bits.
  constexpr double kRound = 0x1.8p52;
  const Real shifted = x * 0x1.71547652b82fep0 + kRound;
  const Real n = shifted - kRound;  // the low bits of `shifted` hold it as an integer
  const Real r = (x - n * kLn2High) - n * kLn2Low;
  Real p = Real{} + 1.0 / 6227020800.0;  // Taylor's series; the first term left out is below 4e-18
  p = p * r + 1.0 / 479001600.0;
  p = p * r + 1.0 / 39916800.0;
  p = p * r + 1.0 / 3628800.0;
  p = p * r + 1.0 / 362880.0;
  p = p * r + 1.0 / 40320.0;
  p = p * r + 1.0 / 5040.0;
  p = p * r + 1.0 / 720.0;
  p = p * r + 1.0 / 120.0;
  p = p * r + 1.0 / 24.0;
  p = p * r + 1.0 / 6.0;
  p = p * r + 0.5;
  p = p * r * r + r;  // exp(r) - 1
  // Two factors, because 2^n alone may be subnormal.
  const Bits exponent = bit_cast<Bits>(shifted) - bit_cast<uint64_t>(kRound);
  const Bits biased = exponent + 4096u;  // not negative, so that a plain shift halves it
  const Bits half = (biased >> 1) - 2048u;
  return ((1.0 + p) * power_of_two<Real>(half)) * power_of_two<Real>(Bits(exponent - half));
}

ATS_HD inline double portable_exp(double x) { return portable_exp<double, uint64_t>(x); }

// log(x) for finite x > 0.
ATS_HD inline double portable_log(double x) {
  int64_t exponent = 0;
  if (x < std::numeric_limits<double>::min()) {
    x *= 0x1p54;
    exponent = -54;
  }
  const uint64_t bits = bit_cast<uint64_t>(x);
  exponent += int64_t(bits >> 52) - 1023;
  double m = bit_cast<double>((bits & 0xfffffffffffffull) | 0x3ff0000000000000ull);
  if (m > 1.4142135623730951) {
    m *= 0.5;
    exponent += 1;
  }
  // log m = 2 atanh(f), f = (m - 1) / (m + 1), |f| < 0.1716
  const double f = (m - 1.0) / (m + 1.0);
  const double s = f * f;
  double p = 1.0 / 23.0;
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
  const double n = double(exponent);
  return n * kLn2High + (2.0 * f + (2.0 * f * s * p + n * kLn2Low));
}

}  // namespace ats
