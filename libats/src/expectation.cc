// expectation: the weighted sum of the features of the sampled cells, its gradients, and the estimators' arrays.
#include <algorithm>

#include "core.h"
#include "cuda_ops.h"
#include "expectation_features.h"
#include "expectation_rows.h"
#include "murthy_lanes.h"

namespace ats {
namespace {

// How many elements follow the axes (B, N) or (B).
int64_t trailing(const ats_tensor& t, int axis) {
  int64_t count = 1;
  for (; axis < t.ndim; ++axis) count *= t.shape[axis];
  return count;
}

ats_tensor expected_shape(const char* op, const ats_tensor* features, const ats_tensor* attention) {
  check_described({op, "features"}, features, kFloating, 2, ATS_MAX_DIMS, "(B, N, ...)");
  check_same_size({op, "features"}, features->shape[0], "B", attention->shape[0], "attention");
  check_same_size({op, "features"}, features->shape[1], "N", attention->shape[1], "attention");
  ats_tensor expected{};
  expected.dtype = features->dtype;
  expected.shape[expected.ndim++] = features->shape[0];
  for (int axis = 2; axis < features->ndim; ++axis) expected.shape[expected.ndim++] = features->shape[axis];
  set_contiguous_strides(expected);
  return on_device_of(*features, expected);
}

// c of every row.
void fill_coefficients(int estimator, const EstimatorRows& rows, const ats_executor* executor) {
  const MurthySize size(rows.n);
  rows.each(executor, [&](int64_t b, double* scratch) {
    const EstimatorRow row = rows.row(b);
    const double rest = rows.rest(row);
    if (rest > 0.0) on_this_cpu<MurthyCoefficients>(row.a, size, rest, scratch, rows.c(b));
    else coefficients(estimator, row, rows.c(b));
  });
}

// c and the gradient to the attention from h = <f, grad>.
template <typename T>
void fill_attention_gradient(int estimator, const EstimatorRows& rows, const ats_tensor& d_attention,
                             const ats_executor* executor) {
  const MurthySize size(rows.n);
  rows.each(executor, [&](int64_t b, double* scratch) {
    const EstimatorRow row = rows.row(b);
    const double rest = rows.rest(row);
    double* const da = scratch + 24 * row.n;
    if (rest > 0.0) {
      on_this_cpu<MurthyGradient>(row.a, size, rest, rows.h(b), scratch, rows.c(b), da);
    } else {
      coefficients(estimator, row, rows.c(b));
      attention_gradient(estimator, row, rows.c(b), rows.h(b), da);
    }
    T* const out = data_of<T>(d_attention) + b * d_attention.strides[0];
    for (int64_t i = 0; i < row.n; ++i) out[i * d_attention.strides[1]] = store_clamped<T>(da[i]);
  });
}

template <typename T>
void fill_arrays(int estimator, const EstimatorRows& rows, T* c, T* m, const ats_executor* executor) {
  const MurthySize size(rows.n);
  rows.each(executor, [&](int64_t b, double* scratch) {
    const EstimatorRow row = rows.row(b);
    const double rest = rows.rest(row);
    T* const matrix = m + b * row.n * row.n;
    if (rest > 0.0) {
      on_this_cpu<MurthyMatrix<T>>(row.a, size, rest, scratch, rows.c(b), matrix);
    } else {
      coefficients(estimator, row, rows.c(b));
      attention_matrix(estimator, row, rows.c(b), scratch, scratch + row.n, matrix);
    }
    for (int64_t i = 0; i < row.n; ++i) c[b * row.n + i] = store_clamped<T>(rows.c(b)[i]);
  });
}

template <typename F>
void forward(const EstimatorRows& rows, const ats_tensor& features, const ats_tensor& expected,
             const ats_executor* executor) {
  constexpr int64_t kBlock = 1024;  // sums that stay in the first cache
  const int64_t channels = trailing(features, 2), blocks = (channels + kBlock - 1) / kBlock;
  const int64_t cost = rows.n * std::min(channels, kBlock) / 4;
  parallel_for(executor, rows.batch * blocks, grain_for(cost), [&](int64_t begin, int64_t end) {
    FeatureScalar<F> sums[kBlock + kFeatureLanes<F>];
    for (int64_t item = begin; item < end; ++item) {
      const int64_t b = item / blocks, first = item % blocks * kBlock;
      const F* f = data_of<const F>(features) + b * features.strides[0] + first;
      F* out = data_of<F>(expected) + b * expected.strides[0] + first;
      on_this_cpu<WeightedSum<F>>(static_cast<const double*>(rows.c(b)), rows.n, f, features.strides[1],
                                  std::min(kBlock, channels - first), +sums, out);
    }
  });
}

// body(b, first, count, grad of b) for the samples of every row, some of them at a time.
template <typename F, typename Body>
void each_samples(const EstimatorRows& rows, const ats_tensor& grad, int64_t channels, const ats_executor* executor,
                  const Body& body) {
  parallel_for(executor, rows.batch * rows.n, grain_for(channels / 4), [&](int64_t begin, int64_t end) {
    for (int64_t item = begin, count; item < end; item += count) {
      const int64_t b = item / rows.n, first = item % rows.n;
      count = std::min(rows.n - first, end - item);
      body(b, first, count, data_of<const F>(grad) + b * grad.strides[0]);
    }
  });
}

template <typename F>
void read_features(const EstimatorRows& rows, const ats_tensor& grad, const ats_tensor& features,
                   const ats_executor* executor) {
  const int64_t channels = trailing(features, 2), stride = features.strides[1];
  if (channels == 0) return void(std::fill_n(rows.h(0), rows.batch * rows.n, 0.0));  // there may be no data to point at
  each_samples<F>(rows, grad, channels, executor, [&](int64_t b, int64_t first, int64_t count, const F* g) {
    const F* f = data_of<const F>(features) + b * features.strides[0] + first * stride;
    on_this_cpu<DotProducts<F>>(f, stride, count, g, channels, rows.h(b) + first);
  });
}

template <typename F>
void fill_feature_gradient(const EstimatorRows& rows, const ats_tensor& grad, const ats_tensor& d_features,
                           const ats_executor* executor) {
  const int64_t channels = trailing(d_features, 2), stride = d_features.strides[1];
  if (channels == 0) return;
  each_samples<F>(rows, grad, channels, executor, [&](int64_t b, int64_t first, int64_t count, const F* g) {
    F* df = data_of<F>(d_features) + b * d_features.strides[0] + first * stride;
    for (int64_t i = 0; i < count; ++i) on_this_cpu<Scaled<F>>(rows.c(b)[first + i], g, channels, df + i * stride);
  });
}

void check_features(const char* op, const char* name, const ats_tensor* t, const ats_tensor& expected, int from) {
  check_output({op, name}, t, expected);
  check_contiguous_from({op, name}, *t, from);
}

size_t workspace_bytes(const char* op, const ats_tensor* attention, int64_t (*on_a_gpu)(Where, const ats_tensor&),
                       bool matrix) {
  const int64_t bytes = EstimatorRows::workspace_bytes(op, attention, matrix);  // with all checks
  return size_t(on_gpu(op, {{"attention", attention}}) ? on_a_gpu({op, "attention"}, *attention) : bytes);
}

// Whether the inputs, and what goes with them, are on a GPU.
bool on_gpu(const EstimatorInputs& in, NamedView first, NamedView second, NamedView third = {}, NamedView fourth = {}) {
  return ats::on_gpu(in.op, {{"attention", in.attention},
                             {"threshold", in.estimator == ATS_HORVITZ_THOMPSON ? in.threshold : nullptr},
                             {"weights", in.weights},
                             first,
                             second,
                             third,
                             fourth});
}

cuda::Estimate estimate(const EstimatorInputs& in) {
  return {*in.attention, in.estimator == ATS_HORVITZ_THOMPSON ? in.threshold : nullptr, in.weights, in.estimator};
}

}  // namespace
}  // namespace ats

