// The gradient of extract_patches with respect to the image: every patch value goes back, divided by the pixels it
// averaged and by std, to the pixels it came from.
//
// Threads own rows of the image and look for what falls into them, so that no addition needs an atomic and every
// pixel is summed in the order of the patches, however the rows are split.
#include <algorithm>

#include "patches_plan.h"

namespace ats {
namespace {

constexpr const char* kOp = "extract_patches_backward";

// The gradient image, or the float32 one in the workspace when the image has a half dtype: sums of many small numbers
// stand still in a half.
template <typename Sum>
struct Target {
  Sum* data;
  int64_t batch, axis[3], channel;
};

template <typename G, typename Sum>
void add_patch_row(const PatchesPlan& plan, int s, const G* grad, int64_t start, double averaged, Sum* row,
                   const Target<Sum>& target) {
  const Axis axis = plan.axis(2, s);
  for (int64_t c = 0; c < plan.channels; ++c) {
    const Sum divisor = Sum(averaged * (plan.std ? plan.std[c] : 1.0));
    for (int64_t x = 0; x < axis.patch; ++x) {
      const Sum value = Sum(load(grad[x * plan.patch_axis[2] + c * plan.patch_channel])) / divisor;
      for (int64_t i = 0; i < axis.scale; ++i) {
        const int64_t pixel = source_pixel(axis, start + x * axis.scale + i, plan.padding);
        if (pixel != kOutside) row[pixel * target.axis[2] + c * target.channel] += value;
      }
    }
  }
}

// Rows [first, last) of image b, numbered over depth and height.
template <typename G, typename Sum>
void add_rows(const PatchesPlan& plan, const G* grad, int64_t b, int64_t first, int64_t last,
              const Target<Sum>& target) {
  const int64_t height = plan.image[1];
  Sum* image = target.data + b * target.batch;
  for (int64_t n = 0; n < plan.samples; ++n) {
    for (int s = 0; s < plan.n_scales; ++s) {
      const Axis az = plan.axis(0, s), ay = plan.axis(1, s);
      const int64_t start_z = plan.start(0, b, n, s), start_y = plan.start(1, b, n, s);
      const int64_t start_x = plan.start(2, b, n, s);
      const double averaged = double(plan.averaged(s));
      const G* patch = grad + b * plan.patch_batch + n * plan.patch_sample + s * plan.patch_scale;
      for (int64_t z = 0; z < az.patch * az.scale; ++z) {
        const int64_t pixel_z = source_pixel(az, start_z + z, plan.padding);
        if (pixel_z == kOutside || (pixel_z + 1) * height <= first || pixel_z * height >= last) continue;
        for (int64_t y = 0; y < ay.patch * ay.scale; ++y) {
          const int64_t pixel_y = source_pixel(ay, start_y + y, plan.padding);
          const int64_t row = pixel_z * height + pixel_y;
          if (pixel_y == kOutside || row < first || row >= last) continue;
          add_patch_row(plan, s, patch + z / az.scale * plan.patch_axis[0] + y / ay.scale * plan.patch_axis[1], start_x,
                        averaged, image + pixel_z * target.axis[0] + pixel_y * target.axis[1], target);
        }
      }
    }
  }
}

template <typename Sum>
void zero_row(const PatchesPlan& plan, Sum* row, const Target<Sum>& target) {
  // The smaller stride in the inner loop.
  const bool channels_inside = target.channel <= target.axis[2];
  const int64_t outer = channels_inside ? plan.image[2] : plan.channels;
  const int64_t inner = channels_inside ? plan.channels : plan.image[2];
  const int64_t outer_stride = channels_inside ? target.axis[2] : target.channel;
  const int64_t inner_stride = channels_inside ? target.channel : target.axis[2];
  for (int64_t i = 0; i < outer; ++i)
    for (int64_t j = 0; j < inner; ++j) row[i * outer_stride + j * inner_stride] = Sum(0);
}

template <typename G, typename D, typename Sum>
void run(const PatchesPlan& plan, const ats_tensor& grad, const ats_tensor& d_image, void* workspace,
         const ats_executor* executor) {
  constexpr bool kSeparate = !std::is_same_v<D, Sum>;
  Target<Sum> target;
  if constexpr (kSeparate) {
    const int64_t row = plan.image[2] * plan.channels;
    target = {static_cast<Sum*>(workspace),
              plan.image[0] * plan.image[1] * row,
              {plan.image[1] * row, row, plan.channels},
              1};
  } else {
    target = {data_of<Sum>(d_image),
              plan.image_batch,
              {plan.image_axis[0], plan.image_axis[1], plan.image_axis[2]},
              plan.image_channel};
  }
  const int64_t rows = plan.image[0] * plan.image[1];
  const int64_t total = plan.batch * rows;
  // Every range looks at all patches of its images, so there are few.
  const int64_t grain = std::max<int64_t>(total / 16, grain_for(plan.image[2] * plan.channels));
  parallel_for(executor, total, grain, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin / rows; b * rows < end; ++b) {
      const int64_t first = std::max(begin - b * rows, int64_t(0)), last = std::min(end - b * rows, rows);
      const auto offset = [&](int64_t row, const int64_t* axis) {
        return row / plan.image[1] * axis[0] + row % plan.image[1] * axis[1];
      };
      for (int64_t row = first; row < last; ++row)
        zero_row(plan, target.data + b * target.batch + offset(row, target.axis), target);
      add_rows(plan, data_of<const G>(grad), b, first, last, target);
      if constexpr (kSeparate) {
        for (int64_t row = first; row < last; ++row) {
          const Sum* from = target.data + b * target.batch + offset(row, target.axis);
          D* to = data_of<D>(d_image) + b * plan.image_batch + offset(row, plan.image_axis);
          for (int64_t x = 0; x < plan.image[2]; ++x)
            for (int64_t c = 0; c < plan.channels; ++c)
              to[x * plan.image_axis[2] + c * plan.image_channel] = store<D>(from[x * plan.channels + c]);
        }
      }
    }
  });
}

}  // namespace
}  // namespace ats

