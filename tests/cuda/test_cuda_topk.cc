// topk on a GPU takes what it takes on the CPU, bit for bit.
#include "sample_cases.h"

namespace {

template <typename T>
void test_shapes(const std::vector<Case>& cases) {
  for (Case c : cases) {
    for (const bool logits : {false, true}) {
      c.top = true;
      c.logits = logits;
      c.gap = c.cells % 3;
      check_same(some_cells<T>(c, uint64_t(c.cells)), c);
    }
  }
}

void test_long_rows() {
  Case c{1, 32 * 32 * 32 * 40 + 17, 600};
  c.top = true;
  check_same(some_cells<float>(c, 1), c);
  c.logits = true;
  c.n = 20;
  check_same(some_cells<ats::bfloat16>(c, 2), c);
}

// The last cells taken are some of many that are equal; zeros of either sign are.
template <typename T>
void test_ties() {
  std::mt19937_64 random(3);
  for (const int64_t cells : {40, 3000}) {
    for (const int64_t n : {1, 33, 40}) {
      for (const int kinds : {1, 2, 5}) {
        for (const bool logits : {false, true}) {
          Case c{2, cells, n, logits};
          c.top = true;
          std::vector<T> data(size_t(2 * cells));
          for (T& x : data) {
            const int kind = int(random() % uint64_t(kinds));
            x = ats::store<T>(logits ? kind == 0 ? -0.0 : kind == 1 ? 0.0 : -kind : kind * 0.5);
          }
          data[size_t(cells - 1)] = data[size_t(2 * cells - 2)] = ats::store<T>(3.0);
          check_same(data, c);
        }
      }
    }
  }
}

void test_scales() {
  std::mt19937_64 random(4);
  std::uniform_real_distribution<double> exponent(-300.0, 300.0), logit(-1e4, 1e4);
  for (const int64_t cells : {50, 33000}) {
    Case c{2, cells, 30};
    c.top = true;
    std::vector<double> wide(size_t(2 * cells)), tiny(wide), huge(wide), logits(wide);
    for (size_t i = 0; i < wide.size(); ++i) {
      wide[i] = std::pow(10.0, exponent(random));
      tiny[i] = 5e-324 * double(random() % 100 + 1);
      huge[i] = 1.7e308;
      logits[i] = i % 5 ? logit(random) : -INFINITY;
    }
    check_same(wide, c);
    check_same(tiny, c);
    check_same(huge, c);
    c.logits = true;
    check_same(logits, c);
  }
}

template <typename T>
void test_bad_rows(std::initializer_list<int64_t> sizes) {
  for (const int64_t cells : sizes) {
    for (const bool logits : {false, true}) {
      Case c{6, cells, 5, logits};
      c.top = true;
      std::vector<T> data = some_cells<T>(c, 9);
      const auto put = [&](int64_t row, int64_t cell, double x) {
        data[size_t(row * cells + cell)] = ats::store<T>(x);
      };
      const double nothing = logits ? -INFINITY : 0.0;
      put(1, cells - 1, NAN);
      put(2, cells / 2, INFINITY);
      for (int64_t cell = 0; cell < cells; ++cell) put(3, cell, nothing), put(5, cell, nothing);
      put(4, cells - 2, logits ? NAN : -1.0);
      put(5, 3, 1.0);  // the rest of what is taken has no weight
      check_same(data, c, 4);
    }
  }
}

template <typename T>
void test_noise() {
  std::mt19937_64 random(10);
  for (int round = 0; round < 20; ++round) {
    const int64_t cells = 1 + int64_t(random() % 300);
    Case c{4, cells, 1 + int64_t(random() % uint64_t(cells)), random() % 2 == 0};
    c.top = true;
    std::vector<T> data(size_t(4 * cells));
    for (T& x : data) {
      const uint64_t bits = random();
      std::memcpy(&x, &bits, sizeof(T));
      const double value = double(ats::load(x));
      // Else hardly a row would be good.
      if (random() % 256 && !std::isfinite(value)) x = ats::store<T>(1.0);
      else if (random() % 256 && !c.logits && value < 0) x = ats::store<T>(-value);
    }
    check_same(data, c, -1);
  }
}

}  // namespace

int main() {
  const std::vector<Case> small{{1, 1, 1}, {3, 7, 7}, {2, 33, 5}, {3, 1000, 40}, {0, 10, 2}};
  const std::vector<Case> large{{1, 2500, 1500}, {1, 32769, 7}};
  in_every_order([&] { test_shapes<float>(small); });
  test_shapes<float>(large);
  test_shapes<double>(small);
  test_shapes<ats::float16>(large);
  test_long_rows();
  test_ties<float>();
  test_ties<double>();
  test_scales();
  test_bad_rows<float>({40});
  test_bad_rows<ats::bfloat16>({33000});
  test_noise<float>();
  test_noise<double>();
  return finish();
}
