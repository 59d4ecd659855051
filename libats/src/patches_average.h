// Patches at scales above 1: every patch pixel is the average of scale^D image pixels.
//
// Columns of the image are summed first, down the rows and slices that one row of the patch needs, then `scale` columns
// at a time: always in this order and in double (integers are exact in any type), whatever the layout of the image.
#pragma once

#include "patches_rows.h"

namespace ats {

// sums += rows of the image, one after the other.
template <typename In, typename Sum>
struct AddRows {
  static constexpr int kLanes = kRowLanes<Sum>;

  ATS_INLINE static void run(const In* from, int64_t step, int64_t rows, int64_t count, Sum* sums) {
    for (int64_t row = 0; row < rows; ++row) prefetch_row(from + (rows + row) * step, count);  // for the next sums
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
      Vector<Sum, kLanes> sum = widen<Sum, kLanes>(sums + i);
      for (int64_t row = 0; row < rows; ++row) sum += widen<Sum, kLanes>(from + row * step + i);
      narrow<kLanes, Sum>(sum, sums + i);
    }
    for (; i < count; ++i)
      for (int64_t row = 0; row < rows; ++row) sums[i] += Sum(load(from[row * step + i]));
  }
};

// totals = (totals + scale columns each) / divisor, for pixels of `channels` elements.
template <typename Sum>
struct AddColumns {
  template <int fixed>
  ATS_INLINE static void add(const Sum* columns, int64_t scale, int64_t channels, int64_t pixels, double divisor,
                             double* totals) {
    const int64_t count = fixed ? fixed : scale;
    for (int64_t x = 0; x < pixels; ++x, columns += count * channels, totals += channels) {
      for (int64_t c = 0; c < channels; ++c) {
        double total = totals[c];
        for (int64_t i = 0; i < count; ++i) total += double(columns[i * channels + c]);
        totals[c] = total / divisor;
      }
    }
  }

  ATS_INLINE static void run(const Sum* columns, int64_t scale, int64_t channels, int64_t pixels, double divisor,
                             double* totals) {
    if (channels == 1 && scale == 2) return add<2>(columns, scale, 1, pixels, divisor, totals);
    if (channels == 1 && scale == 4) return add<4>(columns, scale, 1, pixels, divisor, totals);
    if (channels == 3 && scale == 2) return add<2>(columns, scale, 3, pixels, divisor, totals);
    if (channels == 3 && scale == 4) return add<4>(columns, scale, 3, pixels, divisor, totals);
    add<0>(columns, scale, channels, pixels, divisor, totals);
  }
};

template <typename In, typename Out>
class Averaging {
 public:
  Averaging(const PatchesPlan& plan)
      : plan_(plan),
        single_(plan.channels, plan.mean, plan.std, false),
        together_(plan.channels, plan.mean, plan.std, true) {}

  // Row y of slice z of a patch.
  void row(int s, const In* image, const int64_t* start, int64_t z, int64_t y, Out* out) const {
    if constexpr (std::is_integral_v<In>) {
      // Sums of a column fit: at most 101^2 slices and rows, or 2^10 rows, of 16 bits. The fill need not be an integer.
      if (plan_.padding != ATS_PAD_CONSTANT || inside(s, start)) return sum_row<int32_t>(s, image, start, z, y, out);
    }
    sum_row<double>(s, image, start, z, y, out);
  }

 private:
  static constexpr int64_t kColumns = 1024;  // sums that stay in the first cache

  bool inside(int s, const int64_t* start) const {
    for (int a = 0; a < 3; ++a) {
      const Axis axis = plan_.axis(a, s);
      if (start[a] < 0 || start[a] + axis.scale * axis.patch > axis.size) return false;
    }
    return true;
  }

