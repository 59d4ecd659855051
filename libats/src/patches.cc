// extract_patches: cut, average, convert and normalise in one pass over the pixels that are needed.
#include <cstring>

#include "cuda_ops.h"
#include "patches_average.h"
#include "patches_rows.h"

namespace ats {
namespace {

constexpr const char* kOp = "extract_patches";

template <typename In, typename Out>
class Extraction {
 public:
  // Single precision holds every value of the narrow dtypes exactly.
  using A = std::conditional_t<std::is_same_v<In, double> || std::is_same_v<Out, double>, double, float>;

  Extraction(const PatchesPlan& plan)
      : plan_(plan),
        interleaved_(plan.image_interleaved() && plan.patch_interleaved()),
        normalization_(plan.channels, plan.mean, plan.std, interleaved_),
        plain_(std::is_same_v<In, Out> && !normalization_.active()),
        strip_(interleaved_ ? plan.channels : 1),
        in_rows_(interleaved_ || plan.image_axis[2] == 1),
        out_rows_(interleaved_ || plan.patch_axis[2] == 1) {}

  // Rows [first, last) of slice z of a patch.
  void copy(const In* image, const int64_t* start, int64_t z, int64_t first, int64_t last, Out* patch) const {
    const Axis depth{plan_.image[0], plan_.patch[0], 1}, height{plan_.image[1], plan_.patch[1], 1};
    const int64_t source_z = source_pixel(depth, start[0] + z, plan_.padding);
    const int64_t above = std::clamp<int64_t>(-start[1], first, last);
    const int64_t below = std::clamp<int64_t>(height.size - start[1], above, last);
    for (int64_t c = 0; c < plan_.channels; c += strip_) {
      Out* out = patch + c * plan_.patch_channel;
      if (source_z == kOutside) {
        copy_rows(nullptr, start[2], last - first, c, out + first * plan_.patch_axis[1]);
        continue;
      }
      const In* slice = image + source_z * plan_.image_axis[0] + c * plan_.image_channel;
      const auto row_alone = [&](int64_t y) {
        const int64_t source_y = source_pixel(height, start[1] + y, plan_.padding);
        copy_rows(source_y == kOutside ? nullptr : slice + source_y * plan_.image_axis[1], start[2], 1, c,
                  out + y * plan_.patch_axis[1]);
      };
      for (int64_t y = first; y < above; ++y) row_alone(y);
      if (above < below)
        copy_rows(slice + (start[1] + above) * plan_.image_axis[1], start[2], below - above, c,
                  out + above * plan_.patch_axis[1]);
      for (int64_t y = below; y < last; ++y) row_alone(y);
    }
  }

 private:
  // Rows from `source` on, or rows outside the image (null).
  void copy_rows(const In* source, int64_t start, int64_t rows, int64_t c, Out* out) const {
    const Axis axis{plan_.image[2], plan_.patch[2], 1};
    const int64_t in_x = plan_.image_axis[2], in_y = plan_.image_axis[1];
    const int64_t out_x = plan_.patch_axis[2], out_y = plan_.patch_axis[1];
    // [left, right) of the rows lies inside the image.
    int64_t left = 0, right = 0;
    if (source != nullptr) {
      left = std::clamp<int64_t>(-start, 0, axis.patch);
      right = std::clamp<int64_t>(axis.size - start, left, axis.patch);
    }
    if (left < right) copy_inside(source + (start + left) * in_x, rows, right - left, c, out + left * out_x);
    for (int64_t x = 0; x < axis.patch; ++x) {
      if (x == left) x = right;
      if (x >= axis.patch) break;
      const int64_t pixel = source ? source_pixel(axis, start + x, plan_.padding) : kOutside;
      for (int64_t k = 0; k < strip_; ++k) {
        for (int64_t row = 0; row < rows; ++row) {
          const A value = pixel == kOutside ? A(plan_.fill) : A(load(source[row * in_y + pixel * in_x + k]));
          out[row * out_y + x * out_x + k] = normalize(value, c, k);
        }
      }
    }
  }

  void copy_inside(const In* from, int64_t rows, int64_t width, int64_t c, Out* to) const {
    const int64_t in_y = plan_.image_axis[1], out_y = plan_.patch_axis[1], count = width * strip_;
    if (in_rows_ && out_rows_) {
      if constexpr (std::is_same_v<In, Out>) {
        if (plain_) {
          on_this_cpu<CopyRows<In>>(from, in_y, to, out_y, rows, count);
          return;
        }
      }
      convert_rows<In>(from, in_y, to, out_y, rows, count, normalization_, c);
      return;
    }
    const int64_t in_x = plan_.image_axis[2], out_x = plan_.patch_axis[2];
    for (int64_t row = 0; row < rows; ++row, from += in_y, to += out_y) {
      if (in_x > 0 && row + kAhead < rows) prefetch_row(from + kAhead * in_y, width * in_x);
      for (int64_t x = 0; x < width; ++x) to[x * out_x] = normalize(A(load(from[x * in_x])), c, 0);
    }
  }

  Out normalize(A x, int64_t c, int64_t k) const {
    if (!normalization_.active()) return store<Out>(x);
    return normalized<Out, true>(x, normalization_.mean_of(c)[k], normalization_.std_of(c)[k]);
  }

  const PatchesPlan& plan_;
  bool interleaved_;
  Normalization<A> normalization_;
  bool plain_;
  int64_t strip_;  // channels that are copied together
  bool in_rows_, out_rows_;
};

template <typename In, typename Out>
void run(const PatchesPlan& plan, const ats_tensor& image, const ats_tensor& patches, const ats_executor* executor) {
  const Extraction<In, Out> extraction(plan);
  const Averaging<In, Out> averaging(plan);
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
      const In* source = data_of<const In>(image) + b * plan.image_batch;
      Out* out = data_of<Out>(patches) + b * plan.patch_batch + n * plan.patch_sample + s * plan.patch_scale +
                 z * plan.patch_axis[0];
      const int64_t start[3] = {plan.start(0, b, n, s), plan.start(1, b, n, s), plan.start(2, b, n, s)};
      if (plan.averaged(s) > 1) {
        for (int64_t k = y; k < stop; ++k) averaging.row(s, source, start, z, k, out + k * plan.patch_axis[1]);
      } else {
        extraction.copy(source, start, z, y, stop, out);
      }
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
    dispatch_image(image->dtype, [&](auto in) {
      using In = typename decltype(in)::type;
      if (patches->dtype == image->dtype) return run<In, In>(plan, *image, *patches, executor);
      dispatch_floating(patches->dtype,
                        [&](auto out) { run<In, typename decltype(out)::type>(plan, *image, *patches, executor); });
    });
  });
}
