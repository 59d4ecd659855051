// What stands in for the .cu files in a build without CUDA: check_built refuses a tensor on a GPU before anything else
// here could be called.
#include "cuda_ops.h"

namespace ats::cuda {

void check_built(Where where) {
  throw Error(ATS_UNSUPPORTED,
              std::string(where.op) + ": " + where.name + " is on a GPU, and this build of libats has no CUDA kernels");
}

int64_t sample_workspace(const ats_tensor&, const ats_sample_options&) { return 0; }
void sample(const ats_tensor&, const ats_tensor&, const ats_sample_options&, const ats_tensor&, const ats_tensor&,
            const ats_tensor&, const ats_tensor&, void*, const ats_executor*) {}
void sample_backward(const ats_tensor&, const ats_tensor&, const ats_tensor&, const ats_tensor&, const ats_tensor&,
                     bool, const ats_tensor&, const ats_executor*) {}
int64_t topk_workspace(const ats_tensor&, const ats_sample_options&) { return 0; }
void topk(const ats_tensor&, const ats_sample_options&, const ats_tensor&, const ats_tensor&, const ats_tensor&,
          const ats_tensor&, void*, const ats_executor*) {}
void locate(const ats_tensor&, const ats_locate_options&, const ats_tensor&, const ats_executor*) {}
void extract_patches(const PatchesPlan&, const ats_tensor&, const ats_tensor&, const ats_executor*) {}
void extract_patches_backward(const PatchesPlan&, const ats_tensor&, const ats_tensor&, const ats_executor*) {}
int64_t expectation_workspace(Where, const ats_tensor&) { return 0; }
void expectation(const Estimate&, const ats_tensor&, const ats_tensor&, void*, const ats_executor*) {}
void expectation_backward(const Estimate&, const ats_tensor&, const ats_tensor&, const ats_tensor&, const ats_tensor&,
                          void*, const ats_executor*) {}
int64_t estimator_arrays_workspace(Where, const ats_tensor&) { return 0; }
void estimator_arrays(const Estimate&, const ats_tensor&, const ats_tensor&, void*, const ats_executor*) {}

}  // namespace ats::cuda
