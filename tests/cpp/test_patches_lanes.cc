// The vector loops of extract_patches give what load and store of half.h give, bit for bit, for every instruction set
// that this machine has, and write nothing but the row.
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "check.h"
#include "every_cpu.h"
#include "patches_sums.h"

using namespace ats;

template <typename T>
bool same_bits(T a, T b) {
  return std::memcmp(&a, &b, sizeof(T)) == 0;
}

// Every element of `from` through ConvertRows.
template <typename In, typename Out, typename A>
void test_values(const std::vector<In>& from) {
  std::vector<Out> to(from.size());
  const int64_t count = int64_t(from.size());
  on_every_cpu<ConvertRows<In, Out, A, false>>(
      [&](const auto& run) {
        run();
        int64_t wrong = 0;
        for (size_t i = 0; i < from.size(); ++i) wrong += !same_bits(to[i], store<Out>(A(load(from[i]))));
        CHECK(wrong == 0);
      },
      from.data(), int64_t(0), to.data(), int64_t(0), int64_t(1), count, static_cast<const A*>(nullptr),
      static_cast<const A*>(nullptr), int64_t(1));
}

template <typename In>
std::vector<In> every_value() {
  std::vector<In> values(65536);
  for (uint32_t i = 0; i < 65536; ++i) values[i] = bit_cast<In>(uint16_t(i));
  return values;
}

// Around every value of a half dtype and every tie between two of them, and any bits at all.
template <typename T, typename Half>
std::vector<T> hard_values(std::mt19937_64& random) {
  std::vector<T> values;
  for (uint32_t i = 0; i < 65536; ++i) {
    const T x = T(to_float(bit_cast<Half>(uint16_t(i)))), next = T(to_float(bit_cast<Half>(uint16_t(i ^ 1u))));
    for (const T y : {x, (x + next) / 2})
      for (const T z : {y, std::nextafter(y, T(INFINITY)), std::nextafter(y, -T(INFINITY))}) values.push_back(z);
  }
  using Bits = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
  for (int i = 0; i < 100000; ++i) values.push_back(bit_cast<T>(Bits(random())));
  return values;
}

// Widths around the length of a vector, with every number of channels in the pattern of means.
void test_widths() {
  std::vector<uint8_t> from(400);
  for (size_t i = 0; i < from.size(); ++i) from[i] = uint8_t(i * 37);
  const double means[] = {120.0, 110.5, 3.0, 0.25, 9.0}, stds[] = {60.0, 61.0, 0.3, 7.0, 2.0};
  for (int64_t channels = 1; channels <= 5; ++channels) {
    const Normalization<float> by(channels, means, stds, true);
    for (const int64_t count : {1, 2, 15, 16, 17, 31, 32, 33, 48, 50, 63, 64, 65, 150}) {
      std::vector<float> to(400);
      on_every_cpu<ConvertRows<uint8_t, float, float, true>>(
          [&](const auto& run) {
            std::fill(to.begin(), to.end(), -1.0f);
            run();
            for (int64_t i = 0; i < 400; ++i) {
              const int64_t x = i % 200, c = x % channels;
              const float expected = x < count ? (float(from[size_t(i)]) - float(means[c])) / float(stds[c]) : -1.0f;
              CHECK(to[size_t(i)] == expected);
            }
          },
          static_cast<const uint8_t*>(from.data()), int64_t(200), to.data(), int64_t(200), int64_t(2), count,
          by.mean_of(0), by.std_of(0), by.period());
      std::vector<uint8_t> copy(400);
      on_every_cpu<CopyRows<uint8_t>>(
          [&](const auto& run) {
            std::fill(copy.begin(), copy.end(), uint8_t(1));
            run();
            for (int64_t i = 0; i < 400; ++i) CHECK(copy[size_t(i)] == (i % 200 < count ? from[size_t(i)] : 1));
          },
          static_cast<const uint8_t*>(from.data()), int64_t(200), copy.data(), int64_t(200), int64_t(2), count);
    }
  }
}

// Sums of integers for every way that a row of patch pixels can lie, at their largest and at random.
template <typename In, typename Lane>
void test_sums(std::mt19937_64& random) {
  constexpr int64_t kStep = 1100, kMost = 1024;
  std::vector<In> from(size_t(kStep) * 8);
  for (const bool largest : {true, false}) {
    for (In& x : from) x = largest ? std::numeric_limits<In>::max() : In(random());
    for (int64_t channels = 1; channels <= 5; ++channels) {
      for (const int64_t scale : {2, 3, 4, 5, 8, 16}) {
        for (const int64_t pixels : {1, 2, 7, 8, 9, 16, 17, 31, 50, 64, 200}) {
          const int64_t count = pixels * scale * channels, slices = 1 + scale % 2, rows = 1 + scale % 4;
          if (count > kMost) continue;
          std::vector<Lane> columns(kMost), sums(kMost), picked(kMost);
          std::vector<double> averages(kMost);
          on_every_cpu<SumRows<In, Lane>>(
              [&](const auto& run) {
                std::fill(columns.begin(), columns.end(), Lane(77));
                run();
                for (int64_t i = 0; i < kMost; ++i) {
                  int64_t sum = i < count ? 0 : 77;
                  for (int64_t row = 0; i < count && row < slices * rows; ++row)
                    sum += from[size_t(row / rows * 4 * kStep + row % rows * kStep + i)];
                  CHECK(columns[size_t(i)] == Lane(sum));
                }
              },
              static_cast<const In*>(from.data()), 4 * kStep, slices, kStep, rows, count, columns.data());
          const double divisor = double(scale * slices * rows);
          for (const double inverse : {0.0, 1 / divisor}) {
            if (inverse * 64 != std::floor(inverse * 64)) continue;  // not exact
            on_every_cpu<AverageColumns<Lane>>(
                [&](const auto& run) {
                  std::fill(averages.begin(), averages.end(), -1.0);
                  run();
                  for (int64_t i = 0; i < kMost; ++i) {
                    int64_t sum = 0;
                    for (int64_t k = 0; i < pixels * channels && k < scale; ++k)
                      sum += columns[size_t((i / channels * scale + k) * channels + i % channels)];
                    CHECK(averages[size_t(i)] == (i < pixels * channels ? double(sum) / divisor : -1.0));
                  }
                },
                static_cast<const Lane*>(columns.data()), scale, channels, pixels, divisor, inverse, sums.data(),
                picked.data(), averages.data());
          }
        }
      }
    }
  }
}

int main() {
  std::mt19937_64 random(11);
  test_values<float16, float, float>(every_value<float16>());
  test_values<bfloat16, float, float>(every_value<bfloat16>());
  test_values<int16_t, float, float>(every_value<int16_t>());
  test_values<uint16_t, float16, float>(every_value<uint16_t>());
  test_values<float16, bfloat16, float>(every_value<float16>());
  test_values<float, float16, float>(hard_values<float, float16>(random));
  test_values<float, bfloat16, float>(hard_values<float, bfloat16>(random));
  test_values<double, float16, double>(hard_values<double, float16>(random));
  test_values<double, bfloat16, double>(hard_values<double, bfloat16>(random));
  test_widths();
  test_sums<uint8_t, uint16_t>(random);
  test_sums<uint8_t, int32_t>(random);
  test_sums<int16_t, int32_t>(random);
  test_sums<uint16_t, int32_t>(random);
  return finish();
}
