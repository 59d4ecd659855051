// The operations on a GPU: what libats/src/*.cu define, and no_cuda.cc in a build without CUDA. Arguments have been
// checked by libats/src/<op>.cc, but for values that would have to be read first: ats.h says what becomes of bad ones.
// Nothing is empty that an operation could not do with.
#pragma once

#include "core.h"
#include "patches_plan.h"

namespace ats::cuda {

// Raises ATS_UNSUPPORTED in a build without CUDA.
void check_built(Where where);

int64_t sample_workspace(const ats_tensor& attention, const ats_sample_options& options);
// rng may be on the CPU.
void sample(const ats_tensor& attention, const ats_tensor& rng, const ats_sample_options& options,
            const ats_tensor& indices, const ats_tensor& probabilities, const ats_tensor& threshold,
            const ats_tensor& log_mass, void* workspace, const ats_executor* executor);
void sample_backward(const ats_tensor& grad, const ats_tensor& attention, const ats_tensor& indices,
                     const ats_tensor& probabilities, const ats_tensor& log_mass, bool logits,
                     const ats_tensor& d_attention, const ats_executor* executor);

int64_t topk_workspace(const ats_tensor& attention, const ats_sample_options& options);
void topk(const ats_tensor& attention, const ats_sample_options& options, const ats_tensor& indices,
          const ats_tensor& probabilities, const ats_tensor& threshold, const ats_tensor& log_mass, void* workspace,
          const ats_executor* executor);

void locate(const ats_tensor& indices, const ats_locate_options& options, const ats_tensor& origins,
            const ats_executor* executor);

void extract_patches(const PatchesPlan& plan, const ats_tensor& image, const ats_tensor& patches,
                     const ats_executor* executor);
// d_image may be of a half dtype: no workspace is needed.
void extract_patches_backward(const PatchesPlan& plan, const ats_tensor& grad, const ats_tensor& d_image,
                              const ats_executor* executor);

// What the estimators read: threshold and weights are NULL where the estimator does without.
struct Estimate {
  const ats_tensor& attention;
  const ats_tensor* threshold;
  const ats_tensor* weights;
  int estimator;
};
// Of forward and backward. A size that cannot be counted is an error of `where`.
int64_t expectation_workspace(Where where, const ats_tensor& attention);
void expectation(const Estimate& in, const ats_tensor& features, const ats_tensor& expected, void* workspace,
                 const ats_executor* executor);
void expectation_backward(const Estimate& in, const ats_tensor& grad, const ats_tensor& features,
                          const ats_tensor& d_features, const ats_tensor& d_attention, void* workspace,
                          const ats_executor* executor);
int64_t estimator_arrays_workspace(Where where, const ats_tensor& attention);
void estimator_arrays(const Estimate& in, const ats_tensor& c, const ats_tensor& m, void* workspace,
                      const ats_executor* executor);

}  // namespace ats::cuda
