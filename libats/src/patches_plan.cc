#include "patches_plan.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace ats {
namespace {

// So that positions and products of sizes cannot overflow, and no scale asks for hours of averaging by mistake.
constexpr int64_t kLargestImage = int64_t(1) << 52;
constexpr int64_t kLargestPatch = int64_t(1) << 30;
constexpr double kLargestAverage = 0x1p20;

void check_options(const char* op, const ats_patches_options& options, int64_t channels) {
  if (options.padding < ATS_PAD_CONSTANT || options.padding > ATS_PAD_REFLECT)
    fail("%s: padding must be constant, edge or reflect, got %d", op, int(options.padding));
  if (options.n_scales < 0 || options.n_scales > ATS_MAX_SCALES)
    fail("%s: scales must have at most %d values, got %d", op, ATS_MAX_SCALES, int(options.n_scales));
  for (int axis = 0; axis < options.spatial; ++axis)
    if (options.patch[axis] < 1 || options.patch[axis] > kLargestPatch)
      fail("%s: patch_size must be at least 1 (and at most 2^30) on every axis, got %s", op,
           shape_text(options.patch, options.spatial).c_str());
  for (int s = 0; s < options.n_scales; ++s)
    if (options.scales[s] < 1 || std::pow(double(options.scales[s]), options.spatial) > kLargestAverage)
      fail("%s: scales must be at least 1 and average at most 2^20 pixels into one, got %lld", op,
           static_cast<long long>(options.scales[s]));
  for (const int64_t length : {options.n_mean, options.n_std})
    if (length < 0) fail("%s: n_mean and n_std must not be negative, got %lld", op, static_cast<long long>(length));
  if (options.mean) check_same_size({op, "mean"}, options.n_mean, "length", channels, "the image's channel axis");
  if (options.std) {
    check_same_size({op, "std"}, options.n_std, "length", channels, "the image's channel axis");
    for (int64_t c = 0; c < options.n_std; ++c)
      if (!(std::fabs(options.std[c]) >= double(std::numeric_limits<float>::min())))
        fail("%s: std must not be 0 (nor vanish in float32) nor NaN, got %g for channel %lld", op, options.std[c],
             static_cast<long long>(c));
  }
}

}  // namespace

ats_tensor patches_shape(const char* op, const ats_tensor* image, const char* image_name, const ats_tensor* origins,
                         const ats_patches_options* options, unsigned image_dtypes) {
  check_pointer({op, "options"}, options);
  const char* layouts[] = {"(B, length, C)", "(B, height, width, C)", "(B, depth, height, width, C)"};
  const int spatial = options->spatial;
  if (spatial < 1 || spatial > 3) fail("%s: patch_size must have 1, 2 or 3 values, got %d", op, spatial);
  check_described({op, image_name}, image, image_dtypes, spatial + 2, spatial + 2, layouts[spatial - 1]);
  check_described({op, "origins"}, origins, kInteger64, 3, 3, "(B, N, D)");
  check_same_size({op, "origins"}, origins->shape[0], "B", image->shape[0], image_name);
  check_same_size({op, "origins"}, origins->shape[2], "D", spatial, "patch_size");
  check_options(op, *options, image->shape[spatial + 1]);
  for (int axis = 0; axis < spatial; ++axis)
    if (image->shape[axis + 1] > kLargestImage)
      fail("%s: %s must have at most 2^52 pixels along an axis, got %s", op, image_name, shape_text(*image).c_str());
  for (int axis = 0; axis < spatial; ++axis)
    if (image->shape[axis + 1] == 0 && options->padding != ATS_PAD_CONSTANT)
      fail("%s: %s has an axis of size 0, %s, which only constant padding can fill", op, image_name,
           shape_text(*image).c_str());

  ats_tensor patches{};
  patches.dtype = options->dtype;
  patches.shape[patches.ndim++] = image->shape[0];
  patches.shape[patches.ndim++] = origins->shape[1];
  if (options->n_scales > 0) patches.shape[patches.ndim++] = options->n_scales;
  for (int axis = 0; axis < spatial; ++axis) patches.shape[patches.ndim++] = options->patch[axis];
  patches.shape[patches.ndim++] = image->shape[spatial + 1];
  int64_t bytes = 8;
  for (int axis = 0; axis < patches.ndim; ++axis)
    bytes = multiply_sizes({op, "patch_size"}, bytes, patches.shape[axis]);
  set_contiguous_strides(patches);
  return on_device_of(*image, patches);
}

PatchesPlan make_plan(const ats_tensor& image, const ats_tensor& origins, const ats_patches_options& options,
                      const ats_tensor& patches) {
  PatchesPlan plan;
  plan.spatial = options.spatial;
  plan.padding = options.padding;
  plan.fill = options.fill;
  plan.mean = options.mean;
  plan.std = options.std;
  plan.batch = image.shape[0];
  plan.samples = origins.shape[1];
  plan.channels = image.shape[image.ndim - 1];
  plan.image_batch = image.strides[0];
  plan.image_channel = image.strides[image.ndim - 1];
  plan.origins = data_of<const int64_t>(origins);
  plan.origin_batch = origins.strides[0];
  plan.origin_sample = origins.strides[1];
  plan.origin_axis = origins.strides[2];
  int axis_of_patches = 2;
  plan.patch_batch = patches.strides[0];
  plan.patch_sample = patches.strides[1];
  if (options.n_scales > 0) {
    plan.n_scales = options.n_scales;
    for (int s = 0; s < options.n_scales; ++s) plan.scales[s] = options.scales[s];
    plan.patch_scale = patches.strides[axis_of_patches++];
  }
  const int added = 3 - options.spatial;
  for (int axis = 0; axis < options.spatial; ++axis, ++axis_of_patches) {
    plan.image[added + axis] = image.shape[1 + axis];
    plan.image_axis[added + axis] = image.strides[1 + axis];
    plan.patch[added + axis] = options.patch[axis];
    plan.patch_axis[added + axis] = patches.strides[axis_of_patches];
  }
  plan.patch_channel = patches.strides[axis_of_patches];
  if (element_count(image) == 0) {  // there may be no data to point at
    plan.image_batch = plan.image_channel = 0;
    std::fill_n(plan.image_axis, 3, 0);
  }
  return plan;
}

}  // namespace ats
