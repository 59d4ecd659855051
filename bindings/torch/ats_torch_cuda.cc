// torch.ops.ats on CUDA: a library of its own, because PyTorch's builds for the CPU have no CUDA stream to ask for. It has
// no kernels either (those are in libats, and a libats without them says so), so that any C++ compiler will do. Loaded
// after ats_torch.cc's library, which has the schemas.
#define USE_CUDA  // for the declaration of aoti_torch_get_current_cuda_stream; no header of CUDA's is read
#include "ops.h"

// Work is queued on PyTorch's current stream. Its allocator gives memory freed here to later work on that stream alone,
// so scratch memory may go before the work is done. Tensors may be on several devices, which the core refuses.
ats_executor ats_torch::executor_of(const ats_tensor& like) {
  void* stream = nullptr;
  if (like.device == ATS_CUDA) TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(like.device_index, &stream));
  return {nullptr, nullptr, stream};
}

STABLE_TORCH_LIBRARY_IMPL(ats, CUDA, m) { ats_torch::implement(m); }
