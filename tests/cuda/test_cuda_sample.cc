// sample on a GPU draws what it draws on the CPU, bit for bit, and touches nothing else whatever the weights hold.
#include "sample_cases.h"

namespace {

template <typename T>
void test_shapes(const std::vector<Case>& cases) {
  for (Case c : cases) {
    for (const bool logits : {false, true}) {
      for (const bool replace : {false, true}) {
        c.logits = logits;
        c.replace = replace;
        c.gap = c.cells % 3;
        check_same(some_cells<T>(c, uint64_t(c.cells)), c);
      }
    }
  }
}

const std::vector<Case> kSmall{{1, 1, 1}, {3, 7, 7}, {2, 32, 32}, {2, 33, 5}, {2, 1025, 33}, {0, 10, 2}};
const std::vector<Case> kLarge{{1, 32768, 20}, {1, 32769, 5}};

// Rows with a level above the chunks' three and another above that one.
void test_long_rows() {
  const int64_t cells = 32 * 32 * 32 * 40 + 17;
  Case c{1, cells, 35};
  check_same(some_cells<float>(c, 1), c);
  c = {1, cells, 10, true, true};
  check_same(some_cells<ats::bfloat16>(c, 2), c);
}

void test_every_cell() {
  for (const int64_t cells : {1, 31, 32, 33, 300}) {
    Case c{2, cells, cells};
    check_same(some_cells<float>(c, 4), c);
    c.logits = true;
    check_same(some_cells<double>(c, 5), c);
  }
}

// Masses that leave double's range, so that the scale moves, in rows of one chunk and of two.
void test_scales() {
  std::mt19937_64 random(3);
  std::uniform_real_distribution<double> exponent(-300.0, 300.0), small(-38.0, 38.0), logit(-1e4, 1e4);
  for (const int64_t cells : {50, 3000, 33000}) {
    Case c{2, cells, cells < 100 ? cells : 12};
    std::vector<double> wide(size_t(2 * cells)), tiny(wide), huge(wide), logits(wide), few(wide);
    std::vector<float> floats(wide.size());
    for (size_t i = 0; i < wide.size(); ++i) {
      wide[i] = std::pow(10.0, exponent(random));
      floats[i] = float(std::pow(10.0, small(random)));
      tiny[i] = 5e-324 * double(random() % 100 + 1);
      huge[i] = 1.7e308;
      logits[i] = logit(random);
      few[i] = i % 17 == 0 ? logit(random) : -INFINITY;
    }
    check_same(wide, c);
    if (cells < 10000) check_same(floats, c);
    if (cells < 10000) check_same(tiny, c);
    check_same(huge, c);
    c.logits = true;
    if (cells < 10000) check_same(logits, c);  // nearly every draw builds the tree again
    c.n = 3;
    check_same(few, c);
    std::vector<float> far(wide.size(), -1e4f);
    far[0] = far.back() = 1e4f;
    check_same(far, c);
  }
}

void test_random_numbers() {
  const int64_t ends[] = {0, -1, std::numeric_limits<int64_t>::min(), std::numeric_limits<int64_t>::max()};
  for (const int64_t seed : ends) {
    for (const int64_t offset : ends) {
      Case c{3, 40, 40};
      c.seed = seed;
      c.offset = offset;
      check_same(some_cells<float>(c, 6), c);
    }
  }
}

void test_strides() {
  for (const int64_t stride : {int64_t(0), int64_t(-50), int64_t(61)}) {
    std::mt19937_64 random(8);
    std::vector<float> data(200), rows;
    for (float& x : data) x = float(random() % 100 + 1);
    const float* first = data.data() + (stride < 0 ? 100 : 0);
    for (int r = 0; r < 3; ++r) rows.insert(rows.end(), first + r * stride, first + r * stride + 50);
    Case c{3, 50, 20};
    const Outcome<float> expected = on_cpu(rows, c);

    const OnDevice<float> cells(data), probabilities(60), threshold(3);
    const OnDevice<int64_t> indices(60);
    const OnDevice<double> log_mass(3), workspace(1);
    const ats_tensor attention = on_gpu(matrix(cells.data() + (first - data.data()), 3, 50, stride));
    const int64_t key[] = {c.seed, c.offset};
    const ats_tensor rng = ats::view(key, {2});
    const ats_sample_options options{c.n, 0, 0};
    const ats_tensor i_view = gpu_view(indices, {3, 20}), p_view = gpu_view(probabilities, {3, 20}),
                     t_view = gpu_view(threshold, {3}), m_view = gpu_view(log_mass, {3});
    CHECK_OK(ats_sample(&attention, &rng, &options, &i_view, &p_view, &t_view, &m_view, workspace.data(), nullptr));
    CHECK(indices.get() == expected.indices);
    CHECK(same_bits(probabilities.get(), expected.probabilities));
  }
}

// Rows that cannot be drawn from stand between good ones.
template <typename T>
void test_bad_rows(std::initializer_list<int64_t> sizes) {
  for (const int64_t cells : sizes) {
    for (const bool logits : {false, true}) {
      for (const bool replace : {false, true}) {
        if (cells > 2000 && logits != replace) continue;
        Case c{7, cells, 5, logits, replace};
        std::vector<T> data = some_cells<T>(c, 9);
        const auto put = [&](int64_t row, int64_t cell, double x) {
          data[size_t(row * cells + cell)] = ats::store<T>(x);
        };
        const double nothing = logits ? -INFINITY : 0.0;
        put(1, cells - 1, NAN);
        put(2, cells / 2, INFINITY);
        for (int64_t cell = 0; cell < cells; ++cell) put(3, cell, nothing), put(5, cell, nothing);
        put(4, cells - 2, logits ? NAN : -1.0);
        for (int64_t cell = 0; cell < 4; ++cell) put(5, 3 * cell, 1.0);
        if (!logits) put(6, 1, -0.0);
        check_same(data, c, replace ? 4 : 5);
      }
    }
  }
}

// Any bits at all.
template <typename T>
void test_noise() {
  std::mt19937_64 random(10);
  for (int round = 0; round < 20; ++round) {
    const int64_t cells = round == 19 ? 33000 : 1 + int64_t(random() % 200);
    Case c{4, cells, 1 + int64_t(random() % uint64_t(std::min<int64_t>(cells, 20))), random() % 2 == 0,
           random() % 2 == 0};
    std::vector<T> data(size_t(4 * cells));
    for (T& x : data) {
      const uint64_t bits = random();
      std::memcpy(&x, &bits, sizeof(T));
      const double value = double(ats::load(x));
      // Else hardly a row would be good.
      if (random() % 8 && !(c.logits || value >= 0)) x = ats::store<T>(-value);
      if (random() % 256 && !std::isfinite(double(ats::load(x)))) x = ats::store<T>(1.0);
      if (round % 2 && !(c.logits || double(ats::load(x)) >= 0)) x = ats::store<T>(0.0);
    }
    check_same(data, c, -1);
  }
}

void test_sizes() {
  ats_tensor huge = on_gpu(matrix(static_cast<float*>(nullptr), int64_t(1) << 40, int64_t(1) << 40, 0));
  const ats_sample_options options{1, 0, 0};
  size_t bytes = 0;
  CHECK(ats_sample_workspace(&huge, &options, &bytes) == ATS_INVALID_ARGUMENT);
  CHECK(std::strncmp(ats_last_error(), "sample: attention", 17) == 0);
  // What a row of 1e8 cells takes: a double and a word for every 32 cells, and a little.
  huge.shape[0] = 1, huge.shape[1] = 100000000;
  CHECK_OK(ats_sample_workspace(&huge, &options, &bytes));
  CHECK(bytes > 37500000 && bytes < 40000000);
}

}  // namespace

int main() {
  in_every_order([] {
    test_shapes<float>(kSmall);
    test_bad_rows<ats::float16>({40});
    check_same(some_cells<float>({1, 33000, 10}, 1), {1, 33000, 10});
  });
  test_shapes<float>(kLarge);
  test_shapes<double>(kSmall);
  test_shapes<ats::float16>(kSmall);
  test_shapes<ats::bfloat16>(kLarge);
  test_every_cell();
  test_long_rows();
  test_scales();
  test_random_numbers();
  test_strides();
  test_bad_rows<float>({40, 2000});
  test_bad_rows<double>({33000});
  test_noise<double>();
  test_noise<float>();
  test_noise<ats::bfloat16>();
  test_sizes();
  return finish();
}
