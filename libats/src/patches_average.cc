// Columns of the image are summed first, down the rows and slices that one row of the patch needs, then `scale` columns
// at a time: always in this order and in double, whatever the layout of the image. Integers are exact in any type that
// holds their sum, so they are summed in narrow lanes.
#include "patches_average.h"

#include "patches_convert.h"
#include "patches_sums.h"

namespace ats {
namespace {

template <typename In>
class AveragingOf : public Averaging {
 public:
  AveragingOf(const PatchesPlan& plan, int to)
      : plan_(plan),
        out_bytes_(item_size(to)),
        together_(make_converter(ATS_FLOAT64, to, plan.channels, plan.mean, plan.std, true)),
        single_(make_converter(ATS_FLOAT64, to, plan.channels, plan.mean, plan.std, false)) {}

  void rows(int s, const void* image, const int64_t* start, int64_t z, int64_t first, int64_t last,
            void* out) const override {
    for (int64_t y = first; y < last; ++y)
      row(s, static_cast<const In*>(image), start, z, y,
          static_cast<char*>(out) + y * plan_.patch_axis[1] * out_bytes_);
  }

 private:
  static constexpr int64_t kColumns = 1024;  // sums that stay in the first cache

  void row(int s, const In* image, const int64_t* start, int64_t z, int64_t y, char* out) const {
    if constexpr (std::is_integral_v<In>) {
      const bool fits = plan_.scales[s] * strip() <= kColumns && plan_.image_axis[2] == strip() && inside(s, start);
      if constexpr (sizeof(In) == 1)
        if (fits && plan_.averaged(s) <= 0xffff / 0xff) return sum_integers<uint16_t>(s, image, start, z, y, out);
      if (fits && plan_.averaged(s) < 0x8000) return sum_integers<int32_t>(s, image, start, z, y, out);
    }
    sum_row(s, image, start, z, y, out);
  }

  // Channels that are summed together, where their columns are not too many.
  int64_t strip() const { return plan_.image_interleaved() ? plan_.channels : 1; }

  bool inside(int s, const int64_t* start) const {
    for (int a = 0; a < 3; ++a) {
      const Axis axis = plan_.axis(a, s);
      if (start[a] < 0 || start[a] + axis.scale * axis.patch > axis.size) return false;
    }
    return true;
  }

  template <typename Lane>
  void sum_integers(int s, const In* image, const int64_t* start, int64_t z, int64_t y, char* out) const {
    const Axis depth = plan_.axis(0, s), height = plan_.axis(1, s), width = plan_.axis(2, s);
    const int64_t strip = this->strip(), pixels = kColumns / (width.scale * strip);
    const double divisor = double(plan_.averaged(s));
    const double inverse = (plan_.averaged(s) & (plan_.averaged(s) - 1)) == 0 ? 1 / divisor : 0;
    const In* corner = image + (start[0] + z * depth.scale) * plan_.image_axis[0] +
                       (start[1] + y * height.scale) * plan_.image_axis[1] + start[2] * plan_.image_axis[2];
    for (int64_t c = 0; c < plan_.channels; c += strip) {
      for (int64_t x = 0; x < width.patch; x += pixels) {
        const int64_t block = std::min(pixels, width.patch - x);
        Lane columns[kColumns], sums[kColumns], picked[kColumns];
        double averages[kColumns];
        on_this_cpu<SumRows<In, Lane>>(corner + c * plan_.image_channel + x * width.scale * strip, plan_.image_axis[0],
                                       depth.scale, plan_.image_axis[1], height.scale, block * width.scale * strip,
                                       static_cast<Lane*>(columns));
        on_this_cpu<AverageColumns<Lane>>(static_cast<const Lane*>(columns), width.scale, strip, block, divisor,
                                          inverse, static_cast<Lane*>(sums), static_cast<Lane*>(picked),
                                          static_cast<double*>(averages));
        deliver(averages, block, c, strip, out + (x * plan_.patch_axis[2] + c * plan_.patch_channel) * out_bytes_);
      }
    }
  }