using namespace ats;

int ats_extract_patches_backward_workspace(const ats_tensor* d_image, size_t* bytes) noexcept {
  return guard([&] {
    check_described({kOp, "d_image"}, d_image, kFloating, 3, 5, "(B, *spatial, C)");
    check_known({kOp, "d_image"}, *d_image);
    check_pointer({kOp, "bytes"}, bytes);
    *bytes = 0;
    if (d_image->dtype != ATS_FLOAT16 && d_image->dtype != ATS_BFLOAT16) return;
    int64_t total = sizeof(float);
    for (int axis = 0; axis < d_image->ndim; ++axis)
      total = multiply_sizes({kOp, "d_image"}, total, d_image->shape[axis]);
    *bytes = size_t(total);
  });
}

int ats_extract_patches_backward(const ats_tensor* grad, const ats_tensor* origins, const ats_patches_options* options,
                                 const ats_tensor* d_image, void* workspace, const ats_executor* executor) noexcept {
  return guard([&] {
    ats_tensor expected = patches_shape(kOp, d_image, "d_image", origins, options, kFloating);
    check_tensor({kOp, "d_image"}, d_image, kFloating, 0, ATS_MAX_DIMS, "");
    check_tensor({kOp, "origins"}, origins, kInteger64, 3, 3, "(B, N, D)");
    check_tensor({kOp, "grad"}, grad, kFloating, 0, ATS_MAX_DIMS, "");
    expected.dtype = grad->dtype;
    check_output({kOp, "grad"}, grad, expected);
    if (element_count(*d_image) == 0) return;
    const PatchesPlan plan = make_plan(*d_image, *origins, *options, *grad);
    dispatch_floating(d_image->dtype, [&](auto image_type) {
      using D = typename decltype(image_type)::type;
      using Sum = std::conditional_t<std::is_same_v<D, double>, double, float>;
      if (!std::is_same_v<D, Sum>) check_pointer({kOp, "workspace"}, workspace);
      dispatch_floating(grad->dtype, [&](auto grad_type) {
        run<typename decltype(grad_type)::type, D, Sum>(plan, *grad, *d_image, workspace, executor);
      });
    });
  });
}
