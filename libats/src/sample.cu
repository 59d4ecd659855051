#include "cuda_launch.cuh"
#include "cuda_ops.h"

namespace ats::cuda {

int64_t sample_workspace(const ats_tensor&, const ats_sample_options&) {
  throw Error(ATS_UNSUPPORTED, "sample_workspace: not written yet");
}
void sample(const ats_tensor&, const ats_tensor&, const ats_sample_options&, const ats_tensor&, const ats_tensor&,
            const ats_tensor&, const ats_tensor&, void*, const ats_executor*) {
  throw Error(ATS_UNSUPPORTED, "sample: not written yet");
}
void sample_backward(const ats_tensor&, const ats_tensor&, const ats_tensor&, const ats_tensor&, const ats_tensor&,
                     bool, const ats_tensor&, const ats_executor*) {
  throw Error(ATS_UNSUPPORTED, "sample_backward: not written yet");
}

}  // namespace ats::cuda