  void sum_row(int s, const In* image, const int64_t* start, int64_t z, int64_t y, char* out) const {
    const Axis depth = plan_.axis(0, s), height = plan_.axis(1, s), width = plan_.axis(2, s);
    const int64_t strip = width.scale * this->strip() <= kColumns ? this->strip() : 1;
    const int64_t pixels = std::max<int64_t>(1, kColumns / (width.scale * strip));
    for (int64_t c = 0; c < plan_.channels; c += strip) {
      for (int64_t x = 0; x < width.patch; x += pixels) {
        const int64_t block = std::min(pixels, width.patch - x);
        double totals[kColumns / 2] = {};
        // One round, unless the columns of a single pixel are too many.
        for (int64_t first = 0, next; first < block * width.scale; first = next) {
          next = std::min(block * width.scale, first + kColumns / strip);
          double columns[kColumns];
          std::fill(columns, columns + (next - first) * strip, 0.0);
          for (int64_t i = 0; i < depth.scale; ++i) {
            const int64_t source_z = source_pixel(depth, start[0] + z * depth.scale + i, plan_.padding);
            add_slice(source_z == kOutside ? nullptr : image + source_z * plan_.image_axis[0] + c * plan_.image_channel,
                      height, start[1] + y * height.scale, width, start[2] + x * width.scale + first, next - first,
                      strip, columns);
          }
          on_this_cpu<AddColumns>(static_cast<const double*>(columns), std::min(width.scale, next - first), strip,
                                  block, next == block * width.scale ? double(plan_.averaged(s)) : 1.0,
                                  static_cast<double*>(totals));
        }
        deliver(totals, block, c, strip, out + (x * plan_.patch_axis[2] + c * plan_.patch_channel) * out_bytes_);
      }
    }
  }

  // The rows of a slice, or of one outside the image (null): `count` pixels each, from `start` on.
  void add_slice(const In* slice, const Axis& height, int64_t start_y, const Axis& width, int64_t start, int64_t count,
                 int64_t strip, double* columns) const {
    if (slice != nullptr && start_y >= 0 && start_y + height.scale <= height.size)
      return add_rows(slice + start_y * plan_.image_axis[1], height.scale, width, start, count, strip, columns);
    for (int64_t j = 0; j < height.scale; ++j) {
      const int64_t y = slice ? source_pixel(height, start_y + j, plan_.padding) : kOutside;
      add_rows(y == kOutside ? nullptr : slice + y * plan_.image_axis[1], 1, width, start, count, strip, columns);
    }
  }

  void add_rows(const In* source, int64_t rows, const Axis& width, int64_t start, int64_t count, int64_t strip,
                double* columns) const {
    const int64_t in_x = plan_.image_axis[2], in_y = plan_.image_axis[1];
    if (source == nullptr) {
      for (int64_t i = 0; i < count * strip; ++i) columns[i] += plan_.fill;
      return;
    }
    const int64_t left = std::clamp<int64_t>(-start, 0, count);
    const int64_t right = std::clamp<int64_t>(width.size - start, left, count);
    const bool contiguous = in_x == strip;
    if (contiguous && left < right)
      on_this_cpu<AddRows<In>>(source + (start + left) * in_x, in_y, rows, (right - left) * strip,
                               columns + left * strip);
    for (int64_t x = 0; x < count; ++x) {
      if (contiguous && x == left) x = right;
      if (x >= count) break;
      const int64_t pixel = source_pixel(width, start + x, plan_.padding);
      for (int64_t row = 0; row < rows; ++row)
        for (int64_t k = 0; k < strip; ++k)
          columns[x * strip + k] +=
              pixel == kOutside ? plan_.fill : double(load(source[row * in_y + pixel * in_x + k]));
    }
  }

  void deliver(const double* averages, int64_t pixels, int64_t c, int64_t strip, char* out) const {
    const int64_t out_x = plan_.patch_axis[2], out_c = plan_.patch_channel;
    if (out_x == strip && (strip == 1 || out_c == 1))
      return (strip == 1 ? single_ : together_)->rows(averages, 0, out, 0, 1, pixels * strip, c);
    for (int64_t k = 0; k < strip; ++k)
      single_->pixels(averages + k, 0, strip, out + k * out_c * out_bytes_, 0, out_x, 1, pixels, c + k);
  }

  const PatchesPlan& plan_;
  int64_t out_bytes_;
  std::unique_ptr<Converter> together_, single_;
};

}  // namespace

std::unique_ptr<Averaging> make_averaging(const PatchesPlan& plan, int from, int to) {
  std::unique_ptr<Averaging> averaging;
  dispatch_image(from,
                 [&](auto in) { averaging = std::make_unique<AveragingOf<typename decltype(in)::type>>(plan, to); });
  return averaging;
}

}  // namespace ats
