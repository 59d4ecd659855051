// expectation: the weighted sum of the features of the sampled cells, its gradients, and the estimators' arrays.
#include <algorithm>
#include <cmath>
#include <vector>

#include "core.h"
#include "expectation_math.h"

namespace ats {
namespace {

struct Inputs {
  const char* op;
  const ats_tensor* attention;
  const ats_tensor* threshold;
  const ats_tensor* weights;
  int estimator;
};

const char* const kEstimatorNames[] = {"iid", "des_raj", "murthy", "horvitz_thompson", "normalized"};

void describe_inputs(const Inputs& in) {
  if (in.estimator < ATS_IID || in.estimator > ATS_NORMALIZED)
    fail("%s: estimator must be iid, des_raj, murthy, horvitz_thompson or normalized, got %d", in.op, in.estimator);
  check_described({in.op, "attention"}, in.attention, kSingleOrDouble, 2, 2, "(B, N)");
  if (in.attention->shape[1] == 0) fail("%s: attention must have at least one sample (N >= 1)", in.op);
  const unsigned same = 1u << in.attention->dtype;
  if (in.estimator == ATS_HORVITZ_THOMPSON) {
    if (in.threshold == nullptr) fail("%s: threshold is needed by the horvitz_thompson estimator", in.op);
    check_described({in.op, "threshold"}, in.threshold, same, 1, 1, "(B,)");
    check_same_size({in.op, "threshold"}, in.threshold->shape[0], "B", in.attention->shape[0], "attention");
  }
  if (in.weights != nullptr) {
    if (in.estimator != ATS_DES_RAJ)
      fail("%s: weights belong to the des_raj estimator, not to %s", in.op, kEstimatorNames[in.estimator]);
    check_described({in.op, "weights"}, in.weights, same, 1, 1, "(N,)");
    check_same_size({in.op, "weights"}, in.weights->shape[0], "N", in.attention->shape[1], "attention");
  }
}

double value_at(const ats_tensor& t, int64_t i) {
  return t.dtype == ATS_FLOAT64 ? data_of<double>(t)[i] : double(data_of<float>(t)[i]);
}

// A vector argument in double.
std::vector<double> read_vector(Where where, const ats_tensor* t) {
  check_tensor(where, t, kSingleOrDouble, 1, 1, "a vector");
  std::vector<double> values(static_cast<size_t>(t->shape[0]));
  for (size_t i = 0; i < values.size(); ++i) values[i] = value_at(*t, int64_t(i) * t->strides[0]);
  return values;
}

// The attention and what goes with it, in double, every value checked. Each row has five arrays of N doubles in the
// workspace: a, c, h, da and scratch of the estimator; then `extra` more.
class Rows {
 public:
  static int64_t doubles(int64_t n, int64_t extra) { return 5 * n + extra; }

  Rows(const Inputs& in, void* workspace, int64_t extra)
      : estimator_(in.estimator), scratch_(static_cast<double*>(workspace)) {
    describe_inputs(in);
    check_tensor({in.op, "attention"}, in.attention, kSingleOrDouble, 2, 2, "(B, N)");
    batch = in.attention->shape[0];
    n = in.attention->shape[1];
    stride_ = doubles(n, extra);
    if (in.estimator == ATS_HORVITZ_THOMPSON) thresholds_ = read_vector({in.op, "threshold"}, in.threshold);
    if (in.weights != nullptr) weights_ = read_vector({in.op, "weights"}, in.weights);
    check_values(in);
    if (batch == 0) return;
    check_pointer({in.op, "workspace"}, workspace);
    for (int64_t b = 0; b < batch; ++b)
      for (int64_t i = 0; i < n; ++i) a(b)[i] = attention_at(*in.attention, b, i);
  }

  double* a(int64_t b) const { return scratch_ + b * stride_; }
  double* c(int64_t b) const { return a(b) + n; }
  double* h(int64_t b) const { return a(b) + 2 * n; }
  double* da(int64_t b) const { return a(b) + 3 * n; }
  double* extra(int64_t b) const { return a(b) + 5 * n; }
  EstimatorRow row(int64_t b) const {
    return {a(b), n, thresholds_.empty() ? 0.0 : thresholds_[size_t(b)], weights_.empty() ? nullptr : weights_.data(),
            a(b) + 4 * n};
  }
  void fill_coefficients(int64_t b) const { coefficients(estimator_, row(b), c(b)); }
  int64_t cost() const { return estimator_ == ATS_MURTHY ? n * 1000 : n; }

  int64_t batch = 0, n = 0;

 private:
  static double attention_at(const ats_tensor& t, int64_t b, int64_t i) {
    return value_at(t, b * t.strides[0] + i * t.strides[1]);
  }

