// ats_core._core: the NumPy edge. Views of arrays in, arrays out; every rule and every error's words are the core's.
// What callers may write (lists, ints for tuples, defaults) is settled in python/ats_core before it comes here.
#include "arrays.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <climits>

namespace {

using namespace ats_python;

using Sizes = std::vector<int64_t>;

template <size_t N>
void copy_sizes(const char* name, const Sizes& sizes, int64_t (&out)[N]) {
  if (sizes.size() > N)
    throw py::value_error(std::string(name) + ": at most " + std::to_string(N) + " values are taken");
  std::copy(sizes.begin(), sizes.end(), out);
}

// ---- sample, topk ----

template <typename Shape, typename Size, typename Draw>
py::tuple draw(const Input& attention, const ats_sample_options& options, Shape shape, Size size, Draw draw_cells) {
  ats_tensor wanted[4] = {};
  size_t bytes = 0;
  check(shape(attention, &options, &wanted[0], &wanted[1], &wanted[2], &wanted[3]));
  check(size(attention, &options, &bytes));
  Output indices(wanted[0]), probabilities(wanted[1]), threshold(wanted[2]), log_mass(wanted[3]);
  Workspace workspace(bytes);
  run([&] { return draw_cells(indices, probabilities, threshold, log_mass, workspace); });
  return py::make_tuple(indices.array, probabilities.array, threshold.array, log_mass.array);
}

py::tuple sample(py::array attention_array, int64_t n, bool replace, bool logits, py::array rng_array) {
  Input attention("attention", std::move(attention_array), 1), rng("rng", std::move(rng_array));
  const ats_sample_options options{n, replace, logits};
  return draw(attention, options, ats_sample_shape, ats_sample_workspace,
              [&](View i, View p, View t, View m, void* workspace) {
                return ats_sample(attention, rng, &options, i, p, t, m, workspace, ats_thread_pool());
              });
}

py::tuple topk(py::array attention_array, int64_t n, bool logits) {
  Input attention("attention", std::move(attention_array), 1);
  const ats_sample_options options{n, 0, logits};
  return draw(attention, options, ats_topk_shape, ats_topk_workspace,
              [&](View i, View p, View t, View m, void* workspace) {
                return ats_topk(attention, &options, i, p, t, m, workspace, ats_thread_pool());
              });
}

py::array sample_backward(py::array grad_array, py::array attention_array, py::array indices_array,
                          py::array probabilities_array, py::array log_mass_array, bool logits) {
  Input grad("grad", std::move(grad_array), 0), attention("attention", std::move(attention_array), 1),
      indices("indices", std::move(indices_array), 0),
      probabilities("probabilities", std::move(probabilities_array), 0),
      log_mass("log_mass", std::move(log_mass_array), 0);
  Output d_attention(*attention);
  run([&] {
    return ats_sample_backward(grad, attention, indices, probabilities, log_mass, logits, d_attention,
                               ats_thread_pool());
  });
  return d_attention.array;
}

// ---- locate, extract_patches ----

py::array locate(py::array indices_array, const Sizes& grid, const Sizes& low, const Sizes& image, const Sizes& patch,
                 const Sizes& receptive_field) {
  Input indices("indices", std::move(indices_array), 0);
  ats_locate_options options{};
  options.spatial = static_cast<int32_t>(grid.size());
  copy_sizes("grid", grid, options.grid);
  copy_sizes("low_shape", low, options.low);
  copy_sizes("image_shape", image, options.image);
  copy_sizes("patch_size", patch, options.patch);
  copy_sizes("receptive_field", receptive_field, options.receptive_field);
  ats_tensor wanted{};
  check(ats_locate_shape(indices, &options, &wanted));
  Output origins(wanted);
  run([&] { return ats_locate(indices, &options, origins, ats_thread_pool()); });
  return origins.array;
}

using Statistics = std::optional<std::vector<double>>;

// Points into mean and std, which the caller keeps.
ats_patches_options patches_options(const Sizes& patch, const Sizes& scales, const std::string& padding, double fill,
                                    const py::dtype& dtype, const Statistics& mean, const Statistics& std) {
  ats_patches_options options{};
  options.spatial = static_cast<int32_t>(patch.size());
  copy_sizes("patch_size", patch, options.patch);
  options.n_scales = static_cast<int32_t>(scales.size());
  copy_sizes("scales", scales, options.scales);
  check(ats_padding_by_name(padding.c_str(), &options.padding));
  options.dtype = core_dtype("dtype", dtype);
  options.fill = fill;
  if (mean) options.mean = mean->data(), options.n_mean = static_cast<int64_t>(mean->size());
  if (std) options.std = std->data(), options.n_std = static_cast<int64_t>(std->size());
  return options;
}

py::array extract_patches(py::array image_array, py::array origins_array, const Sizes& patch, const Sizes& scales,
                          const std::string& padding, double fill, const py::dtype& dtype, const Statistics& mean,
                          const Statistics& std, bool channels_first) {
  Input image("image", std::move(image_array)), origins("origins", std::move(origins_array));
  const ats_patches_options options = patches_options(patch, scales, padding, fill, dtype, mean, std);
  ats_tensor wanted{};
  check(ats_extract_patches_shape(image, origins, &options, &wanted));
  Output patches(wanted, channels_first ? options.spatial : 0);
  run([&] { return ats_extract_patches(image, origins, &options, patches, ats_thread_pool()); });
  return patches.array;
}

py::array extract_patches_backward(py::array grad_array, py::array origins_array, const Sizes& image_shape,
                                   const Sizes& patch, const Sizes& scales, const std::string& padding,
                                   const py::dtype& dtype, const Statistics& std, bool channels_first) {
  Input grad("grad", std::move(grad_array)), origins("origins", std::move(origins_array));
  const ats_patches_options options =
      patches_options(patch, scales, padding, 0.0, py::dtype::of<float>(), std::nullopt, std);
  ats_tensor wanted{};
  wanted.ndim = static_cast<int32_t>(image_shape.size());
  wanted.dtype = core_dtype("dtype", dtype);
  copy_sizes("image_shape", image_shape, wanted.shape);
  Output d_image(wanted, channels_first ? options.spatial : 0);
  size_t bytes = 0;
  check(ats_extract_patches_backward_workspace(d_image, &bytes));
  Workspace workspace(bytes);
  run([&] { return ats_extract_patches_backward(grad, origins, &options, d_image, workspace, ats_thread_pool()); });
  return d_image.array;
}

// ---- expectation ----

int32_t estimator_of(const std::string& name) {
  int32_t estimator = 0;
  check(ats_estimator_by_name(name.c_str(), &estimator));
  return estimator;
}

py::array expectation(py::array features_array, py::array attention_array, const std::string& name,
                      std::optional<py::array> threshold_array, std::optional<py::array> weights_array) {
  Input features("features", std::move(features_array), 2), attention("attention", std::move(attention_array));
  OptionalInput threshold("threshold", std::move(threshold_array)), weights("weights", std::move(weights_array));
  const int32_t estimator = estimator_of(name);
  ats_tensor wanted{};
  size_t bytes = 0;
  check(ats_expectation_shape(features, attention, threshold, weights, estimator, &wanted));
  check(ats_expectation_workspace(attention, &bytes));
  Output expected(wanted);
  Workspace workspace(bytes);
  run([&] {
    return ats_expectation(features, attention, threshold, weights, estimator, expected, workspace, ats_thread_pool());
  });
  return expected.array;
}

py::tuple expectation_backward(py::array grad_array, py::array features_array, py::array attention_array,
                               const std::string& name, std::optional<py::array> threshold_array,
                               std::optional<py::array> weights_array) {
  Input grad("grad", std::move(grad_array), 1), features("features", std::move(features_array), 2),
      attention("attention", std::move(attention_array));
  OptionalInput threshold("threshold", std::move(threshold_array)), weights("weights", std::move(weights_array));
  const int32_t estimator = estimator_of(name);
  size_t bytes = 0;
  check(ats_expectation_backward_workspace(attention, &bytes));
  Output d_features(*features), d_attention(*attention);
  Workspace workspace(bytes);
  run([&] {
    return ats_expectation_backward(grad, features, attention, threshold, weights, estimator, d_features, d_attention,
                                    workspace, ats_thread_pool());
  });
  return py::make_tuple(d_features.array, d_attention.array);
}

py::tuple estimator_arrays(py::array attention_array, const std::string& name, std::optional<py::array> threshold_array,
                           std::optional<py::array> weights_array) {
  Input attention("attention", std::move(attention_array));
  OptionalInput threshold("threshold", std::move(threshold_array)), weights("weights", std::move(weights_array));
  const int32_t estimator = estimator_of(name);
  ats_tensor wanted[2] = {};
  size_t bytes = 0;
  check(ats_estimator_arrays_shape(attention, threshold, weights, estimator, &wanted[0], &wanted[1]));
  check(ats_estimator_arrays_workspace(attention, &bytes));
  Output c(wanted[0]), m(wanted[1]);
  Workspace workspace(bytes);
  run([&] {
    return ats_estimator_arrays(attention, threshold, weights, estimator, c, m, workspace, ats_thread_pool());
  });
  return py::make_tuple(c.array, m.array);
}

}  // namespace

PYBIND11_MODULE(_core, module) {
  module.def("version", [] { return ats_version(); });
  module.def("cuda_architectures", [] { return ATS_CUDA_ARCHITECTURES; });
  module.def("get_num_threads", [] { return ats_get_num_threads(); });
  module.def("set_num_threads", [](int64_t threads) {
    check(ats_set_num_threads(static_cast<int>(std::clamp<int64_t>(threads, INT_MIN, INT_MAX))));
  });
  module.def("sample", &sample);
  module.def("topk", &topk);
  module.def("sample_backward", &sample_backward);
  module.def("locate", &locate);
  module.def("extract_patches", &extract_patches);
  module.def("extract_patches_backward", &extract_patches_backward);
  module.def("expectation", &expectation);
  module.def("expectation_backward", &expectation_backward);
  module.def("estimator_arrays", &estimator_arrays);
}
