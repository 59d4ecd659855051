// The gradient of extract_patches with respect to the image: every patch value goes back, divided by the pixels it
// averaged and by std, to the pixels it came from.
//
// Threads own rows of the image and look for what falls into them, so that no addition needs an atomic and every
// pixel is summed in the order of the patches, however the rows are split.
#include <cstdlib>
#include <cstring>

#include "cuda_ops.h"
#include "patches_convert.h"
#include "patches_plan.h"
#include "patches_rows.h"

namespace ats {
namespace {

constexpr const char* kOp = "extract_patches_backward";
constexpr int64_t kBuffer = 2048;  // values of a patch row that stay in the first cache

// Zeroes a box of three axes.
template <typename T>
void zero_box(T* data, const int64_t (&shape)[3], const int64_t (&strides)[3]) {
  struct Side {
    int64_t size, stride;
  } side[3];
  for (int a = 0; a < 3; ++a) {
    side[a] = {shape[a], std::abs(strides[a])};
    if (strides[a] < 0) data += (shape[a] - 1) * strides[a];
  }
  std::sort(side, side + 3, [](const Side& a, const Side& b) { return a.stride < b.stride; });
  // The sides that lie without gaps.
  int64_t run = 1;
  for (Side& next : side) {
    if (next.size != 1 && next.stride != run) break;
    run *= next.size;
    next.size = 1;
  }
  for (int64_t i = 0; i < side[2].size; ++i)
    for (int64_t j = 0; j < side[1].size; ++j)
      for (int64_t k = 0; k < side[0].size; ++k)
        std::memset(data + i * side[2].stride + j * side[1].stride + k * side[0].stride, 0, size_t(run) * sizeof(T));
}

template <typename T>
struct AddRow {
  ATS_INLINE static void run(const T* from, int64_t count, T* to) {
    constexpr int kLanes = kRowLanes<T>;
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes)
      narrow<kLanes, T>(widen<T, kLanes>(to + i) + widen<T, kLanes>(from + i), to + i);
    for (; i < count; ++i) to[i] += from[i];
  }
};

// D is the dtype of the image. Sums of many small numbers stand still in a half, so those are made in a float32 image, in
// the workspace, of which only what the patches touch is used.
template <typename D>
class Backward {
 public:
  using Sum = std::conditional_t<std::is_same_v<D, double>, double, float>;

  Backward(const PatchesPlan& plan, const ats_tensor& grad, const ats_tensor& d_image, void* workspace)
      : plan_(plan),
        grad_(data_of<const char>(grad)),
        grad_bytes_(item_size(grad.dtype)),
        image_(data_of<D>(d_image)),
        interleaved_(plan.image_interleaved()) {
    constexpr int kSum = std::is_same_v<Sum, double> ? ATS_FLOAT64 : ATS_FLOAT32;
    if constexpr (kSeparate) {
      const int64_t pixels = plan.image[0] * plan.image[1] * plan.image[2];
      const int64_t x = interleaved_ ? plan.channels : 1;
      sums_ = static_cast<Sum*>(workspace);
      batch_ = pixels * plan.channels;
      axis_[0] = plan.image[1] * plan.image[2] * x, axis_[1] = plan.image[2] * x, axis_[2] = x;
      channel_ = interleaved_ ? 1 : pixels;
      store_ = make_converter(kSum, d_image.dtype, plan.channels, nullptr, nullptr, interleaved_);
    } else {
      sums_ = image_;
      batch_ = plan.image_batch;
      std::copy(plan.image_axis, plan.image_axis + 3, axis_);
      channel_ = plan.image_channel;
    }
    for (int s = 0; s < plan.n_scales; ++s) {
      std::vector<double> divisor(size_t(plan.channels), double(plan.averaged(s)));
      for (int64_t c = 0; plan.std && c < plan.channels; ++c) divisor[size_t(c)] *= plan.std[c];
      divide_.push_back(make_converter(grad.dtype, kSum, plan.channels, nullptr,
                                       plan.std || plan.averaged(s) > 1 ? divisor.data() : nullptr, together(s),
                                       std::is_same_v<Sum, float>));
    }
  }

  // Rows [first, last) of image b, numbered over depth and height.
  void rows(int64_t b, int64_t first, int64_t last) const {
    const int64_t height = plan_.image[1];
    for (int64_t z = first / height; z * height < last; ++z) {
      const int64_t y = std::max<int64_t>(first - z * height, 0), stop = std::min(last - z * height, height);
      zero_box(image_row(b, z, y), {stop - y, plan_.image[2], plan_.channels},
               {plan_.image_axis[1], plan_.image_axis[2], plan_.image_channel});
    }
    if constexpr (kSeparate) each_touched_row(b, first, last, [&](int64_t z, int64_t y, Span x) { clear(b, z, y, x); });
    for (int64_t n = 0; n < plan_.samples; ++n)
      for (int s = 0; s < plan_.n_scales; ++s)
        if (touches(b, n, s, first, last))
          for (int64_t c = 0; c < plan_.channels; c += strip(s)) add_patch(b, n, s, c, first, last);
    if constexpr (kSeparate)
      each_touched_row(b, first, last, [&](int64_t z, int64_t y, Span x) { deliver(b, z, y, x); });
  }

