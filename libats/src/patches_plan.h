// One call of extract_patches or its backward, checked and brought to three spatial axes (missing ones have size 1).
#pragma once

#include "core.h"
#include "patches_math.h"

namespace ats {

struct PatchesPlan {
  int64_t batch = 0, samples = 0, channels = 0;
  int spatial = 0, n_scales = 1, padding = 0;
  int64_t scales[ATS_MAX_SCALES] = {1};
  int64_t image[3] = {1, 1, 1}, patch[3] = {1, 1, 1};
  // strides, in elements
  int64_t image_batch = 0, image_axis[3] = {}, image_channel = 0;
  int64_t patch_batch = 0, patch_sample = 0, patch_scale = 0, patch_axis[3] = {}, patch_channel = 0;
  int64_t origin_batch = 0, origin_sample = 0, origin_axis = 0;
  const int64_t* origins = nullptr;
  double fill = 0.0;
  const double* mean = nullptr;
  const double* std = nullptr;

  // Axes that were added have scale 1, whatever the others have.
  ATS_HD Axis axis(int a, int s) const { return {image[a], patch[a], a < 3 - spatial ? 1 : scales[s]}; }
  ATS_HD int64_t averaged(int s) const {
    int64_t count = 1;
    for (int a = 0; a < 3; ++a) count *= axis(a, s).scale;
    return count;
  }
  // The channels of a pixel lie side by side, and the pixels of a row behind each other.
  bool image_interleaved() const { return image_channel == 1 && image_axis[2] == channels; }
  bool patch_interleaved() const { return patch_channel == 1 && patch_axis[2] == channels; }
  ATS_HD int64_t start(int a, int64_t b, int64_t n, int s) const {
    const int real = a - (3 - spatial);
    if (real < 0) return 0;
    return patch_start(axis(a, s), origins[b * origin_batch + n * origin_sample + real * origin_axis], padding);
  }
};

// Checks shapes and options, and gives the shape of the patches. Sizes may be unknown.
ats_tensor patches_shape(const char* op, const ats_tensor* image, const char* image_name, const ats_tensor* origins,
                         const ats_patches_options* options, unsigned image_dtypes);
// Of tensors that were checked against that shape.
PatchesPlan make_plan(const ats_tensor& image, const ats_tensor& origins, const ats_patches_options& options,
                      const ats_tensor& patches);

}  // namespace ats