using namespace ats;

int ats_expectation_shape(const ats_tensor* features, const ats_tensor* attention, const ats_tensor* threshold,
                          const ats_tensor* weights, int32_t estimator, ats_tensor* expected) noexcept {
  return guard([&] {
    describe_inputs({"expectation", attention, threshold, weights, estimator});
    check_pointer({"expectation", "expected"}, expected);
    *expected = expected_shape("expectation", features, attention);
  });
}

int ats_expectation_workspace(const ats_tensor* attention, size_t* bytes) noexcept {
  return guard([&] {
    check_pointer({"expectation", "bytes"}, bytes);
    *bytes = workspace_bytes("expectation", attention, cuda::expectation_workspace, false);
  });
}

int ats_expectation_backward_workspace(const ats_tensor* attention, size_t* bytes) noexcept {
  return guard([&] {
    check_pointer({"expectation_backward", "bytes"}, bytes);
    *bytes = workspace_bytes("expectation_backward", attention, cuda::expectation_workspace, false);
  });
}

int ats_expectation(const ats_tensor* features, const ats_tensor* attention, const ats_tensor* threshold,
                    const ats_tensor* weights, int32_t estimator, const ats_tensor* expected, void* workspace,
                    const ats_executor* executor) noexcept {
  return guard([&] {
    constexpr const char* op = "expectation";
    const EstimatorInputs inputs{op, attention, threshold, weights, estimator};
    describe_inputs(inputs);
    const ats_tensor shape = expected_shape(op, features, attention);
    check_features(op, "features", features, *features, 2);
    check_features(op, "expected", expected, shape, 1);
    check_inputs(inputs, workspace);
    if (on_gpu(inputs, {"features", features}, {"expected", expected}))
      return cuda::expectation(estimate(inputs), *features, *expected, workspace, executor);
    const EstimatorRows rows(inputs, workspace, false);
    fill_coefficients(estimator, rows, executor);
    dispatch_floating(features->dtype,
                      [&](auto type) { forward<typename decltype(type)::type>(rows, *features, *expected, executor); });
  });
}