  template <typename Sum>
  void sum_row(int s, const In* image, const int64_t* start, int64_t z, int64_t y, Out* out) const {
    const Axis depth = plan_.axis(0, s), height = plan_.axis(1, s), width = plan_.axis(2, s);
    const bool together = plan_.image_interleaved() && width.scale * plan_.channels <= kColumns;
    const int64_t strip = together ? plan_.channels : 1;
    const int64_t pixels = std::max<int64_t>(1, kColumns / (width.scale * strip));
    for (int64_t c = 0; c < plan_.channels; c += strip) {
      for (int64_t x = 0; x < width.patch; x += pixels) {
        const int64_t block = std::min(pixels, width.patch - x);
        double totals[kColumns / 2] = {};
        // One round, unless the columns of a single pixel are too many.
        for (int64_t first = 0, next; first < block * width.scale; first = next) {
          next = std::min(block * width.scale, first + kColumns / strip);
          Sum columns[kColumns];
          std::fill(columns, columns + (next - first) * strip, Sum(0));
          for (int64_t i = 0; i < depth.scale; ++i) {
            const int64_t source_z = source_pixel(depth, start[0] + z * depth.scale + i, plan_.padding);
            add_slice(source_z == kOutside ? nullptr : image + source_z * plan_.image_axis[0] + c * plan_.image_channel,
                      height, start[1] + y * height.scale, width, start[2] + x * width.scale + first, next - first,
                      strip, columns);
          }
          on_this_cpu<AddColumns<Sum>>(static_cast<const Sum*>(columns), std::min(width.scale, next - first), strip,
                                       block, next == block * width.scale ? double(plan_.averaged(s)) : 1.0,
                                       static_cast<double*>(totals));
        }
        deliver(totals, block, c, strip, out + x * plan_.patch_axis[2] + c * plan_.patch_channel);
      }
    }
  }

  // The rows of a slice, or of one outside the image (null): `count` pixels each, from `start` on.
  template <typename Sum>
  void add_slice(const In* slice, const Axis& height, int64_t start_y, const Axis& width, int64_t start, int64_t count,
                 int64_t strip, Sum* columns) const {
    if (slice != nullptr && start_y >= 0 && start_y + height.scale <= height.size)
      return add_rows(slice + start_y * plan_.image_axis[1], height.scale, width, start, count, strip, columns);
    for (int64_t j = 0; j < height.scale; ++j) {
      const int64_t y = slice ? source_pixel(height, start_y + j, plan_.padding) : kOutside;
      add_rows(y == kOutside ? nullptr : slice + y * plan_.image_axis[1], 1, width, start, count, strip, columns);
    }
  }

  template <typename Sum>
  void add_rows(const In* source, int64_t rows, const Axis& width, int64_t start, int64_t count, int64_t strip,
                Sum* columns) const {
    const int64_t in_x = plan_.image_axis[2], in_y = plan_.image_axis[1];
    if (source == nullptr) {
      for (int64_t i = 0; i < count * strip; ++i) columns[i] += Sum(plan_.fill);
      return;
    }
    const int64_t left = std::clamp<int64_t>(-start, 0, count);
    const int64_t right = std::clamp<int64_t>(width.size - start, left, count);
    const bool contiguous = in_x == strip;
    if (contiguous && left < right)
      on_this_cpu<AddRows<In, Sum>>(source + (start + left) * in_x, in_y, rows, (right - left) * strip,
                                    columns + left * strip);
    for (int64_t x = 0; x < count; ++x) {
      if (contiguous && x == left) x = right;
      if (x >= count) break;
      const int64_t pixel = source_pixel(width, start + x, plan_.padding);
      for (int64_t row = 0; row < rows; ++row)
        for (int64_t k = 0; k < strip; ++k)
          columns[x * strip + k] +=
              pixel == kOutside ? Sum(plan_.fill) : Sum(load(source[row * in_y + pixel * in_x + k]));
    }
  }

  void deliver(const double* averages, int64_t pixels, int64_t c, int64_t strip, Out* out) const {
    const int64_t out_x = plan_.patch_axis[2], out_c = plan_.patch_channel;
    if (out_x == strip && (strip == 1 || out_c == 1)) {
      convert_rows<double>(averages, 0, out, 0, 1, pixels * strip, strip == 1 ? single_ : together_, c);
      return;
    }
    for (int64_t x = 0; x < pixels; ++x)
      for (int64_t k = 0; k < strip; ++k)
        out[x * out_x + k * out_c] =
            single_.active()
                ? normalized<Out, true>(averages[x * strip + k], *single_.mean_of(c + k), *single_.std_of(c + k))
                : store<Out>(averages[x * strip + k]);
  }

  const PatchesPlan& plan_;
  Normalization<double> single_, together_;
};

}  // namespace ats
