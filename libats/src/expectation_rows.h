// What every expectation operation reads of the attention: its checks, its copy in double, and the workspace.
#pragma once

#include <algorithm>

#include "core.h"
#include "expectation_math.h"

namespace ats {

struct EstimatorInputs {
  const char* op;
  const ats_tensor* attention;
  const ats_tensor* threshold;
  const ats_tensor* weights;
  int estimator;
};

void describe_inputs(const EstimatorInputs& in);
// Of inputs that were described: all that is known without reading them.
void check_inputs(const EstimatorInputs& in, const void* workspace);

// The attention and what goes with it, in double, every value checked. For every row the workspace holds a, c and h,
// of N doubles each; then scratch for each of up to kChunks parts of the batch, whose rows are taken one after the
// other.
class EstimatorRows {
 public:
  static int64_t workspace_bytes(const char* op, const ats_tensor* attention, bool matrix);

  EstimatorRows(const EstimatorInputs& in, void* workspace, bool matrix);

  double* a(int64_t b) const { return a_ + b * n; }
  double* c(int64_t b) const { return a_ + (batch + b) * n; }
  double* h(int64_t b) const { return a_ + (2 * batch + b) * n; }
  EstimatorRow row(int64_t b) const;

  double rest(const EstimatorRow& row) const { return murthy_rest(estimator_, row); }

  // body(b, scratch) for every row.
  template <typename Body>
  void each(const ats_executor* executor, const Body& body) const {
    const int64_t in_chunk = (batch + kChunks - 1) / kChunks, chunks = in_chunk ? (batch + in_chunk - 1) / in_chunk : 0;
    parallel_for(executor, chunks, grain_for(cost_ * in_chunk), [&](int64_t begin, int64_t end) {
      for (int64_t chunk = begin; chunk < end; ++chunk)
        for (int64_t b = chunk * in_chunk; b < std::min(batch, (chunk + 1) * in_chunk); ++b)
          body(b, scratch_ + chunk * scratch_doubles_);
    });
  }

  int64_t batch = 0, n = 0;

 private:
  static constexpr int64_t kChunks = 64;
  static int64_t scratch_doubles(int64_t n, bool matrix);

  template <typename T>
  void read_attention(const EstimatorInputs& in);
  void check_vectors(const EstimatorInputs& in) const;

  int estimator_;
  ats_tensor threshold_{};
  const double* weights_ = nullptr;
  double *a_ = nullptr, *scratch_ = nullptr;
  int64_t scratch_doubles_, cost_;
};

}  // namespace ats
