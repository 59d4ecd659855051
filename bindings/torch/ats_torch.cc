// torch.ops.ats: libats for PyTorch, over PyTorch's stable ABI (one binary for every version from 2.10 on).
//
// Every operation is the same five steps: views of the inputs, shape and allocation of the outputs, workspace, the call,
// the status. Rules and words are the core's; fake kernels, autograd, autocast and vmap are in ats_core/torch/_ops.py.
// This is the CPU's half. CUDA's is to be a library of its own, with another executor and registration, because CPU
// wheels lack the stable ABI's CUDA stream.
#include "tensors.h"

namespace ats_torch {

// Work runs on PyTorch's own threads: torch.set_num_threads holds, and two pools do not fight for the cores.
const ats_executor* executor() {
  static const ats_executor pool = {nullptr,
                                    [](void*, int64_t begin, int64_t end, int64_t grain, ats_body body, void* data) {
                                      torch::stable::parallel_for(
                                          begin, end, grain, [=](int64_t from, int64_t to) { body(data, from, to); });
                                    },
                                    nullptr};
  return &pool;
}

int32_t estimator_of(const Name& name) {
  int32_t estimator = 0;
  check(ats_estimator_by_name(name.text, &estimator));
  return estimator;
}

// ---- sample, topk ----

using Draws = std::tuple<Result, Result, Result, Result>;

template <typename Shape, typename Size, typename Call>
Draws draw(const Argument& attention, const ats_sample_options& options, Shape shape, Size size, Call call) {
  ats_tensor wanted[4] = {};
  size_t bytes = 0;
  check(shape(attention, &options, &wanted[0], &wanted[1], &wanted[2], &wanted[3]));
  check(size(attention, &options, &bytes));
  Argument indices = allocate(wanted[0], attention.view), probabilities = allocate(wanted[1], attention.view),
           threshold = allocate(wanted[2], attention.view), log_mass = allocate(wanted[3], attention.view);
  const Workspace workspace(bytes, attention.view);
  check(call(indices, probabilities, threshold, log_mass, workspace));
  return {probabilities.release(), indices.release(), threshold.release(), log_mass.release()};
}

Draws sample(const Tensor& attention_, const Tensor& rng_, int64_t n, bool replace, bool logits) {
  const Argument attention = dense("attention", attention_), rng = dense("rng", rng_);
  const ats_sample_options options{n, replace, logits};
  return draw(attention, options, ats_sample_shape, ats_sample_workspace,
              [&](View indices, View probabilities, View threshold, View log_mass, void* workspace) {
                return ats_sample(attention, rng, &options, indices, probabilities, threshold, log_mass, workspace,
                                  executor());
              });
}

Draws topk(const Tensor& attention_, int64_t n, bool logits) {
  const Argument attention = dense("attention", attention_);
  const ats_sample_options options{n, 0, logits};
  return draw(attention, options, ats_topk_shape, ats_topk_workspace,
              [&](View indices, View probabilities, View threshold, View log_mass, void* workspace) {
                return ats_topk(attention, &options, indices, probabilities, threshold, log_mass, workspace,
                                executor());
              });
}

Result sample_backward(const Tensor& grad_, const Tensor& attention_, const Tensor& indices_,
                       const Tensor& probabilities_, const Tensor& log_mass_, bool logits) {
  const Argument grad = dense("grad", grad_), attention = dense("attention", attention_),
                 indices = dense("indices", indices_), probabilities = dense("probabilities", probabilities_),
                 log_mass = dense("log_mass", log_mass_);
  Argument d_attention = allocate(attention.view, attention.view);
  check(ats_sample_backward(grad, attention, indices, probabilities, log_mass, logits, d_attention, executor()));
  return d_attention.release();
}

// ---- locate, extract_patches ----

Result locate(const Tensor& indices_, const Sizes& grid, const Sizes& low, const Sizes& image, const Sizes& patch,
              const Sizes& receptive_field) {
  const Argument indices = dense("indices", indices_);
  ats_locate_options options{};
  options.spatial = static_cast<int32_t>(grid.size());
  copy_sizes("grid", grid, options.grid, grid.size());
  copy_sizes("low_shape", low, options.low, grid.size());
  copy_sizes("image_shape", image, options.image, grid.size());
  copy_sizes("patch_size", patch, options.patch, grid.size());
  copy_sizes("receptive_field", receptive_field, options.receptive_field, grid.size());
  ats_tensor wanted{};
  check(ats_locate_shape(indices, &options, &wanted));
  Argument origins = allocate(wanted, indices.view);
  check(ats_locate(indices, &options, origins, executor()));
  return origins.release();
}

// Points into mean and std, which the caller keeps.
ats_patches_options patches_options(const Sizes& patch, const Sizes& scales, const Name& padding, double fill,
                                    int32_t dtype, const Values& mean, const Values& std) {
  ats_patches_options options{};
  options.spatial = static_cast<int32_t>(patch.size());
  copy_sizes("patch_size", patch, options.patch, patch.size());
  options.n_scales = static_cast<int32_t>(scales.size());
  copy_sizes("scales", scales, options.scales, scales.size());
  check(ats_padding_by_name(padding.text, &options.padding));
  options.dtype = dtype;
  options.fill = fill;
  if (mean) options.mean = mean->data(), options.n_mean = static_cast<int64_t>(mean->size());
  if (std) options.std = std->data(), options.n_std = static_cast<int64_t>(std->size());
  return options;
}

Result extract_patches(const Tensor& image_, const Tensor& origins_, const Sizes& patch, const Sizes& scales,
                       Name padding, double fill, std::optional<ScalarType> dtype, const Values& mean,
                       const Values& std, bool channels_first) {
  Argument image("image", image_.get());
  const Argument origins = dense("origins", origins_);
  const ats_patches_options options =
      patches_options(patch, scales, padding, fill, core_dtype(dtype, image.view.dtype), mean, std);
  if (channels_first) ats::move_axis(image.view, 1, image.view.ndim - 1);
  ats_tensor wanted{};
  check(ats_extract_patches_shape(image, origins, &options, &wanted));
  Argument patches = allocate(wanted, image.view, channels_first ? options.spatial : 0);
  check(ats_extract_patches(image, origins, &options, patches, executor()));
  return patches.release();
}

// `dtype` is that of the gradient, as the image's; grad's own unless given.
Result extract_patches_backward(const Tensor& grad_, const Tensor& origins_, const Sizes& image_shape,
                                const Sizes& patch, const Sizes& scales, Name padding, double fill,
                                std::optional<ScalarType> dtype, const Values& mean, const Values& std,
                                bool channels_first) {
  Argument grad = dense("grad", grad_);
  const Argument origins = dense("origins", origins_);
  const ats_patches_options options = patches_options(patch, scales, padding, fill, grad.view.dtype, mean, std);
  if (channels_first) ats::move_axis(grad.view, 2 + (options.n_scales > 0), grad.view.ndim - 1);
  ats_tensor wanted{};
  wanted.ndim = static_cast<int32_t>(image_shape.size());
  wanted.dtype = core_dtype(dtype, grad.view.dtype);
  require(wanted.dtype >= 0, "dtype: must be a floating dtype");
  copy_sizes("image_shape", image_shape, wanted.shape, patch.size() + 2);
  require(*std::min_element(image_shape.begin(), image_shape.end()) >= 0, "image_shape: must not be negative");
  if (channels_first) ats::move_axis(wanted, 1, wanted.ndim - 1);
  Argument d_image = allocate(wanted, grad.view, channels_first ? options.spatial : 0);
  size_t bytes = 0;
  check(ats_extract_patches_backward_workspace(d_image, &bytes));
  const Workspace workspace(bytes, grad.view);
  check(ats_extract_patches_backward(grad, origins, &options, d_image, workspace, executor()));
  return d_image.release();
}

// ---- expectation ----

Result expectation(const Tensor& features_, const Tensor& attention_, const OptionalTensor& threshold_,
                   const OptionalTensor& weights_, Name name) {
  const Argument features = dense("features", features_), attention = dense("attention", attention_);
  const OptionalArgument threshold("threshold", threshold_), weights("weights", weights_);
  const int32_t estimator = estimator_of(name);
  ats_tensor wanted{};
  size_t bytes = 0;
  check(ats_expectation_shape(features, attention, threshold, weights, estimator, &wanted));
  check(ats_expectation_workspace(attention, &bytes));
  Argument expected = allocate(wanted, features.view);
  const Workspace workspace(bytes, features.view);
  check(ats_expectation(features, attention, threshold, weights, estimator, expected, workspace, executor()));
  return expected.release();
}

std::tuple<Result, Result> expectation_backward(const Tensor& grad_, const Tensor& features_, const Tensor& attention_,
                                                const OptionalTensor& threshold_, const OptionalTensor& weights_,
                                                Name name) {
  const Argument grad = dense("grad", grad_), features = dense("features", features_),
                 attention = dense("attention", attention_);
  const OptionalArgument threshold("threshold", threshold_), weights("weights", weights_);
  size_t bytes = 0;
  check(ats_expectation_backward_workspace(attention, &bytes));
  Argument d_features = allocate(features.view, features.view), d_attention = allocate(attention.view, features.view);
  const Workspace workspace(bytes, features.view);
  check(ats_expectation_backward(grad, features, attention, threshold, weights, estimator_of(name), d_features,
                                 d_attention, workspace, executor()));
  return {d_features.release(), d_attention.release()};
}

std::tuple<Result, Result> estimator_arrays(const Tensor& attention_, const OptionalTensor& threshold_,
                                            const OptionalTensor& weights_, Name name) {
  const Argument attention = dense("attention", attention_);
  const OptionalArgument threshold("threshold", threshold_), weights("weights", weights_);
  const int32_t estimator = estimator_of(name);
  ats_tensor wanted[2] = {};
  size_t bytes = 0;
  check(ats_estimator_arrays_shape(attention, threshold, weights, estimator, &wanted[0], &wanted[1]));
  check(ats_estimator_arrays_workspace(attention, &bytes));
  Argument c = allocate(wanted[0], attention.view), m = allocate(wanted[1], attention.view);
  const Workspace workspace(bytes, attention.view);
  check(ats_estimator_arrays(attention, threshold, weights, estimator, c, m, workspace, executor()));
  return {c.release(), m.release()};
}

}  // namespace ats_torch

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

STABLE_TORCH_LIBRARY_IMPL(ats, CPU, m) {
  m.impl("sample", TORCH_BOX(&ats_torch::sample));
  m.impl("topk", TORCH_BOX(&ats_torch::topk));
  m.impl("sample_backward", TORCH_BOX(&ats_torch::sample_backward));
  m.impl("locate", TORCH_BOX(&ats_torch::locate));
  m.impl("extract_patches", TORCH_BOX(&ats_torch::extract_patches));
  m.impl("extract_patches_backward", TORCH_BOX(&ats_torch::extract_patches_backward));
  m.impl("expectation", TORCH_BOX(&ats_torch::expectation));
  m.impl("expectation_backward", TORCH_BOX(&ats_torch::expectation_backward));
  m.impl("estimator_arrays", TORCH_BOX(&ats_torch::estimator_arrays));
}