 private:
  static constexpr bool kSeparate = !std::is_same_v<D, Sum>;

  bool together(int s) const { return interleaved_ && plan_.scales[s] * plan_.channels <= kBuffer; }
  int64_t strip(int s) const { return together(s) ? plan_.channels : 1; }
  D* image_row(int64_t b, int64_t z, int64_t y) const {
    return image_ + b * plan_.image_batch + z * plan_.image_axis[0] + y * plan_.image_axis[1];
  }
  Sum* sums_row(int64_t b, int64_t z, int64_t y) const { return sums_ + b * batch_ + z * axis_[0] + y * axis_[1]; }
  Span touched(int a, int64_t b, int64_t n, int s) const {
    return touched_pixels(plan_.axis(a, s), plan_.start(a, b, n, s), plan_.padding);
  }
  bool touches(int64_t b, int64_t n, int s, int64_t first, int64_t last) const {
    const Span z = touched(0, b, n, s), y = touched(1, b, n, s);
    return z.first < z.last && y.first < y.last && z.first * plan_.image[1] + y.first < last &&
           (z.last - 1) * plan_.image[1] + y.last > first;
  }

  template <typename Body>
  void each_touched_row(int64_t b, int64_t first, int64_t last, const Body& body) const {
    const int64_t height = plan_.image[1];
    for (int64_t n = 0; n < plan_.samples; ++n) {
      for (int s = 0; s < plan_.n_scales; ++s) {
        if (!touches(b, n, s, first, last)) continue;
        const Span depth = touched(0, b, n, s), rows = touched(1, b, n, s), x = touched(2, b, n, s);
        if (x.first >= x.last) continue;
        for (int64_t z = depth.first; z < depth.last; ++z)
          for (int64_t y = std::max(rows.first, first - z * height); y < std::min(rows.last, last - z * height); ++y)
            body(z, y, x);
      }
    }
  }

  void clear(int64_t b, int64_t z, int64_t y, Span x) const {
    zero_box(sums_row(b, z, y) + x.first * axis_[2], {1, x.last - x.first, plan_.channels}, {0, axis_[2], channel_});
  }

  void deliver(int64_t b, int64_t z, int64_t y, Span x) const {
    const int64_t strip = interleaved_ ? plan_.channels : 1;
    for (int64_t c = 0; c < plan_.channels; c += strip) {
      const Sum* from = sums_row(b, z, y) + x.first * strip + c * channel_;
      D* to = image_row(b, z, y) + x.first * plan_.image_axis[2] + c * plan_.image_channel;
      if (plan_.image_axis[2] == strip) store_->rows(from, 0, to, 0, 1, (x.last - x.first) * strip, c);
      else store_->pixels(from, 0, 1, to, 0, plan_.image_axis[2], 1, x.last - x.first, c);
    }
  }

  // What falls into rows [first, last), of channel c or of all.
  void add_patch(int64_t b, int64_t n, int s, int64_t c, int64_t first, int64_t last) const {
    const Axis az = plan_.axis(0, s), ay = plan_.axis(1, s), ax = plan_.axis(2, s);
    const int64_t start_z = plan_.start(0, b, n, s), start_y = plan_.start(1, b, n, s);
    const int64_t start_x = plan_.start(2, b, n, s), columns = ax.patch * ax.scale;
    // Columns of the image a block, which are whole patch pixels where these fit.
    const int64_t fit = kBuffer / strip(s), block = ax.scale <= fit ? fit / ax.scale * ax.scale : fit;
    const char* patch = grad_at(
        grad_, b * plan_.patch_batch + n * plan_.patch_sample + s * plan_.patch_scale + c * plan_.patch_channel);
    Sum buffer[kBuffer];
    for (int64_t z = 0; z < az.patch * az.scale; ++z) {
      const int64_t pixel_z = source_pixel(az, start_z + z, plan_.padding);
      if (pixel_z == kOutside) continue;
      int64_t ready = -1;  // the row whose values, all of them, are in the buffer
      for (int64_t y = 0; y < ay.patch * ay.scale; ++y) {
        const int64_t pixel_y = source_pixel(ay, start_y + y, plan_.padding), row = pixel_z * ay.size + pixel_y;
        if (pixel_y == kOutside || row < first || row >= last) continue;
        const int64_t patch_y = y / ay.scale;
        for (int64_t x = 0; x < columns; x += block) {
          const int64_t count = std::min(block, columns - x);
          if (ready != patch_y)
            spread(s, grad_at(patch, z / az.scale * plan_.patch_axis[0] + patch_y * plan_.patch_axis[1]), c, x, count,
                   buffer);
          add_columns(ax, s, buffer, start_x + x, count, sums_row(b, pixel_z, pixel_y) + c * channel_);
        }
        ready = columns <= block ? patch_y : -1;
      }
    }
  }

