// sample and topk on rows of attention, on a GPU and, row by row, on the CPU: what the two give must be the same bits.
#pragma once

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "../cpp/check.h"
#include "../../libats/src/half.h"
#include "device.h"

template <typename T>
constexpr int kDtype = std::is_same_v<T, double>          ? ATS_FLOAT64
                       : std::is_same_v<T, float>         ? ATS_FLOAT32
                       : std::is_same_v<T, ats::bfloat16> ? ATS_BFLOAT16
                                                          : ATS_FLOAT16;

template <typename T>
ats_tensor matrix(const T* data, int64_t rows, int64_t cells, int64_t row_stride) {
  ats_tensor view{};
  view.data = const_cast<T*>(data);
  view.ndim = 2;
  view.dtype = kDtype<T>;
  view.shape[0] = rows, view.shape[1] = cells;
  view.strides[0] = row_stride, view.strides[1] = 1;
  return view;
}

struct Case {
  int64_t rows, cells, n;
  bool logits = false, replace = false, top = false;
  int64_t seed = 7, offset = 3;
  int64_t gap = 0;  // elements between rows
};

template <typename T>
struct Outcome {
  using P = std::conditional_t<std::is_same_v<T, double>, double, float>;
  std::vector<int64_t> indices;
  std::vector<P> probabilities, threshold;
  std::vector<double> log_mass;
};

template <typename V>
bool same_bits(const std::vector<V>& a, const std::vector<V>& b) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i) {
    if constexpr (std::is_floating_point_v<V>)
      if (a[i] != a[i] && b[i] != b[i]) continue;  // which NaN it is says nothing
    if (std::memcmp(&a[i], &b[i], sizeof(V)) != 0) return false;
  }
  return true;
}

// What the CPU gives for every row alone, and what stands for one that it refuses.
template <typename T>
Outcome<T> on_cpu(const std::vector<T>& data, const Case& c, int* refused = nullptr) {
  using P = typename Outcome<T>::P;
  Outcome<T> out;
  for (int64_t r = 0; r < c.rows; ++r) {
    const ats_tensor attention = matrix(data.data() + r * (c.cells + c.gap), 1, c.cells, c.cells);
    const int64_t key[] = {c.seed, int64_t(uint64_t(c.offset) + uint64_t(r))};
    const ats_tensor rng = ats::view(key, {2});
    const ats_sample_options options{c.n, c.replace, c.logits};
    std::vector<int64_t> cells(size_t(c.n));
    std::vector<P> p(size_t(c.n)), t(1);
    std::vector<double> mass(1);
    const ats_tensor i_view = ats::view(cells.data(), {1, c.n}), p_view = ats::view(p.data(), {1, c.n});
    const ats_tensor t_view = ats::view(t.data(), {1}), m_view = ats::view(mass.data(), {1});
    size_t bytes = 0;
    CHECK_OK((c.top ? ats_topk_workspace : ats_sample_workspace)(&attention, &options, &bytes));
    std::vector<double> workspace(bytes / 8 + 1);
    const int status =
        c.top ? ats_topk(&attention, &options, &i_view, &p_view, &t_view, &m_view, workspace.data(), nullptr)
              : ats_sample(&attention, &rng, &options, &i_view, &p_view, &t_view, &m_view, workspace.data(), nullptr);
    if (status != ATS_OK) {
      if (refused) ++*refused;
      cells.assign(size_t(c.n), -1);
      p.assign(size_t(c.n), P(0));
      t[0] = std::numeric_limits<P>::quiet_NaN();
      mass[0] = std::numeric_limits<double>::quiet_NaN();
    }
    out.indices.insert(out.indices.end(), cells.begin(), cells.end());
    out.probabilities.insert(out.probabilities.end(), p.begin(), p.end());
    out.threshold.push_back(t[0]);
    out.log_mass.push_back(mass[0]);
  }
  return out;
}

template <typename T>
Outcome<T> on_device(const std::vector<T>& data, const Case& c, bool rng_on_gpu) {
  using P = typename Outcome<T>::P;
  const OnDevice<T> cells(data);
  const OnDevice<int64_t> key(std::vector<int64_t>{c.seed, 0, c.offset}), indices(size_t(c.rows * c.n));
  const OnDevice<P> probabilities(size_t(c.rows * c.n)), threshold { size_t(c.rows) };
  const OnDevice<double> log_mass{size_t(c.rows)};
  const ats_tensor attention = on_gpu(matrix(cells.data(), c.rows, c.cells, c.cells + c.gap));
  ats_tensor rng = ats::view(key.data(), {2});
  rng.strides[0] = 2;
  if (rng_on_gpu) rng = on_gpu(rng);
  const ats_sample_options options{c.n, c.replace, c.logits};
  size_t bytes = 0;
  CHECK_OK((c.top ? ats_topk_workspace : ats_sample_workspace)(&attention, &options, &bytes));
  CHECK(bytes > 0 || c.rows == 0);
  const OnDevice<double> workspace(bytes / 8);
  const ats_tensor i_view = gpu_view(indices, {c.rows, c.n}), p_view = gpu_view(probabilities, {c.rows, c.n});
  const ats_tensor t_view = gpu_view(threshold, {c.rows}), m_view = gpu_view(log_mass, {c.rows});
  if (c.top) CHECK_OK(ats_topk(&attention, &options, &i_view, &p_view, &t_view, &m_view, workspace.data(), nullptr));
  else CHECK_OK(ats_sample(&attention, &rng, &options, &i_view, &p_view, &t_view, &m_view, workspace.data(), nullptr));
  return {indices.get(), probabilities.get(), threshold.get(), log_mass.get()};
}

template <typename T>
void check_same(const std::vector<T>& data, const Case& c, int refused = 0) {
  int seen = 0;
  const Outcome<T> expected = on_cpu(data, c, &seen);
  CHECK(refused < 0 || seen == refused);
  const Outcome<T> got = on_device(data, c, c.cells % 2 == 0);
  const int before = failures;
  CHECK(got.indices == expected.indices);
  CHECK(same_bits(got.probabilities, expected.probabilities));
  CHECK(same_bits(got.threshold, expected.threshold));
  CHECK(same_bits(got.log_mass, expected.log_mass));
  if (failures != before)
    std::printf("  dtype %d, %lld x %lld, n %lld, logits %d, replace %d, topk %d\n", kDtype<T>,
                static_cast<long long>(c.rows), static_cast<long long>(c.cells), static_cast<long long>(c.n), c.logits,
                c.replace, c.top);
}

// Weights with zeros among them, or logits with -inf.
template <typename T>
std::vector<T> some_cells(const Case& c, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::uniform_real_distribution<double> weight(0.0, 3.0), logit(-30.0, 5.0);
  std::vector<T> data(size_t(c.rows * (c.cells + c.gap)));
  const bool sparse = c.n < c.cells / 2;
  for (T& x : data) {
    const bool none = sparse && random() % 5 == 0;
    x = ats::store<T>(c.logits ? none ? -INFINITY : logit(random) : none ? 0.0 : weight(random) + 1e-3);
  }
  // Between the rows stands what would spoil them.
  for (int64_t r = 0; r < c.rows; ++r)
    for (int64_t i = 0; i < c.gap; ++i) data[size_t(r * (c.cells + c.gap) + c.cells + i)] = ats::store<T>(NAN);
  return data;
}
