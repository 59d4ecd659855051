// The expectation's vector loops: murthy and sums over features with the same bits
// on every instruction set that this machine has.
#include <cmath>
#include <memory>
#include <random>
#include <vector>

#include "check.h"
#include "every_cpu.h"
#include "expectation_features.h"
#include "murthy_lanes.h"

using namespace ats;

// Runs the loop for every instruction set; `same` gets a function that runs it.
template <typename T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

template <typename F>
void test_features(std::mt19937_64& random) {
  using Scalar = FeatureScalar<F>;
  std::normal_distribution<double> normal;
  for (const int64_t width : {1, 5, 15, 16, 17, 40, 100}) {
    const int64_t n = 3;
    std::vector<F> f(size_t(n * width)), out(static_cast<size_t>(width)), expected;
    std::vector<Scalar> sums(size_t(width) + 16);
    for (F& x : f) x = store<F>(normal(random));
    const double c[] = {0.25, 0.1, 1.5};
    double dot = 0.0;
    for (int64_t k = 0; k < width; ++k) {
      Scalar sum = 0;
      for (int64_t i = 0; i < n; ++i) sum += Scalar(c[i]) * Scalar(load(f[size_t(i * width + k)]));
      expected.push_back(store<F>(sum));
      dot += double(load(f[size_t(k)])) * double(load(f[size_t(width + k)]));
    }
    on_every_cpu<WeightedSum<F>>(
        [&](const auto& run) {
          run();
          CHECK(same_bits(out, expected));
        },
        +c, n, static_cast<const F*>(f.data()), width, width, sums.data(), out.data());
    double dots[7];  // a row comes out the same wherever it stands
    on_every_cpu<DotProducts<F>>(
        [&](const auto& run) {
          run();
          for (const double one : dots) CHECK(one == dots[0] && std::fabs(one - dot) <= 1e-13 * double(width));
        },
        static_cast<const F*>(f.data()), int64_t{0}, int64_t{7}, static_cast<const F*>(f.data() + width), width, +dots);
    for (int64_t k = 0; k < width; ++k) expected[size_t(k)] = store<F>(Scalar(0.1) * Scalar(load(f[size_t(k)])));
    on_every_cpu<Scaled<F>>(
        [&](const auto& run) {
          run();
          CHECK(same_bits(out, expected));
        },
        0.1, static_cast<const F*>(f.data()), width, out.data());
  }
}

void test_murthy(std::mt19937_64& random) {
  std::exponential_distribution<double> share;
  for (const int64_t n : {2, 7, 8, 9, 33}) {
    for (const double mass : {1e-9, 0.5, 1.0 - 1e-12}) {
      std::vector<double> a(static_cast<size_t>(n)), h(a);
      double sum = 0.0;
      for (double& x : a) sum += x = share(random);
      for (double& x : a) x *= mass / sum;
      for (double& x : h) x = share(random) - 1.0;
      const double rest = mass_left({a.data(), n, 0.0, nullptr});
      std::vector<double> scratch(size_t((n + 24) * (n + 24)) + 8);
      void* aligned = scratch.data();
      size_t room = scratch.size() * sizeof(double);
      double* const memory = static_cast<double*>(std::align(sizeof(Doubles), 64, aligned, room));
      std::vector<double> c(a.size()), da(a.size()), m(size_t(n * n));
      std::vector<std::vector<double>> results;
      const double *attention = a.data(), *values = h.data();
      on_every_cpu<MurthyMatrix<double>>([&](const auto& run) { run(), results.push_back(m), results.push_back(c); },
                                         attention, MurthySize(n), rest, memory, c.data(), m.data());
      for (size_t i = 2; i < results.size(); ++i) CHECK(same_bits(results[i], results[i % 2]));
      on_every_cpu<MurthyCoefficients>(
          [&](const auto& run) {
            run();
            CHECK(same_bits(c, results[1]));
          },
          attention, MurthySize(n), rest, memory, c.data());
      std::vector<double> first;
      on_every_cpu<MurthyGradient>(
          [&](const auto& run) {
            run();
            CHECK(same_bits(c, results[1]));
            if (first.empty()) first = da;
            CHECK(same_bits(da, first));
          },
          attention, MurthySize(n), rest, values, memory, c.data(), da.data());
      for (int64_t i = 0; i < n; ++i) {  // M h
        double product = 0.0, size = 0.0;
        for (int64_t j = 0; j < n; ++j) {
          product += results[0][size_t(i * n + j)] * h[size_t(j)];
          size += std::fabs(results[0][size_t(i * n + j)] * h[size_t(j)]);
        }
        CHECK(std::fabs(first[size_t(i)] - product) <= 1e-12 * size);
      }
    }
  }
}

void test_race_ratio() {
  for (double x = 1e-320; x < 1e290; x *= 1.7) {
    const double exact = x < 1e-12 ? 1.0 + 0.5 * x : x / -std::expm1(-x);
    const double found = race_ratio<double, uint64_t>(x);
    CHECK(std::fabs(found / exact - 1.0) < 4e-15);
    CHECK((race_ratio<Doubles, Words>(Doubles{} + x)[5] == found));
  }
  CHECK((race_ratio<double, uint64_t>(0.0) == 1.0));
}

int main() {
  std::mt19937_64 random(7);
  test_features<float16>(random);
  test_features<bfloat16>(random);
  test_features<float>(random);
  test_features<double>(random);
  test_race_ratio();
  test_murthy(random);
  return finish();
}
