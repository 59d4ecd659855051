// extract_patches: cut, average, convert and normalise in one pass over the pixels that are needed.
#include <algorithm>
#include <cstring>

#include "patches_plan.h"

namespace ats {
namespace {

constexpr const char* kOp = "extract_patches";

// Pixels to patch values: (x - mean[c]) / std[c] in the type A, then narrowed to Out.
template <typename Out, typename A>
struct Normalize {
  A mean, std;
  bool active;
  Normalize(const PatchesPlan& plan, int64_t channel)
      : mean(plan.mean ? A(plan.mean[channel]) : A(0)),
        std(plan.std ? A(plan.std[channel]) : A(1)),
        active(plan.mean || plan.std) {}
  Out operator()(A x) const { return store<Out>(active ? (x - mean) / std : x); }
};

// A row of a patch (all of its last spatial axis, all channels), copied pixel for pixel.
template <typename In, typename Out, typename A>
void copy_row(const PatchesPlan& plan, const In* source, int64_t start, Out* out) {
  const Axis axis = plan.axis(2, 0);
  const int64_t width = plan.patch[2], channels = plan.channels;
  const int64_t in_x = plan.image_axis[2], in_c = plan.image_channel;
  const int64_t out_x = plan.patch_axis[2], out_c = plan.patch_channel;
  // [left, right) of the row lies inside the image.
  int64_t left = 0, right = 0;
  if (source != nullptr) {
    left = std::clamp<int64_t>(-start, 0, width);
    right = std::clamp<int64_t>(axis.size - start, left, width);
  }

  const bool plain = std::is_same_v<In, Out> && !plan.mean && !plan.std;
  const bool interleaved = in_c == 1 && in_x == channels && out_c == 1 && out_x == channels;
  if (plain && interleaved && right > left) {
    std::memcpy(out + left * channels, source + (start + left) * channels,
                size_t((right - left) * channels) * sizeof(In));
  }
  for (int64_t c = 0; c < channels; ++c) {
    const Normalize<Out, A> normalize(plan, c);
    Out* to = out + c * out_c;
    const In* from = source ? source + c * in_c : nullptr;
    if (plain && !interleaved && in_x == 1 && out_x == 1) {
      if (right > left) std::memcpy(to + left, from + start + left, size_t(right - left) * sizeof(In));
    } else if (!(plain && interleaved)) {
      for (int64_t x = left; x < right; ++x) to[x * out_x] = normalize(A(load(from[(start + x) * in_x])));
    }
    if (left == 0 && right == width) continue;
    const Out fill = normalize(A(plan.fill));
    for (int64_t x = 0; x < width; ++x) {
      if (x == left && right > left) x = right;
      if (x >= width) break;
      const int64_t pixel = source ? source_pixel(axis, start + x, plan.padding) : kOutside;
      to[x * out_x] = pixel == kOutside ? fill : normalize(A(load(from[pixel * in_x])));
    }
  }
}

// Adds `scale` neighbouring pixels of one image row to each of `count` sums.
template <typename In>
void add_row(const PatchesPlan& plan, const Axis& axis, const In* source, int64_t start, int64_t count, double* sums) {
  for (int64_t x = 0; x < count; ++x) {
    const int64_t first = start + x * axis.scale;
    double sum = 0.0;
    if (source == nullptr) {
      sum = plan.fill * double(axis.scale);
    } else if (first >= 0 && first + axis.scale <= axis.size) {
      for (int64_t i = 0; i < axis.scale; ++i) sum += double(load(source[(first + i) * plan.image_axis[2]]));
    } else {
      for (int64_t i = 0; i < axis.scale; ++i) {
        const int64_t pixel = source_pixel(axis, first + i, plan.padding);
        sum += pixel == kOutside ? plan.fill : double(load(source[pixel * plan.image_axis[2]]));
      }
    }
    sums[x] += sum;
  }
}

// A row of a patch at a scale above 1: the average of scale^D pixels, summed in double.
template <typename In, typename Out>
void average_row(const PatchesPlan& plan, int s, const In* image, const int64_t* start, int64_t z, int64_t y,
                 Out* out) {
  constexpr int64_t kBlock = 128;  // sums that stay in the first cache
  const Axis depth = plan.axis(0, s), height = plan.axis(1, s), width = plan.axis(2, s);
  const double count = double(plan.averaged(s));
  for (int64_t c = 0; c < plan.channels; ++c) {
    const Normalize<Out, double> normalize(plan, c);
    for (int64_t x = 0; x < width.patch; x += kBlock) {
      const int64_t block = std::min(kBlock, width.patch - x);
      double sums[kBlock] = {};
      for (int64_t i = 0; i < depth.scale; ++i) {
        const int64_t source_z = source_pixel(depth, start[0] + z * depth.scale + i, plan.padding);
        for (int64_t j = 0; j < height.scale; ++j) {
          const int64_t source_y = source_pixel(height, start[1] + y * height.scale + j, plan.padding);
          const In* row =
              source_z == kOutside || source_y == kOutside
                  ? nullptr
                  : image + source_z * plan.image_axis[0] + source_y * plan.image_axis[1] + c * plan.image_channel;
          add_row(plan, width, row, start[2] + x * width.scale, block, sums);
        }
      }
      for (int64_t k = 0; k < block; ++k)
        out[(x + k) * plan.patch_axis[2] + c * plan.patch_channel] = normalize(sums[k] / count);
    }
  }
}

template <typename In, typename Out>
void run(const PatchesPlan& plan, const ats_tensor& image, const ats_tensor& patches, const ats_executor* executor) {
  // Single precision holds every value of the narrow dtypes exactly.
  constexpr bool kDouble = std::is_same_v<In, double> || std::is_same_v<Out, double>;
  using A = std::conditional_t<kDouble, double, float>;
  const int64_t rows = plan.patch[0] * plan.patch[1];
  const int64_t total = plan.batch * plan.samples * plan.n_scales * rows;
  double cost = 0.0;
  for (int s = 0; s < plan.n_scales; ++s) cost += double(plan.averaged(s));
  cost *= double(plan.patch[2]) * double(plan.channels) / double(plan.n_scales);
  parallel_for(executor, total, grain_for(int64_t(std::min(cost, 1e9))), [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t row = item % rows, y = row % plan.patch[1], z = row / plan.patch[1];
      const int s = int(item / rows % plan.n_scales);
      const int64_t sample = item / rows / plan.n_scales, n = sample % plan.samples, b = sample / plan.samples;
      const In* source = data_of<const In>(image) + b * plan.image_batch;
      Out* out = data_of<Out>(patches) + b * plan.patch_batch + n * plan.patch_sample + s * plan.patch_scale +
                 z * plan.patch_axis[0] + y * plan.patch_axis[1];
      const int64_t start[3] = {plan.start(0, b, n, s), plan.start(1, b, n, s), plan.start(2, b, n, s)};
      if (plan.averaged(s) > 1) {
        average_row(plan, s, source, start, z, y, out);
      } else {
        const int64_t source_z = source_pixel(plan.axis(0, s), start[0] + z, plan.padding);
        const int64_t source_y = source_pixel(plan.axis(1, s), start[1] + y, plan.padding);
        const bool outside = source_z == kOutside || source_y == kOutside;
        copy_row<In, Out, A>(plan,
                             outside ? nullptr : source + source_z * plan.image_axis[0] + source_y * plan.image_axis[1],
                             start[2], out);
      }
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
    if (element_count(*patches) == 0) return;
    const PatchesPlan plan = make_plan(*image, *origins, *options, *patches);
    dispatch_image(image->dtype, [&](auto in) {
      using In = typename decltype(in)::type;
      if (patches->dtype == image->dtype) return run<In, In>(plan, *image, *patches, executor);
      dispatch_floating(patches->dtype,
                        [&](auto out) { run<In, typename decltype(out)::type>(plan, *image, *patches, executor); });
    });
  });
}