int ats_expectation_backward(const ats_tensor* grad, const ats_tensor* features, const ats_tensor* attention,
                             const ats_tensor* threshold, const ats_tensor* weights, int32_t estimator,
                             const ats_tensor* d_features, const ats_tensor* d_attention, void* workspace,
                             const ats_executor* executor) noexcept {
  return guard([&] {
    constexpr const char* op = "expectation_backward";
    const EstimatorInputs inputs{op, attention, threshold, weights, estimator};
    describe_inputs(inputs);
    const ats_tensor shape = expected_shape(op, features, attention);
    check_features(op, "features", features, *features, 2);
    check_features(op, "grad", grad, shape, 1);
    check_features(op, "d_features", d_features, *features, 2);
    check_output({op, "d_attention"}, d_attention, *attention);
    check_inputs(inputs, workspace);
    if (on_gpu(inputs, {"grad", grad}, {"features", features}, {"d_features", d_features},
               {"d_attention", d_attention}))
      return cuda::expectation_backward(estimate(inputs), *grad, *features, *d_features, *d_attention, workspace,
                                        executor);
    const EstimatorRows rows(inputs, workspace, false);
    // The features are read for h = <f, grad>; c and the gradient to the attention come out of one walk over murthy's
    // nodes; and d_features needs c alone.
    dispatch_floating(features->dtype, [&](auto type) {
      read_features<typename decltype(type)::type>(rows, *grad, *features, executor);
    });
    dispatch_single_or_double(attention->dtype, [&](auto type) {
      fill_attention_gradient<typename decltype(type)::type>(estimator, rows, *d_attention, executor);
    });
    dispatch_floating(features->dtype, [&](auto type) {
      fill_feature_gradient<typename decltype(type)::type>(rows, *grad, *d_features, executor);
    });
  });
}

int ats_estimator_arrays_shape(const ats_tensor* attention, const ats_tensor* threshold, const ats_tensor* weights,
                               int32_t estimator, ats_tensor* c, ats_tensor* m) noexcept {
  return guard([&] {
    describe_inputs({"estimator_arrays", attention, threshold, weights, estimator});
    check_pointer({"estimator_arrays", "c"}, c);
    check_pointer({"estimator_arrays", "m"}, m);
    const int64_t batch = attention->shape[0], n = attention->shape[1];
    const Where where{"estimator_arrays", "attention"};
    multiply_sizes(where, multiply_sizes(where, multiply_sizes(where, batch, n), n), 8);
    *c = on_device_of(*attention, describe(attention->dtype, {batch, n}));
    *m = on_device_of(*attention, describe(attention->dtype, {batch, n, n}));
  });
}

int ats_estimator_arrays_workspace(const ats_tensor* attention, size_t* bytes) noexcept {
  return guard([&] {
    check_pointer({"estimator_arrays", "bytes"}, bytes);
    *bytes = workspace_bytes("estimator_arrays", attention, cuda::estimator_arrays_workspace, true);
  });
}

int ats_estimator_arrays(const ats_tensor* attention, const ats_tensor* threshold, const ats_tensor* weights,
                         int32_t estimator, const ats_tensor* c, const ats_tensor* m, void* workspace,
                         const ats_executor* executor) noexcept {
  return guard([&] {
    constexpr const char* op = "estimator_arrays";
    const EstimatorInputs inputs{op, attention, threshold, weights, estimator};
    describe_inputs(inputs);
    const int64_t batch = attention->shape[0], n = attention->shape[1];
    check_features(op, "c", c, describe(attention->dtype, {batch, n}), 0);
    check_features(op, "m", m, describe(attention->dtype, {batch, n, n}), 0);
    check_inputs(inputs, workspace);
    if (on_gpu(inputs, {"c", c}, {"m", m}))
      return cuda::estimator_arrays(estimate(inputs), *c, *m, workspace, executor);
    const EstimatorRows rows(inputs, workspace, true);
    dispatch_single_or_double(attention->dtype, [&](auto type) {
      using T = typename decltype(type)::type;
      fill_arrays(estimator, rows, data_of<T>(*c), data_of<T>(*m), executor);
    });
  });
}
