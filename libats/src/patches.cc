// extract_patches: cut, average, convert and normalise in one pass over the pixels that are needed.
#include <algorithm>

#include "cuda_ops.h"
#include "patches_average.h"
#include "patches_convert.h"
#include "patches_plan.h"

namespace ats {
namespace {

constexpr const char* kOp = "extract_patches";

class Extraction {
 public:
  Extraction(const PatchesPlan& plan, int from, int to)
      : plan_(plan),
        in_bytes_(item_size(from)),
        out_bytes_(item_size(to)),
        interleaved_(plan.image_interleaved() && plan.patch_interleaved()),
        in_rows_(interleaved_ || plan.image_axis[2] == 1),
        out_rows_(interleaved_ || plan.patch_axis[2] == 1),
        strip_(interleaved_ ? plan.channels : 1),
        converter_(make_converter(from, to, plan.channels, plan.mean, plan.std, interleaved_)) {}

  // Rows [first, last) of slice z of a patch.
  void copy(const char* image, const int64_t* start, int64_t z, int64_t first, int64_t last, char* patch) const {
    const Axis depth{plan_.image[0], plan_.patch[0], 1}, height{plan_.image[1], plan_.patch[1], 1};
    const int64_t source_z = source_pixel(depth, start[0] + z, plan_.padding);
    const int64_t above = std::clamp<int64_t>(-start[1], first, last);
    const int64_t below = std::clamp<int64_t>(height.size - start[1], above, last);
    for (int64_t c = 0; c < plan_.channels; c += strip_) {
      const auto row = [&](int64_t y) {
        return patch + (c * plan_.patch_channel + y * plan_.patch_axis[1]) * out_bytes_;
      };
      if (source_z == kOutside) {
        copy_rows(nullptr, start[2], last - first, c, row(first));
        continue;
      }
      const char* slice = image + (source_z * plan_.image_axis[0] + c * plan_.image_channel) * in_bytes_;
      const auto source = [&](int64_t y) { return slice + y * plan_.image_axis[1] * in_bytes_; };
      const auto row_alone = [&](int64_t y) {
        const int64_t source_y = source_pixel(height, start[1] + y, plan_.padding);
        copy_rows(source_y == kOutside ? nullptr : source(source_y), start[2], 1, c, row(y));
      };
      for (int64_t y = first; y < above; ++y) row_alone(y);
      if (above < below) copy_rows(source(start[1] + above), start[2], below - above, c, row(above));
      for (int64_t y = below; y < last; ++y) row_alone(y);
    }
  }

 private:
  // Rows from `source` on, or rows outside the image (null).
  void copy_rows(const char* source, int64_t start, int64_t rows, int64_t c, char* out) const {
    const Axis axis{plan_.image[2], plan_.patch[2], 1};
    // [left, right) of the rows lies inside the image.
    int64_t left = 0, right = 0;
    if (source != nullptr) {
      left = std::clamp<int64_t>(-start, 0, axis.patch);
      right = std::clamp<int64_t>(axis.size - start, left, axis.patch);
    }
    if (left < right) copy_inside(source_at(source, start + left), rows, right - left, c, out_at(out, left));
    for (int64_t k = 0; k < strip_; ++k) {
      if (source == nullptr || plan_.padding == ATS_PAD_CONSTANT) {
        fill(rows, 0, left, c, k, out);
        fill(rows, right, axis.patch, c, k, out);
        continue;
      }
      for (int64_t x = 0; x < axis.patch; ++x) {
        if (x == left) x = right;
        if (x >= axis.patch) break;
        const int64_t pixel = source_pixel(axis, start + x, plan_.padding);
        converter_->pixels(source_at(source, pixel) + k * in_bytes_, plan_.image_axis[1], 0,
                           out_at(out, x) + k * out_bytes_, plan_.patch_axis[1], 0, rows, 1, c + k);
      }
    }
  }

  // Pixels [first, last) of the rows.
  void fill(int64_t rows, int64_t first, int64_t last, int64_t c, int64_t k, char* out) const {
    if (first < last)
      converter_->fill(plan_.fill, out_at(out, first) + k * out_bytes_, plan_.patch_axis[1], plan_.patch_axis[2], rows,
                       last - first, c + k);
  }

