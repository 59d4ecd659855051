// The scalar formulas of patches, each beside what defines it.
#include "patches_math.h"

#include <random>
#include <vector>

#include "check.h"
#include "cuda_divide.cuh"
#include "exact_divide.h"
#include "half.h"

using namespace ats;

namespace {

std::mt19937_64 engine(11);
int64_t pick(int64_t low, int64_t high) { return low + int64_t(engine() % uint64_t(high - low + 1)); }

// positions_of lists the positions at which source_pixel gives the pixel, in order.
void test_positions() {
  int64_t wrong = 0;
  for (int64_t size = 1; size <= 9; ++size)
    for (int64_t patch = 1; patch <= 7; ++patch)
      for (int64_t scale = 1; scale <= 3; ++scale)
        for (int64_t origin = -40; origin <= 40; ++origin)
          for (int padding = ATS_PAD_CONSTANT; padding <= ATS_PAD_REFLECT; ++padding) {
            const Axis axis{size, patch, scale};
            const int64_t start = patch_start(axis, origin, padding);
            for (int64_t pixel = 0; pixel < size; ++pixel) {
              std::vector<int64_t> expected, got;
              for (int64_t p = 0; p < scale * patch; ++p)
                if (source_pixel(axis, start + p, padding) == pixel) expected.push_back(p);
              const Positions at = positions_of(axis, start, pixel, padding);
              int turn = 0;
              for (int64_t p = at.first; p < at.stop; p += at.gap[turn++ & 1]) got.push_back(p);
              wrong += got != expected;
            }
          }
  CHECK(wrong == 0);
}

// divide_exactly gives the bits of a division, for every pixel of 8 bits and many of 16.
void test_division() {
  int64_t wrong = 0, tried = 0;
  const auto test = [&](float mean, float std) {
    if (!divides_exactly(mean, std)) return;
    ++tried;
    for (int i = 0; i < 1024; ++i) {
      const float x = float(i < 256 ? i : pick(-32768, 65535)) - mean;
      const float expected = x / std, got = divide_exactly(x, std, 1.0f / std);
      wrong += bit_cast<uint32_t>(expected) != bit_cast<uint32_t>(got);
    }
  };
  for (const float mean : {0.0f, -0.0f, 127.5f, 0x1p-30f, -0x1p30f, 123.675f, 255.0f})
    for (const float std : {1.0f, -1.0f, 58.395f, 0x1p-30f, 0x1p30f, -0.1f, 3.0f, std::nextafter(2.0f, 1.0f),
                            std::nextafter(1.0f, 2.0f), 255.0f})
      test(mean, std);
  for (int i = 0; i < 4000; ++i) {
    // Any bits, with exponents of the whole range that is allowed.
    const uint64_t bits = engine();
    const float fraction = bit_cast<float>(uint32_t(bits & 0x7fffffu) | 0x3f800000u);
    const float other = bit_cast<float>(uint32_t(bits >> 23 & 0x7fffffu) | 0x3f800000u);
    test((bits >> 62 & 1 ? -1.0f : 1.0f) * std::ldexp(other, int(pick(-30, 29))),
         (bits >> 63 ? -1.0f : 1.0f) * std::ldexp(fraction, int(i % 2 ? pick(-30, 29) : pick(-3, 8))));
  }
  CHECK(tried > 4000);
  CHECK(wrong == 0);
  CHECK(!divides_exactly(0.0f, 0x1p-31f));
  CHECK(!divides_exactly(1e-20f, 1.0f));
  CHECK(!divides_exactly(NAN, 1.0f));
}

void test_integer_division() {
  int64_t wrong = 0;
  std::vector<int64_t> sizes{int64_t(1) << 30, (int64_t(1) << 30) - 1, 1, 2, 3, 5, 7, 641, 65537};
  for (int i = 0; i < 2000; ++i) sizes.push_back(pick(1, int64_t(1) << pick(0, 30)));
  for (const int64_t size : sizes) {
    const cuda::Divider by(size);
    for (int i = 0; i < 200; ++i) {
      int64_t n = i % 2 ? pick(0, INT32_MAX) : pick(0, INT32_MAX / size) * size - i % 4 / 2;
      if (n < 0) n = 0;
      wrong += int64_t(by.divide(uint32_t(n))) != n / size;
    }
    wrong += by.divide(INT32_MAX) != uint32_t(INT32_MAX / size);
  }
  CHECK(wrong == 0);
  for (const int64_t size : {int64_t(3), int64_t(1) << 30, (int64_t(1) << 30) + 1, int64_t(1) << 40}) {
    const cuda::Digit digit(size);
    for (const int64_t value : {int64_t(0), size - 1, size, size + (1 << 19), int64_t(12345678901)}) {
      int64_t rest = value;
      CHECK(digit.split(rest) == value / size);
      CHECK(rest == value % size);
      if (value >= size + (1 << 20)) continue;
      rest = value;
      CHECK(digit.carry(rest) == value / size);
      CHECK(rest == value % size);
    }
  }
}

}  // namespace

int main() {
  test_positions();
  test_division();
  test_integer_division();
  return finish();
}
