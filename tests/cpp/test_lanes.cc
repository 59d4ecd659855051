// What the vector loops give is what the scalar code gives, bit for bit, for every instruction set that this machine has.
#include <random>
#include <vector>

#include "check.h"
#include "sample_rows.h"

using namespace ats;

template <typename Loop, typename Same, typename... Args>
void on_every_cpu(const Same& same, Args... args) {
  same([&] { return Loop::run(args...); });
#if defined(__x86_64__)
  if (this_cpu() >= Cpu::avx2) same([&] { return run_avx2<Loop>(args...); });
  if (this_cpu() >= Cpu::avx512) same([&] { return run_avx512<Loop>(args...); });
#endif
  same([&] { return on_this_cpu<Loop>(args...); });
}

bool same_bits(double a, double b) { return bit_cast<uint64_t>(a) == bit_cast<uint64_t>(b); }

template <typename T, bool Logits>
void test_sums(std::mt19937_64& random) {
  for (const int64_t cells : {1, 7, 31, 32, 33, 64, 1000, 32 * 32 * 3 + 5}) {
    std::uniform_real_distribution<double> any(Logits ? -900.0 : 0.0, Logits ? 0.0 : 3.0);
    std::vector<T> data(static_cast<size_t>(cells));
    for (T& x : data) x = store<T>(any(random));
    const Row<T, Logits> row{data.data(), cells, {}};
    const int64_t groups = (cells + kFan - 1) / kFan;
    std::vector<double> sums(static_cast<size_t>(groups));
    on_every_cpu<SumFreshGroups<T, Logits>>(
        [&](const auto& run) {
          std::fill(sums.begin(), sums.end(), -1.0);
          run();
          for (int64_t g = 0; g < groups; ++g) CHECK(same_bits(sums[static_cast<size_t>(g)], sum_fresh_group(row, g)));
        },
        row, int64_t(0), groups, sums.data());

    double largest = double(load(data[0]));
    for (const T& x : data) largest = std::fmax(largest, double(load(x)));
    on_every_cpu<Largest<T>>([&](const auto& run) { CHECK(run() == largest); }, static_cast<const T*>(data.data()),
                             int64_t(0), cells);
    if (Logits) continue;
    data[static_cast<size_t>(cells / 2)] = store<T>(-1.0);  // one negative weight: some sum is NaN
    on_every_cpu<SumFreshGroups<T, Logits>>(
        [&](const auto& run) {
          run();
          bool found = false;
          for (const double sum : sums) found |= std::isnan(sum);
          CHECK(found);
        },
        row, int64_t(0), groups, sums.data());
  }
}

struct Exponentials {
  ATS_INLINE static void run(const double* x, int64_t count, double* y) {
    for (int64_t i = 0; i < count; i += kLanes) {
      const Doubles lanes = portable_exp<Doubles, Words>(load_lanes(x + i));
      memcpy(y + i, &lanes, sizeof(lanes));
    }
  }
};

void test_exp(std::mt19937_64& random) {
  std::uniform_real_distribution<double> any(-800.0, 709.0);
  std::vector<double> x = {0.0, -0.0, -INFINITY, double(NAN), 709.0, -745.1, -746.0, -1e300};
  while (x.size() < 8000) x.push_back(x.size() % 3 ? any(random) : any(random) * 1e-3);
  std::vector<double> y(x.size());
  on_every_cpu<Exponentials>(
      [&](const auto& run) {
        run();
        for (size_t i = 0; i < x.size(); ++i)
          CHECK(same_bits(y[i], portable_exp(x[i])) || (std::isnan(y[i]) && std::isnan(portable_exp(x[i]))));
      },
      static_cast<const double*>(x.data()), int64_t(x.size()), y.data());
}

int main() {
  std::mt19937_64 random(7);
  test_sums<float, false>(random);
  test_sums<float, true>(random);
  test_sums<double, false>(random);
  test_sums<double, true>(random);
  test_sums<float16, false>(random);
  test_sums<float16, true>(random);
  test_sums<bfloat16, false>(random);
  test_sums<bfloat16, true>(random);
  test_exp(random);
  return finish();
}
