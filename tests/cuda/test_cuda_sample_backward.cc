// sample_backward on a GPU gives what it gives on the CPU, bit for bit, and passes over indices that are no cells.
#include "sample_cases.h"

namespace {

struct Gradient {
  int64_t rows, cells, n;
  bool logits;
  double log_mass;    // of the first row; the others' are near it
  bool outside;       // some indices are no cells
  int64_t broadcast;  // stride of grad: 1, or 0
};

template <typename T>
void check_gradient(const Gradient& c, uint64_t seed) {
  using P = typename Outcome<T>::P;
  std::mt19937_64 random(seed);
  std::uniform_real_distribution<double> any(-1.0, 1.0);
  const size_t drawn = size_t(c.rows * c.n);
  std::vector<T> attention(size_t(c.rows * (c.cells + 2)));
  for (T& x : attention) x = ats::store<T>(c.logits ? c.log_mass - 10.0 + 8.0 * any(random) : 1.0);
  std::vector<P> grad(drawn), probabilities(drawn);
  std::vector<int64_t> indices(drawn);
  std::vector<double> mass(size_t(c.rows));
  for (double& m : mass) m = c.log_mass + any(random);
  for (P& g : grad) g = random() % 5 ? P(any(random)) : P(0);
  for (P& p : probabilities) p = P(any(random) * any(random));
  for (int64_t& i : indices) i = int64_t(random() % uint64_t(c.cells));
  if (c.broadcast == 0) std::fill(grad.begin(), grad.end(), P(0.25));
  if (c.rows > 1) std::fill_n(grad.begin() + c.n, c.n, P(0));  // a row to which nothing comes back

  // The CPU refuses what the GPU passes over: there it is a draw without gradient.
  std::vector<int64_t> given = indices;
  std::vector<P> given_grad = grad;
  if (c.outside) {
    const int64_t none[] = {-1, c.cells, std::numeric_limits<int64_t>::min(), std::numeric_limits<int64_t>::max()};
    for (size_t i = 0; i < drawn; i += 3)
      given[i] = none[i % 4], indices[i] = 0, grad[i] = P(0), given_grad[i] = P(NAN);
  }

  const auto views = [&](auto* g, auto* i, auto* p) {
    struct Views {
      ats_tensor grad, indices, probabilities;
    } v{ats::view(g, {c.rows, c.n}), ats::view(i, {c.rows, c.n}), ats::view(p, {c.rows, c.n})};
    if (c.broadcast == 0) v.grad.strides[0] = v.grad.strides[1] = 0;
    return v;
  };
  const int64_t row = c.cells + 2;
  std::vector<T> expected(attention.size());
  if (!expected.empty()) std::memset(static_cast<void*>(expected.data()), 0xcd, expected.size() * sizeof(T));
  {
    const auto v = views(grad.data(), indices.data(), probabilities.data());
    const ats_tensor x = matrix(attention.data(), c.rows, c.cells, row),
                     out = matrix(expected.data(), c.rows, c.cells, row);
    const ats_tensor m = ats::view(mass.data(), {c.rows});
    CHECK_OK(ats_sample_backward(&v.grad, &x, &v.indices, &v.probabilities, &m, c.logits, &out, nullptr));
  }
  const OnDevice<T> x_memory(attention), out_memory(attention.size());
  const OnDevice<P> g_memory(given_grad), p_memory(probabilities);
  const OnDevice<int64_t> i_memory(given);
  const OnDevice<double> m_memory(mass);
  auto v = views(g_memory.data(), i_memory.data(), p_memory.data());
  v = {on_gpu(v.grad), on_gpu(v.indices), on_gpu(v.probabilities)};
  const ats_tensor x = on_gpu(matrix(x_memory.data(), c.rows, c.cells, row));
  const ats_tensor out = on_gpu(matrix(out_memory.data(), c.rows, c.cells, row));
  const ats_tensor m = gpu_view(m_memory, {c.rows});
  CHECK_OK(ats_sample_backward(&v.grad, &x, &v.indices, &v.probabilities, &m, c.logits, &out, nullptr));
  const std::vector<T> got = out_memory.get();
  CHECK(expected.empty() || std::memcmp(got.data(), expected.data(), expected.size() * sizeof(T)) == 0);
}

template <typename T>
void test_gradients() {
  uint64_t seed = 1;
  for (const bool logits : {false, true}) {
    for (const bool outside : {false, true}) {
      check_gradient<T>({1, 1, 1, logits, 0.5, outside, 1}, ++seed);
      check_gradient<T>({3, 1000, 40, logits, 3.0, outside, 1}, ++seed);
      check_gradient<T>({2, 9001, 300, logits, -20.0, outside, 1}, ++seed);
      check_gradient<T>({2, 20, 200, logits, 5.0, outside, 1}, ++seed);  // every cell many times
    }
    check_gradient<T>({3, 70, 33, logits, 2.0, false, 0}, ++seed);
    check_gradient<T>({0, 70, 33, logits, 2.0, false, 1}, ++seed);
  }
  for (const double log_mass : {-800.0, -740.0, -709.5, -100.0, 100.0, 709.5, 740.0, 800.0})
    check_gradient<T>({2, 50, 10, false, log_mass, false, 1}, ++seed);
}

}  // namespace

int main() {
  in_every_order(test_gradients<float>);
  test_gradients<double>();
  test_gradients<ats::float16>();
  test_gradients<ats::bfloat16>();
  return finish();
}