  void check_values(const Inputs& in) const {
    const bool probabilities = in.estimator != ATS_NORMALIZED;
    for (int64_t b = 0; b < batch; ++b) {
      double sum = 0.0;
      for (int64_t i = 0; i < n; ++i) {
        const double x = attention_at(*in.attention, b, i);
        // The softmax of a half dtype may leave a little more than 1.
        if (!(x >= 0.0) || std::isinf(x) || (probabilities && x > 1.01))
          fail("%s: attention must hold %s, got %g in row %lld", in.op,
               probabilities ? "probabilities between 0 and 1" : "finite values that are not negative", x,
               static_cast<long long>(b));
        sum += x;
      }
      // Cells drawn without replacement are different ones, so that their probabilities cannot pass 1 together.
      if (probabilities && in.estimator != ATS_IID && sum > 1.01)
        fail("%s: attention sums to %g in row %lld; it must be the probabilities that sample gave", in.op, sum,
             static_cast<long long>(b));
      if (!probabilities && !(sum > 0.0))
        fail("%s: attention has no mass in row %lld", in.op, static_cast<long long>(b));
    }
    for (size_t b = 0; b < thresholds_.size(); ++b)
      if (!(thresholds_[b] > 0.0))
        fail("%s: threshold must be positive, got %g in row %lld", in.op, thresholds_[b], static_cast<long long>(b));
    double sum = 0.0;
    for (double weight : weights_) sum += weight;
    if (!weights_.empty() && !(std::abs(sum - 1.0) <= 1e-3)) fail("%s: weights must sum to 1, got %g", in.op, sum);
  }

  int estimator_;
  int64_t stride_ = 0;
  double* scratch_;
  std::vector<double> thresholds_, weights_;
};

size_t workspace_bytes(const char* op, const ats_tensor* attention, bool matrix) {
  check_described({op, "attention"}, attention, kSingleOrDouble, 2, 2, "(B, N)");
  const Where where{op, "attention"};
  check_known(where, *attention);
  const int64_t n = attention->shape[1];
  multiply_sizes(where, 1000, n);  // the largest multiple of n below
  const int64_t per_row = Rows::doubles(n, matrix ? multiply_sizes(where, n, n) : 0);
  return size_t(multiply_sizes(where, multiply_sizes(where, attention->shape[0], per_row), 8));
}

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
  return expected;
}

template <typename F>
void forward(const Rows& rows, const ats_tensor& features, const ats_tensor& expected, const ats_executor* executor) {
  using A = std::conditional_t<std::is_same_v<F, double>, double, float>;
  constexpr int64_t kBlock = 256;  // sums that stay in the first cache
  const int64_t channels = trailing(features, 2), blocks = (channels + kBlock - 1) / kBlock;
  parallel_for(executor, rows.batch * blocks, grain_for(kBlock * rows.n), [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t b = item / blocks, first = item % blocks * kBlock;
      const int64_t width = std::min(kBlock, channels - first);
      A sums[kBlock] = {};
      for (int64_t i = 0; i < rows.n; ++i) {
        const A c = A(rows.c(b)[i]);
        const F* f = data_of<const F>(features) + b * features.strides[0] + i * features.strides[1] + first;
        for (int64_t k = 0; k < width; ++k) sums[k] += c * A(load(f[k]));
      }
      F* out = data_of<F>(expected) + b * expected.strides[0] + first;
      for (int64_t k = 0; k < width; ++k) out[k] = store<F>(sums[k]);
    }
  });
}

// d_features and h = <f, grad> in one pass over the features.
template <typename F>
void backward(const Rows& rows, const ats_tensor& grad, const ats_tensor& features, const ats_tensor& d_features,
              const ats_executor* executor) {
  using A = std::conditional_t<std::is_same_v<F, double>, double, float>;
  constexpr int64_t kLanes = 8;  // sums in a fixed order that vectorises
  const int64_t channels = trailing(features, 2);
  parallel_for(executor, rows.batch * rows.n, grain_for(2 * channels), [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t b = item / rows.n, i = item % rows.n;
      const A c = A(rows.c(b)[i]);
      const F* g = data_of<const F>(grad) + b * grad.strides[0];
      const F* f = data_of<const F>(features) + b * features.strides[0] + i * features.strides[1];
      F* df = data_of<F>(d_features) + b * d_features.strides[0] + i * d_features.strides[1];
      double lanes[kLanes] = {};
      for (int64_t k = 0; k < channels; k += kLanes) {
        const int64_t width = std::min(kLanes, channels - k);
        for (int64_t l = 0; l < width; ++l) {
          const A gradient = A(load(g[k + l]));
          df[k + l] = store<F>(c * gradient);
          lanes[l] += double(gradient) * double(load(f[k + l]));
        }
      }
      double sum = 0.0;
      for (double lane : lanes) sum += lane;
      rows.h(b)[i] = sum;
    }
  });
}

