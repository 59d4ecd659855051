#include "cuda_launch.cuh"
#include "cuda_ops.h"

namespace ats::cuda {

int64_t expectation_workspace(const ats_tensor&) {
  throw Error(ATS_UNSUPPORTED, "expectation_workspace: not written yet");
}
void expectation(const Estimate&, const ats_tensor&, const ats_tensor&, void*, const ats_executor*) {
  throw Error(ATS_UNSUPPORTED, "expectation: not written yet");
}
void expectation_backward(const Estimate&, const ats_tensor&, const ats_tensor&, const ats_tensor&, const ats_tensor&,
                          void*, const ats_executor*) {
  throw Error(ATS_UNSUPPORTED, "expectation_backward: not written yet");
}
int64_t estimator_arrays_workspace(const ats_tensor&) {
  throw Error(ATS_UNSUPPORTED, "estimator_arrays_workspace: not written yet");
}
void estimator_arrays(const Estimate&, const ats_tensor&, const ats_tensor&, void*, const ats_executor*) {
  throw Error(ATS_UNSUPPORTED, "estimator_arrays: not written yet");
}

}  // namespace ats::cuda
