// torch.ops.ats: libats for PyTorch, over PyTorch's stable ABI (one binary for every version from 2.10 on). The schemas,
// and the operations on the CPU; CUDA's are a library of their own (ats_torch_cuda.cc). Fake kernels, autograd, autocast
// and vmap are in ats_core/torch/_ops.py.
#include "ops.h"

// Work runs on PyTorch's own threads: torch.set_num_threads holds, and two pools do not fight for the cores.
ats_executor ats_torch::executor_of(const ats_tensor&) {
  const auto parallel_for = [](void*, int64_t begin, int64_t end, int64_t grain, ats_body body, void* data) {
    torch::stable::parallel_for(begin, end, grain, [=](int64_t from, int64_t to) { body(data, from, to); });
  };
  return {nullptr, parallel_for, nullptr};
}

#define ATS_PATCHES_OPTIONS                                                                                      \
  "SymInt[] patch_size, int[] scales, str padding, float fill, ScalarType? dtype, float[]? mean, float[]? std, " \
  "bool channels_first"

STABLE_TORCH_LIBRARY(ats, m) {
  // probabilities first: torch.library.opcheck adds up the outputs in the first one's dtype.
  m.def(
      "sample(Tensor attention, Tensor rng, SymInt n, bool replace, bool logits) -> (Tensor probabilities, "
      "Tensor indices, Tensor threshold, Tensor log_mass)");
  m.def(
      "topk(Tensor attention, SymInt n, bool logits) -> (Tensor probabilities, Tensor indices, Tensor threshold, "
      "Tensor log_mass)");
  m.def(
      "sample_backward(Tensor grad, Tensor attention, Tensor indices, Tensor probabilities, Tensor log_mass, "
      "bool logits) -> Tensor");
  m.def(
      "locate(Tensor indices, SymInt[] grid, SymInt[] low, SymInt[] image, SymInt[] patch, "
      "SymInt[] receptive_field) -> Tensor");
  m.def("extract_patches(Tensor image, Tensor origins, " ATS_PATCHES_OPTIONS ") -> Tensor");
  m.def("extract_patches_backward(Tensor grad, Tensor origins, SymInt[] image_shape, " ATS_PATCHES_OPTIONS
        ") -> Tensor");
  m.def("expectation(Tensor features, Tensor attention, Tensor? threshold, Tensor? weights, str estimator) -> Tensor");
  m.def(
      "expectation_backward(Tensor grad, Tensor features, Tensor attention, Tensor? threshold, Tensor? weights, "
      "str estimator) -> (Tensor d_features, Tensor d_attention)");
  m.def(
      "estimator_arrays(Tensor attention, Tensor? threshold, Tensor? weights, str estimator) -> (Tensor c, Tensor m)");
}

STABLE_TORCH_LIBRARY_IMPL(ats, CPU, m) { ats_torch::implement(m); }