template <typename Body>
void each_row(const Rows& rows, const ats_executor* executor, const Body& body) {
  parallel_for(executor, rows.batch, grain_for(rows.cost()), [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) body(b);
  });
}

void check_features(const char* op, const char* name, const ats_tensor* t, const ats_tensor& expected, int from) {
  check_output({op, name}, t, expected);
  check_contiguous_from({op, name}, *t, from);
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
    *bytes = workspace_bytes("expectation", attention, false);
  });
}

int ats_expectation_backward_workspace(const ats_tensor* attention, size_t* bytes) noexcept {
  return guard([&] {
    check_pointer({"expectation_backward", "bytes"}, bytes);
    *bytes = workspace_bytes("expectation_backward", attention, false);
  });
}

int ats_expectation(const ats_tensor* features, const ats_tensor* attention, const ats_tensor* threshold,
                    const ats_tensor* weights, int32_t estimator, const ats_tensor* expected, void* workspace,
                    const ats_executor* executor) noexcept {
  return guard([&] {
    constexpr const char* op = "expectation";
    const Inputs inputs{op, attention, threshold, weights, estimator};
    describe_inputs(inputs);
    const ats_tensor shape = expected_shape(op, features, attention);
    check_features(op, "features", features, *features, 2);
    check_features(op, "expected", expected, shape, 1);
    const Rows rows(inputs, workspace, 0);
    each_row(rows, executor, [&](int64_t b) { rows.fill_coefficients(b); });
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
    const Inputs inputs{op, attention, threshold, weights, estimator};
    describe_inputs(inputs);
    const ats_tensor shape = expected_shape(op, features, attention);
    check_features(op, "features", features, *features, 2);
    check_features(op, "grad", grad, shape, 1);
    check_features(op, "d_features", d_features, *features, 2);
    check_output({op, "d_attention"}, d_attention, *attention);
    const Rows rows(inputs, workspace, 0);
    each_row(rows, executor, [&](int64_t b) { rows.fill_coefficients(b); });
    dispatch_floating(features->dtype, [&](auto type) {
      backward<typename decltype(type)::type>(rows, *grad, *features, *d_features, executor);
    });
    dispatch_single_or_double(attention->dtype, [&](auto type) {
      using T = typename decltype(type)::type;
      each_row(rows, executor, [&](int64_t b) {
        attention_gradient(estimator, rows.row(b), rows.c(b), rows.h(b), rows.da(b));
        for (int64_t i = 0; i < rows.n; ++i)
          data_of<T>(*d_attention)[b * d_attention->strides[0] + i * d_attention->strides[1]] =
              store_clamped<T>(rows.da(b)[i]);
      });
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
    *c = describe(attention->dtype, {batch, n});
    *m = describe(attention->dtype, {batch, n, n});
  });
}

int ats_estimator_arrays_workspace(const ats_tensor* attention, size_t* bytes) noexcept {
  return guard([&] {
    check_pointer({"estimator_arrays", "bytes"}, bytes);
    *bytes = workspace_bytes("estimator_arrays", attention, true);
  });
}

int ats_estimator_arrays(const ats_tensor* attention, const ats_tensor* threshold, const ats_tensor* weights,
                         int32_t estimator, const ats_tensor* c, const ats_tensor* m, void* workspace,
                         const ats_executor* executor) noexcept {
  return guard([&] {
    constexpr const char* op = "estimator_arrays";
    const Inputs inputs{op, attention, threshold, weights, estimator};
    describe_inputs(inputs);
    const int64_t batch = attention->shape[0], n = attention->shape[1];
    check_features(op, "c", c, describe(attention->dtype, {batch, n}), 0);
    check_features(op, "m", m, describe(attention->dtype, {batch, n, n}), 0);
    const Rows rows(inputs, workspace, n * n);
    dispatch_single_or_double(attention->dtype, [&](auto type) {
      using T = typename decltype(type)::type;
      each_row(rows, executor, [&](int64_t b) {
        rows.fill_coefficients(b);
        attention_matrix(estimator, rows.row(b), rows.c(b), rows.h(b), rows.da(b), rows.extra(b));
        for (int64_t i = 0; i < n; ++i) data_of<T>(*c)[b * n + i] = store_clamped<T>(rows.c(b)[i]);
        for (int64_t k = 0; k < n * n; ++k) data_of<T>(*m)[b * n * n + k] = store_clamped<T>(rows.extra(b)[k]);
      });
    });
  });
}
