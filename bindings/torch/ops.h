// torch.ops.ats: what every operation does with its tensors, on any device. Each is the same five steps: views of the
// inputs, shape and allocation of the outputs, workspace, the call, the status. Rules and words are the core's.
#pragma once

#include "tensors.h"

namespace ats_torch {

// How the core's work is run for tensors where `like` is. Each device's library has its own.
ats_executor executor_of(const ats_tensor& like);

inline int32_t estimator_of(const Name& name) {
  int32_t estimator = 0;
  check(ats_estimator_by_name(name.text, &estimator));
  return estimator;
}

// ---- sample, topk ----

using Draws = std::tuple<Result, Result, Result, Result>;

template <typename Shape, typename Size, typename Call>
inline Draws draw(const Argument& attention, const ats_sample_options& options, Shape shape, Size size, Call call) {
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

inline Draws sample(const Tensor& attention_, const Tensor& rng_, int64_t n, bool replace, bool logits) {
  const Argument attention = dense("attention", attention_), rng = dense("rng", rng_);
  const ats_sample_options options{n, replace, logits};
  const ats_executor executor = executor_of(attention.view);
  return draw(attention, options, ats_sample_shape, ats_sample_workspace,
              [&](View indices, View probabilities, View threshold, View log_mass, void* workspace) {
                return ats_sample(attention, rng, &options, indices, probabilities, threshold, log_mass, workspace,
                                  &executor);
              });
}

inline Draws topk(const Tensor& attention_, int64_t n, bool logits) {
  const Argument attention = dense("attention", attention_);
  const ats_sample_options options{n, 0, logits};
  const ats_executor executor = executor_of(attention.view);
  return draw(attention, options, ats_topk_shape, ats_topk_workspace,
              [&](View indices, View probabilities, View threshold, View log_mass, void* workspace) {
                return ats_topk(attention, &options, indices, probabilities, threshold, log_mass, workspace, &executor);
              });
}

inline Result sample_backward(const Tensor& grad_, const Tensor& attention_, const Tensor& indices_,
                              const Tensor& probabilities_, const Tensor& log_mass_, bool logits) {
  const Argument grad = dense("grad", grad_), attention = dense("attention", attention_),
                 indices = dense("indices", indices_), probabilities = dense("probabilities", probabilities_),
                 log_mass = dense("log_mass", log_mass_);
  Argument d_attention = allocate(attention.view, attention.view);
  const ats_executor executor = executor_of(attention.view);
  check(ats_sample_backward(grad, attention, indices, probabilities, log_mass, logits, d_attention, &executor));
  return d_attention.release();
}

// ---- locate, extract_patches ----

inline Result locate(const Tensor& indices_, const Sizes& grid, const Sizes& low, const Sizes& image,
                     const Sizes& patch, const Sizes& receptive_field) {
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
  const ats_executor executor = executor_of(indices.view);
  check(ats_locate(indices, &options, origins, &executor));
  return origins.release();
}

// Points into mean and std, which the caller keeps.
inline ats_patches_options patches_options(const Sizes& patch, const Sizes& scales, const Name& padding, double fill,
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

inline Result extract_patches(const Tensor& image_, const Tensor& origins_, const Sizes& patch, const Sizes& scales,
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
  const ats_executor executor = executor_of(image.view);
  check(ats_extract_patches(image, origins, &options, patches, &executor));
  return patches.release();
}

// `dtype` is that of the gradient, as the image's; grad's own unless given.
inline Result extract_patches_backward(const Tensor& grad_, const Tensor& origins_, const Sizes& image_shape,
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
  const ats_executor executor = executor_of(grad.view);
  check(ats_extract_patches_backward(grad, origins, &options, d_image, workspace, &executor));
  return d_image.release();
}

// ---- expectation ----

inline Result expectation(const Tensor& features_, const Tensor& attention_, const OptionalTensor& threshold_,
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
  const ats_executor executor = executor_of(features.view);
  check(ats_expectation(features, attention, threshold, weights, estimator, expected, workspace, &executor));
  return expected.release();
}

inline std::tuple<Result, Result> expectation_backward(const Tensor& grad_, const Tensor& features_,
                                                       const Tensor& attention_, const OptionalTensor& threshold_,
                                                       const OptionalTensor& weights_, Name name) {
  const Argument grad = dense("grad", grad_), features = dense("features", features_),
                 attention = dense("attention", attention_);
  const OptionalArgument threshold("threshold", threshold_), weights("weights", weights_);
  size_t bytes = 0;
  check(ats_expectation_backward_workspace(attention, &bytes));
  Argument d_features = allocate(features.view, features.view), d_attention = allocate(attention.view, features.view);
  const Workspace workspace(bytes, features.view);
  const ats_executor executor = executor_of(features.view);
  check(ats_expectation_backward(grad, features, attention, threshold, weights, estimator_of(name), d_features,
                                 d_attention, workspace, &executor));
  return {d_features.release(), d_attention.release()};
}

inline std::tuple<Result, Result> estimator_arrays(const Tensor& attention_, const OptionalTensor& threshold_,
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
  const ats_executor executor = executor_of(attention.view);
  check(ats_estimator_arrays(attention, threshold, weights, estimator, c, m, workspace, &executor));
  return {c.release(), m.release()};
}

// All of them, for the dispatch key that `library` is of.
inline void implement(torch::stable::detail::StableLibrary& library) {
  library.impl("sample", TORCH_BOX(&sample));
  library.impl("topk", TORCH_BOX(&topk));
  library.impl("sample_backward", TORCH_BOX(&sample_backward));
  library.impl("locate", TORCH_BOX(&locate));
  library.impl("extract_patches", TORCH_BOX(&extract_patches));
  library.impl("extract_patches_backward", TORCH_BOX(&extract_patches_backward));
  library.impl("expectation", TORCH_BOX(&expectation));
  library.impl("expectation_backward", TORCH_BOX(&expectation_backward));
  library.impl("estimator_arrays", TORCH_BOX(&estimator_arrays));
}

}  // namespace ats_torch