  // The values of a patch row, divided, as often as the image has columns for them: columns [first, first + count).
  void spread(int s, const char* row, int64_t c, int64_t first, int64_t count, Sum* buffer) const {
    const int64_t scale = plan_.axis(2, s).scale, width = strip(s), x = plan_.patch_axis[2];
    const int64_t from = first / scale, pixels = (first + count - 1) / scale + 1 - from;
    const Converter& divide = *divide_[size_t(s)];
    Sum scaled[kBuffer];
    Sum* values = scale == 1 ? buffer : scaled;
    row = grad_at(row, from * x);
    if (x == width && (width == 1 || plan_.patch_channel == 1)) divide.rows(row, 0, values, 0, 1, pixels * width, c);
    else
      for (int64_t k = 0; k < width; ++k)
        divide.pixels(grad_at(row, k * plan_.patch_channel), 0, x, values + k, 0, width, 1, pixels, c + k);
    if (scale == 1) return;
    for (int64_t i = 0, end = 0, column = 0; i < pixels; ++i, values += width)
      for (end = std::min((from + i + 1) * scale - first, count); column < end; ++column)
        for (int64_t k = 0; k < width; ++k) buffer[column * width + k] = values[k];
  }

  void add_columns(const Axis& axis, int s, const Sum* values, int64_t start, int64_t count, Sum* row) const {
    const int64_t width = strip(s);
    const int64_t left = std::clamp<int64_t>(-start, 0, count);
    const int64_t right = std::clamp<int64_t>(axis.size - start, left, count);
    const bool contiguous = axis_[2] == width;
    for (int64_t x = 0; x < count; ++x) {
      if (contiguous && x == left && left < right) {
        Sum* to = row + (start + left) * width;
        prefetch_row(to + kAhead * axis_[1], (right - left) * width);
        on_this_cpu<AddRow<Sum>>(values + left * width, (right - left) * width, to);
        x = right;
        if (x >= count) break;
      }
      const int64_t pixel = source_pixel(axis, start + x, plan_.padding);
      if (pixel == kOutside) continue;
      for (int64_t k = 0; k < width; ++k) row[pixel * axis_[2] + k] += values[x * width + k];
    }
  }

  const char* grad_at(const char* from, int64_t elements) const { return from + elements * grad_bytes_; }

  const PatchesPlan& plan_;
  const char* grad_;
  int64_t grad_bytes_;
  D* image_;
  bool interleaved_;
  std::unique_ptr<Converter> store_;                // of sums, where they are made apart
  std::vector<std::unique_ptr<Converter>> divide_;  // of every scale
  // The image in which sums are made.
  Sum* sums_;
  int64_t batch_, axis_[3], channel_;
};

template <typename D>
void run(const PatchesPlan& plan, const ats_tensor& grad, const ats_tensor& d_image, void* workspace,
         const ats_executor* executor) {
  const Backward<D> backward(plan, grad, d_image, workspace);
  const int64_t rows = plan.image[0] * plan.image[1], total = plan.batch * rows;
  // Every range looks at all patches of its images, so there are few.
  const int64_t grain = std::max<int64_t>(total / 16, grain_for(plan.image[2] * plan.channels));
  parallel_for(executor, total, grain, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin / rows; b * rows < end; ++b)
      backward.rows(b, std::max(begin - b * rows, int64_t(0)), std::min(end - b * rows, rows));
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
    if (on_gpu(kOp, {{"d_image", d_image}})) return;
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
    const bool gpu = on_gpu(kOp, {{"grad", grad}, {"origins", origins}, {"d_image", d_image}});
    if (element_count(*d_image) == 0) return;
    const PatchesPlan plan = make_plan(*d_image, *origins, *options, *grad);
    if (gpu) return cuda::extract_patches_backward(plan, *grad, *d_image, executor);
    dispatch_floating(d_image->dtype, [&](auto image_type) {
      using D = typename decltype(image_type)::type;
      if (kIsHalf<D>) check_pointer({kOp, "workspace"}, workspace);
      run<D>(plan, *grad, *d_image, workspace, executor);
    });
  });
}