  void copy_inside(const char* from, int64_t rows, int64_t width, int64_t c, char* to) const {
    const int64_t in_y = plan_.image_axis[1], out_y = plan_.patch_axis[1];
    if (in_rows_ && out_rows_) converter_->rows(from, in_y, to, out_y, rows, width * strip_, c);
    else converter_->pixels(from, in_y, plan_.image_axis[2], to, out_y, plan_.patch_axis[2], rows, width, c);
  }

  const char* source_at(const char* row, int64_t x) const { return row + x * plan_.image_axis[2] * in_bytes_; }
  char* out_at(char* row, int64_t x) const { return row + x * plan_.patch_axis[2] * out_bytes_; }

  const PatchesPlan& plan_;
  int64_t in_bytes_, out_bytes_;
  bool interleaved_, in_rows_, out_rows_;
  int64_t strip_;  // channels that are copied together
  std::unique_ptr<Converter> converter_;
};

void run(const PatchesPlan& plan, const ats_tensor& image, const ats_tensor& patches, const ats_executor* executor) {
  const Extraction extraction(plan, image.dtype, patches.dtype);
  const std::unique_ptr<Averaging> averaging = make_averaging(plan, image.dtype, patches.dtype);
  const int64_t in_bytes = item_size(image.dtype), out_bytes = item_size(patches.dtype);
  const int64_t height = plan.patch[1], rows = plan.patch[0] * height;
  const int64_t total = plan.batch * plan.samples * plan.n_scales * rows;
  double cost = 0.0;
  for (int s = 0; s < plan.n_scales; ++s) cost += double(plan.averaged(s));
  cost *= double(plan.patch[2]) * double(plan.channels) / double(plan.n_scales);
  parallel_for(executor, total, grain_for(int64_t(std::min(cost, 1e9))), [&](int64_t begin, int64_t end) {
    // Slices of patches, or the part of one that this range has.
    for (int64_t item = begin; item < end;) {
      const int64_t index = item / rows, row = item % rows, z = row / height, y = row % height;
      const int64_t stop = std::min(height, y + end - item);
      const int s = int(index % plan.n_scales);
      const int64_t sample = index / plan.n_scales, n = sample % plan.samples, b = sample / plan.samples;
      const char* source = data_of<const char>(image) + b * plan.image_batch * in_bytes;
      char* out =
          data_of<char>(patches) +
          (b * plan.patch_batch + n * plan.patch_sample + s * plan.patch_scale + z * plan.patch_axis[0]) * out_bytes;
      const int64_t start[3] = {plan.start(0, b, n, s), plan.start(1, b, n, s), plan.start(2, b, n, s)};
      if (plan.averaged(s) > 1) averaging->rows(s, source, start, z, y, stop, out);
      else extraction.copy(source, start, z, y, stop, out);
      item += stop - y;
    }
  });
}

ats_tensor shape(const ats_tensor* image, const ats_tensor* origins, const ats_patches_options* options) {
  const ats_tensor patches = patches_shape(kOp, image, "image", origins, options, kImage);
  const bool floating = patches.dtype >= 0 && patches.dtype <= ATS_FLOAT64 && (kFloating & (1u << patches.dtype));
  if (patches.dtype != image->dtype && !floating)
    fail("extract_patches: dtype must be the image's, %s, or a floating one; got %s", dtype_name(image->dtype),
         dtype_name(patches.dtype));
  return patches;
}

}  // namespace
}  // namespace ats

using namespace ats;

int ats_extract_patches_shape(const ats_tensor* image, const ats_tensor* origins, const ats_patches_options* options,
                              ats_tensor* patches) noexcept {
  return guard([&] {
    check_pointer({kOp, "patches"}, patches);
    *patches = shape(image, origins, options);
  });
}

int ats_extract_patches(const ats_tensor* image, const ats_tensor* origins, const ats_patches_options* options,
                        const ats_tensor* patches, const ats_executor* executor) noexcept {
  return guard([&] {
    const ats_tensor expected = shape(image, origins, options);
    check_tensor({kOp, "image"}, image, kImage, 0, ATS_MAX_DIMS, "");
    check_tensor({kOp, "origins"}, origins, kInteger64, 3, 3, "(B, N, D)");
    check_output({kOp, "patches"}, patches, expected);
    const bool gpu = on_gpu(kOp, {{"image", image}, {"origins", origins}, {"patches", patches}});
    if (element_count(*patches) == 0) return;
    const PatchesPlan plan = make_plan(*image, *origins, *options, *patches);
    if (gpu) return cuda::extract_patches(plan, *image, *patches, executor);
    run(plan, *image, *patches, executor);
  });
}
