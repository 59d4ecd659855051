#include "expectation_rows.h"

#include <algorithm>
#include <cmath>

#include "murthy_lanes.h"

namespace ats {
namespace {

const char* const kEstimatorNames[] = {"iid", "des_raj", "murthy", "horvitz_thompson", "normalized"};

double value_at(const ats_tensor& t, int64_t i) {
  return t.dtype == ATS_FLOAT64 ? data_of<double>(t)[i * t.strides[0]] : double(data_of<float>(t)[i * t.strides[0]]);
}

constexpr int64_t kAlignment = sizeof(Doubles);

[[noreturn]] void refuse_row(const EstimatorInputs& in, const double* a, int64_t n, double sum, int64_t b) {
  const bool probabilities = in.estimator != ATS_NORMALIZED;
  const auto row = static_cast<long long>(b);
  for (int64_t i = 0; i < n; ++i)
    if (!(a[i] >= 0.0) || std::isinf(a[i]) || (probabilities && a[i] > kMostProbability))
      fail("%s: attention must hold %s, got %g in row %lld", in.op,
           probabilities ? "probabilities between 0 and 1" : "finite values that are not negative", a[i], row);
  if (probabilities)
    fail("%s: attention sums to %g in row %lld; it must be the probabilities that sample gave", in.op, sum, row);
  fail("%s: attention has no mass in row %lld", in.op, row);
}

}  // namespace

void describe_inputs(const EstimatorInputs& in) {
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

// For murthy_lanes.h, and da or a column of M beside it. Each begins where a vector may.
int64_t EstimatorRows::scratch_doubles(int64_t n, bool matrix) {
  return padded_to_lanes(matrix ? (n + 24) * (n + 24) : 25 * n);
}

int64_t EstimatorRows::workspace_bytes(const char* op, const ats_tensor* attention, bool matrix) {
  const Where where{op, "attention"};
  check_described(where, attention, kSingleOrDouble, 2, 2, "(B, N)");
  check_known(where, *attention);
  const int64_t batch = attention->shape[0], n = attention->shape[1];
  multiply_sizes(where, 1000, n);
  if (matrix) multiply_sizes(where, n + 24, n + 24);
  // Each a quarter of what could still be counted, so that their sum can be.
  const int64_t rows = multiply_sizes(where, multiply_sizes(where, batch, n), 4 * 24);
  const int64_t scratch = multiply_sizes(where, scratch_doubles(n, matrix), 4 * 8 * std::min(batch, kChunks));
  return rows / 4 + scratch / 4 + 8 * n + kAlignment;
}

void check_inputs(const EstimatorInputs& in, const void* workspace) {
  check_tensor({in.op, "attention"}, in.attention, kSingleOrDouble, 2, 2, "(B, N)");
  if (in.estimator == ATS_HORVITZ_THOMPSON)
    check_tensor({in.op, "threshold"}, in.threshold, kSingleOrDouble, 1, 1, "a vector");
  if (in.weights != nullptr) check_tensor({in.op, "weights"}, in.weights, kSingleOrDouble, 1, 1, "a vector");
  if (in.attention->shape[0] > 0) check_pointer({in.op, "workspace"}, workspace);
}

EstimatorRows::EstimatorRows(const EstimatorInputs& in, void* workspace, bool matrix) : estimator_(in.estimator) {
  batch = in.attention->shape[0];
  n = in.attention->shape[1];
  if (in.estimator == ATS_HORVITZ_THOMPSON) threshold_ = *in.threshold;
  a_ = static_cast<double*>(workspace);
  const uintptr_t end = reinterpret_cast<uintptr_t>(a_ + 3 * batch * n);
  scratch_ = reinterpret_cast<double*>((end + kAlignment - 1) / kAlignment * kAlignment);
  scratch_doubles_ = scratch_doubles(n, matrix);
  // Steps of about half a nanosecond: murthy takes some 50 exponentials a cell, eight at a time.
  cost_ = n * (in.estimator == ATS_MURTHY ? 200 : 4);
  if (matrix) cost_ += n * n * (in.estimator == ATS_MURTHY ? 30 : 4);
  dispatch_single_or_double(in.attention->dtype, [&](auto type) { read_attention<typename decltype(type)::type>(in); });
  check_vectors(in);
  if (in.weights != nullptr && batch > 0) {
    double* const weights = scratch_ + std::min(batch, kChunks) * scratch_doubles_;
    for (int64_t i = 0; i < n; ++i) weights[i] = value_at(*in.weights, i);
    weights_ = weights;
  }
}

EstimatorRow EstimatorRows::row(int64_t b) const {
  return {a(b), n, estimator_ == ATS_HORVITZ_THOMPSON ? value_at(threshold_, b) : 0.0, weights_};
}

template <typename T>
void EstimatorRows::read_attention(const EstimatorInputs& in) {
  for (int64_t b = 0; b < batch; ++b) {
    const T* from = data_of<const T>(*in.attention) + b * in.attention->strides[0];
    const int64_t stride = in.attention->strides[1];
    double* const to = a(b);
    RowCheck check{in.estimator};
    for (int64_t i = 0; i < n; ++i) check.take(to[i] = double(from[i * stride]));
    if (!check.get()) refuse_row(in, to, n, check.sum, b);
  }
}

void EstimatorRows::check_vectors(const EstimatorInputs& in) const {
  if (in.estimator == ATS_HORVITZ_THOMPSON)
    for (int64_t b = 0; b < batch; ++b)
      if (!good_threshold(value_at(*in.threshold, b)))
        fail("%s: threshold must be positive, got %g in row %lld", in.op, value_at(*in.threshold, b),
             static_cast<long long>(b));
  if (in.weights == nullptr) return;
  double sum = 0.0;
  for (int64_t i = 0; i < n; ++i) sum += value_at(*in.weights, i);
  if (!(std::abs(sum - 1.0) <= 1e-3)) fail("%s: weights must sum to 1, got %g", in.op, sum);
}

}  // namespace ats
