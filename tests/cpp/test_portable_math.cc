// exp, log, Philox and the half dtypes against other definitions of the same things.
#include <cmath>
#include <cstdlib>
#include <initializer_list>

#include "check.h"
#include "half.h"
#include "philox.h"
#include "portable_math.h"

namespace {

// How far `value` is from `exact`, in units of the last place of exact.
double ulps(double value, long double exact) {
  const double rounded = double(exact);
  const double spacing = std::nextafter(std::fabs(rounded), INFINITY) - std::fabs(rounded);
  return double(std::fabs((long double)value - exact) / spacing);
}

void test_exp_log() {
  double worst_exp = 0.0, worst_log = 0.0;
  for (int i = 0; i <= 200000; ++i) {
    const double x = -700.0 + 1400.0 * i / 200000.0;
    worst_exp = std::fmax(worst_exp, ulps(ats::portable_exp(x), std::exp((long double)x)));
    const double y = std::exp(x) * (1.0 + 1e-3 * (i % 997));
    worst_log = std::fmax(
        worst_log, std::fabs(ats::portable_log(y)) < 1e-3 ? 0.0 : ulps(ats::portable_log(y), std::log((long double)y)));
  }
  std::printf("worst error: exp %.2f ulp, log %.2f ulp\n", worst_exp, worst_log);
  CHECK(worst_exp < 2.0);
  CHECK(worst_log < 2.0);
  CHECK(ats::portable_exp(0.0) == 1.0);
  CHECK(ats::portable_exp(-INFINITY) == 0.0);
  CHECK(ats::portable_exp(-1e300) == 0.0);
  CHECK(ats::portable_exp(-800.0) == 0.0);
  CHECK(std::isnan(ats::portable_exp(NAN)));
  CHECK(ats::portable_exp(-708.0) > 0.0 && ats::portable_exp(-708.1) == 0.0);
  CHECK(ats::portable_log(1.0) == 0.0);
  CHECK(std::fabs(ats::portable_log(5e-324) - std::log(5e-324)) < 1e-12);
  for (double x = -0.5; x < 0.5; x += 1e-3)  // near 1, where digits cancel
    CHECK(x == 0.0 ||
          std::fabs(ats::portable_log(1.0 + x) - std::log(1.0 + x)) <= 4e-16 * std::fabs(std::log(1.0 + x)));
}

// x - reference is exact whatever their sizes, so that the error does not grow with them.
void test_float_exp() {
  double worst = 0.0;
  for (const float reference : {0.0f, 0.1f, -3.7f, 88.8f, -1e4f, 1e4f, 12345.678f, -3e7f}) {
    for (int i = 0; i <= 100000; ++i) {
      const float x = float(double(reference) - 707.9 * i / 100000.0 * (i % 3 ? 1.0 : 0.01));
      const double difference = double(x) - double(reference);
      if (difference < -708.0 || difference > 0.0) continue;
      const double exact = std::exp(difference);
      worst = std::fmax(worst, std::fabs(ats::float_exp(x, reference) - exact) / exact);
    }
  }
  std::printf("worst error of exp of floats: %.3g\n", worst);
  CHECK(worst < 3e-7);
  for (const float reference : {0.0f, 1e-30f, -7.5f, 1e4f, -3e38f, 3e38f})
    CHECK(ats::float_exp(reference, reference) == 1.0 && ats::float_exp(-INFINITY, reference) == 0.0);
  CHECK(ats::float_exp(-708.0f, 0.0f) > 0.0 && ats::float_exp(-708.1f, 0.0f) == 0.0);
  CHECK(ats::float_exp(-3e38f, 3e38f) == 0.0 && ats::float_exp(-3e38f, 0.0f) == 0.0);
  for (const float nan : {NAN, -NAN}) CHECK(std::isnan(ats::float_exp(nan, 1.0f)));
  CHECK(std::isnan(ats::float_exp(INFINITY, INFINITY)) && std::isnan(ats::float_exp(-INFINITY, -INFINITY)));
}

void check_philox(uint64_t key, uint64_t low, uint64_t high, const uint64_t (&expected)[4]) {
  uint64_t word[4];
  ats::philox(key, low, high, word);
  for (int i = 0; i < 4; ++i) CHECK(word[i] == expected[i]);
}

void test_philox() {
  // The known answers that come with Random123, the reference implementation.
  const uint64_t ones = ~uint64_t(0), low = 0xffffffffu;
  check_philox(0, 0, 0, {0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u});
  check_philox(ones, ones, ones, {0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu});
  check_philox(0x299f31d0a4093822u, 0x85a308d3243f6a88u, 0x0370734413198a2eu,
               {0xd16cfe09u, 0x94fdccebu, 0x5001e420u, 0x24126ea1u});
  CHECK(ats::uniform_below_one<double>(uint64_t(0), uint64_t(0)) == 0.0);
  CHECK(ats::uniform_below_one<double>(low, low) == 1.0 - 0x1p-53);
  CHECK(ats::uniform_below_one<double>(uint64_t(1), uint64_t(1) << 11) == 0x1p-32 + 0x1p-53);
  CHECK(ats::uniform_above_zero<double>(uint64_t(0), uint64_t(0)) == 0x1p-53);
  CHECK(ats::uniform_above_zero<double>(low, low) == 1.0);
}

// float16 by its definition: sign, exponent, fraction.
double half_value(uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  const double magnitude = exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
  return bits & 0x8000 ? -magnitude : magnitude;
}

void test_halves() {
  int wrong = 0;
  for (int bits = 0; bits < 65536; ++bits) {
    const ats::float16 h{uint16_t(bits)};
    if ((bits & 0x7c00) == 0x7c00) {
      wrong += (bits & 0x3ff) ? !std::isnan(ats::to_float(h)) : !std::isinf(ats::to_float(h));
    } else {
      wrong += double(ats::to_float(h)) != half_value(uint16_t(bits));
      wrong += ats::to_float16(ats::to_float(h)).bits != bits;
    }
    const ats::bfloat16 b{uint16_t(bits)};
    const float value = ats::to_float(b);
    wrong +=
        std::isnan(value) ? !std::isnan(ats::to_float(ats::to_bfloat16(value))) : ats::to_bfloat16(value).bits != bits;
  }
  CHECK(wrong == 0);
  // Between two neighbours: the nearer, and the even one in the middle. From float and, without rounding twice, double.
  for (int bits = 0; bits < 0x7bff; ++bits) {
    const double low = half_value(uint16_t(bits)), high = half_value(uint16_t(bits + 1)), middle = 0.5 * (low + high);
    wrong += ats::store<ats::float16>(float(middle)).bits != bits + (bits & 1);
    wrong += ats::store<ats::float16>(middle).bits != bits + (bits & 1);
    wrong += ats::store<ats::float16>(std::nextafter(middle, 0.0)).bits != bits;
    wrong += ats::store<ats::float16>(std::nextafter(middle, INFINITY)).bits != bits + 1;
    wrong += ats::store<ats::float16>(-std::nextafter(middle, INFINITY)).bits != (bits + 1) + 0x8000;
  }
  CHECK(wrong == 0);
  CHECK(std::isinf(ats::to_float(ats::store<ats::float16>(65520.0f))));
  CHECK(ats::to_float(ats::store<ats::float16>(65519.0f)) == 65504.0f);
  CHECK(ats::to_float(ats::store_clamped<ats::float16>(1e300)) == 65504.0f);
  CHECK(ats::store_clamped<float>(-INFINITY) == -std::numeric_limits<float>::max());
  CHECK(ats::store<uint8_t>(2.5f) == 2 && ats::store<uint8_t>(3.5f) == 4);
  CHECK(ats::store<uint8_t>(-1.0f) == 0 && ats::store<uint8_t>(256.0f) == 255 && ats::store<uint8_t>(NAN) == 0);
  CHECK(ats::store<int16_t>(-1e30) == -32768 && ats::store<int16_t>(1e30) == 32767);
}

}  // namespace

int main() {
  test_exp_log();
  test_float_exp();
  test_philox();
  test_halves();
  return finish();
}
