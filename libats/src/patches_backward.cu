#include "cuda_launch.cuh"
#include "cuda_ops.h"

namespace ats::cuda {

void extract_patches_backward(const PatchesPlan&, const ats_tensor&, const ats_tensor&, const ats_executor*) {
  throw Error(ATS_UNSUPPORTED, "extract_patches_backward: not written yet");
}

}  // namespace ats::cuda
