// expectation, its gradient and the estimators' arrays. The floor is a sum (forward) or a copy of the features' bytes;
// for the arrays a copy of them.
#include <algorithm>

#include "bench.h"

namespace bench {
namespace {

struct Inputs {
  Tensor features, attention, threshold, expected;
  std::vector<double> workspace;

  Inputs(int dtype, int64_t batch, int64_t n, int64_t channels)
      : features(uniform(dtype, {batch, n, channels}, -1)),
        attention(
            uniform(dtype == ATS_FLOAT64 ? ATS_FLOAT64 : ATS_FLOAT32, {batch, n}, 0.01 / double(n), 0.5 / double(n))),
        threshold(uniform(attention.dtype, {batch}, 10, 20)),
        expected(uniform(dtype, {batch, channels})) {
    size_t most = 0;
    for (const auto bytes_for :
         {ats_expectation_workspace, ats_expectation_backward_workspace, ats_estimator_arrays_workspace}) {
      size_t bytes;
      ats::check(bytes_for(&attention, &bytes));
      most = std::max(most, bytes);
    }
    workspace.resize(most / sizeof(double) + 1);
  }
};

constexpr const char* kNames[] = {"iid", "des_raj", "murthy", "horvitz_thompson", "normalized"};

void add_estimate(int dtype, int32_t estimator, int64_t batch, int64_t n, int64_t channels) {
  const std::string size = std::string("/") + kNames[estimator] + "/" + name_of(dtype) + "/B:" + std::to_string(batch) +
                           "/N:" + std::to_string(n) + "/C:" + std::to_string(channels);
  add("expectation" + size, [=](benchmark::State& state) {
    Inputs in(dtype, batch, n, channels);
    measure(
        state, in.features.bytes(),
        [&](int64_t) {
          ats::check(ats_expectation(&in.features, &in.attention, &in.threshold, nullptr, estimator, &in.expected,
                                     in.workspace.data(), ats_thread_pool()));
        },
        [&](int64_t) { sum(in.features.data, in.features.bytes()); });
  });
  add("expectation_backward" + size, [=](benchmark::State& state) {
    Inputs in(dtype, batch, n, channels);
    const Tensor d_features(dtype, {batch, n, channels}), other(dtype, {batch, n, channels});
    const Tensor d_attention(in.attention.dtype, {batch, n});
    measure(
        state, in.features.bytes(),
        [&](int64_t) {
          ats::check(ats_expectation_backward(&in.expected, &in.features, &in.attention, &in.threshold, nullptr,
                                              estimator, &d_features, &d_attention, in.workspace.data(),
                                              ats_thread_pool()));
        },
        [&](int64_t) { copy(other.data, in.features.data, in.features.bytes()); });
  });
}

void add_arrays(int dtype, int32_t estimator, int64_t batch, int64_t n) {
  const std::string name = std::string("estimator_arrays/") + kNames[estimator] + "/" + name_of(dtype) +
                           "/B:" + std::to_string(batch) + "/N:" + std::to_string(n);
  add(name, [=](benchmark::State& state) {
    Inputs in(dtype, batch, n, 1);
    const Tensor c(dtype, {batch, n}), m(dtype, {batch, n, n}), other(dtype, {batch, n, n});
    measure(
        state, m.bytes(),
        [&](int64_t) {
          ats::check(ats_estimator_arrays(&in.attention, &in.threshold, nullptr, estimator, &c, &m, in.workspace.data(),
                                          ats_thread_pool()));
        },
        [&](int64_t) { copy(other.data, m.data, m.bytes()); });
  });
}

}  // namespace

void add_expectation() {
  for (const int dtype : {ATS_FLOAT32, ATS_FLOAT64, ATS_FLOAT16, ATS_BFLOAT16}) {
    add_estimate(dtype, ATS_MURTHY, 128, 10, 512);
    add_estimate(dtype, ATS_HORVITZ_THOMPSON, 128, 10, 512);
  }
  for (const int estimator : {ATS_IID, ATS_DES_RAJ, ATS_NORMALIZED}) add_estimate(ATS_FLOAT32, estimator, 128, 10, 512);
  add_estimate(ATS_FLOAT32, ATS_MURTHY, 16, 64, 512);
  for (const int dtype : {ATS_FLOAT32, ATS_FLOAT64}) {
    for (const int64_t n : {4, 10, 64}) add_arrays(dtype, ATS_MURTHY, 128, n);
    for (const int estimator : {ATS_IID, ATS_DES_RAJ, ATS_HORVITZ_THOMPSON, ATS_NORMALIZED})
      add_arrays(dtype, estimator, 128, 10);
  }
}

}  // namespace bench
