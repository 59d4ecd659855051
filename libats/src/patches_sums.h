// The loops that add up pixels for patches at scales above 1, compiled for several instruction sets (simd.h).
#pragma once

#include "patches_rows.h"

namespace ats {

// sums += rows of the image, one after the other.
template <typename In>
struct AddRows {
  static constexpr int kLanes = kRowLanes<double>;

  ATS_INLINE static void run(const In* from, int64_t step, int64_t rows, int64_t count, double* sums) {
    for (int64_t row = 0; row < rows; ++row) prefetch_row(from + (rows + row) * step, count);  // for the next sums
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
      Vector<double, kLanes> sum = widen<double, kLanes>(sums + i);
      for (int64_t row = 0; row < rows; ++row) sum += widen<double, kLanes>(from + row * step + i);
      narrow<kLanes, double>(sum, sums + i);
    }
    for (; i < count; ++i)
      for (int64_t row = 0; row < rows; ++row) sums[i] += double(load(from[row * step + i]));
  }
};

// totals = (totals + scale columns each) / divisor, for pixels of `channels` elements.
struct AddColumns {
  template <int fixed>
  ATS_INLINE static void add(const double* columns, int64_t scale, int64_t channels, int64_t pixels, double divisor,
                             double* totals) {
    const int64_t count = fixed ? fixed : scale;
    for (int64_t x = 0; x < pixels; ++x, columns += count * channels, totals += channels) {
      for (int64_t c = 0; c < channels; ++c) {
        double total = totals[c];
        for (int64_t i = 0; i < count; ++i) total += columns[i * channels + c];
        totals[c] = total / divisor;
      }
    }
  }

  ATS_INLINE static void run(const double* columns, int64_t scale, int64_t channels, int64_t pixels, double divisor,
                             double* totals) {
    if (channels == 1 && scale == 2) return add<2>(columns, scale, 1, pixels, divisor, totals);
    if (channels == 1 && scale == 4) return add<4>(columns, scale, 1, pixels, divisor, totals);
    if (channels == 3 && scale == 2) return add<2>(columns, scale, 3, pixels, divisor, totals);
    if (channels == 3 && scale == 4) return add<4>(columns, scale, 3, pixels, divisor, totals);
    add<0>(columns, scale, channels, pixels, divisor, totals);
  }
};

// ---- sums of integers, exact in narrow lanes -------------------------------------------------------------------------

template <typename Lane, int lanes, typename In>
ATS_INLINE Vector<Lane, lanes> load_integers(const In* from) {
  Vector<In, lanes> x;
  memcpy(&x, from, sizeof(x));
  return __builtin_convertvector(x, Vector<Lane, lanes>);
}
template <typename Integers, typename Lane>
ATS_INLINE Integers load_words(const Lane* from) {
  Integers x;
  memcpy(&x, from, sizeof(x));
  return x;
}

// sums = the rows of all slices.
template <typename In, typename Lane>
struct SumRows {
  static constexpr int kLanes = kRowLanes<Lane>;

  ATS_INLINE static void vector(const In* from, int64_t slice_step, int64_t slices, int64_t step, int64_t rows,
                                Lane* sums) {
    Vector<Lane, kLanes> sum{};
    for (int64_t slice = 0; slice < slices; ++slice)
      for (int64_t row = 0; row < rows; ++row)
        sum += load_integers<Lane, kLanes>(from + slice * slice_step + row * step);
    memcpy(sums, &sum, sizeof(sum));
  }

  ATS_INLINE static void run(const In* from, int64_t slice_step, int64_t slices, int64_t step, int64_t rows,
                             int64_t count, Lane* sums) {
    for (int64_t row = 0; row < rows; ++row) prefetch_row(from + (rows + row) * step, count);  // for the next sums
    const int64_t last = count - kLanes;
    for (int64_t i = 0; i < last; i += kLanes) vector(from + i, slice_step, slices, step, rows, sums + i);
    if (last >= 0) return vector(from + last, slice_step, slices, step, rows, sums + last);
    for (int64_t i = 0; i < count; ++i) {
      Lane sum = 0;
      for (int64_t slice = 0; slice < slices; ++slice)
        for (int64_t row = 0; row < rows; ++row) sum = Lane(sum + from[slice * slice_step + row * step + i]);
      sums[i] = sum;
    }
  }
};

// averages = scale columns each, by the number of pixels in them, for `pixels` pixels of `channels` elements.
template <typename Lane>
struct AverageColumns {
  static constexpr int kLanes = kRowLanes<Lane>, kDoubles = kRowLanes<double>;
  using Integers = Vector<int32_t, kDoubles>;

  // `inverse`: 1 / divisor where that is exact, else 0.
  struct Divisor {
    double divisor, inverse;
  };
  ATS_INLINE static void average(Integers sums, Divisor by, double* averages) {
    const auto x = __builtin_convertvector(sums, Vector<double, kDoubles>);
    narrow<kDoubles, double>(by.inverse != 0 ? x * by.inverse : x / by.divisor, averages);
  }

  // Pairs and fours of 16 bits side by side.
  ATS_INLINE static void pairs(const Lane* columns, Divisor by, double* averages) {
    const auto x = load_words<Vector<uint32_t, kDoubles>>(columns);
    average(Integers((x & 0xffffu) + (x >> 16)), by, averages);
  }
  ATS_INLINE static void fours(const Lane* columns, Divisor by, double* averages) {
    const auto x = load_words<Vector<uint64_t, kDoubles>>(columns);
    const auto y = x + (x >> 32);
    average(__builtin_convertvector((y + (y >> 16)) & 0xffffu, Integers), by, averages);
  }

  // sums = columns + the next ones, `scale` in all, from every column on.
  ATS_INLINE static void slide(const Lane* columns, int64_t scale, int64_t channels, Lane* sums) {
    auto sum = load_words<Vector<Lane, kLanes>>(columns);
    for (int64_t i = 1; i < scale; ++i) sum += load_words<Vector<Lane, kLanes>>(columns + i * channels);
    memcpy(sums, &sum, sizeof(sum));
  }
  template <int fixed>
  ATS_INLINE static void pick(const Lane* sums, int64_t scale, int64_t channels, int64_t pixels, Lane* picked) {
    const int64_t count = fixed ? fixed : channels;
    for (int64_t x = 0; x < pixels; ++x)
      for (int64_t c = 0; c < count; ++c) picked[x * count + c] = sums[x * scale * count + c];
  }

  // `sums` and `picked` are scratch for as many elements as there are columns.
  ATS_INLINE static void run(const Lane* columns, int64_t scale, int64_t channels, int64_t pixels, double divisor,
                             double inverse, Lane* sums, Lane* picked, double* averages) {
    const Divisor by{divisor, inverse};
    const int64_t count = pixels * channels, last = count - kDoubles;
    if constexpr (sizeof(Lane) == 2) {
      if (channels == 1 && scale == 2 && last >= 0) {
        for (int64_t i = 0; i < last; i += kDoubles) pairs(columns + 2 * i, by, averages + i);
        return pairs(columns + 2 * last, by, averages + last);
      }
      if (channels == 1 && scale == 4 && last >= 0) {
        for (int64_t i = 0; i < last; i += kDoubles) fours(columns + 4 * i, by, averages + i);
        return fours(columns + 4 * last, by, averages + last);
      }
    }
    const int64_t places = (pixels * scale - scale + 1) * channels, end = places - kLanes;
    for (int64_t i = 0; i < end; i += kLanes) slide(columns + i, scale, channels, sums + i);
    if (end >= 0) slide(columns + end, scale, channels, sums + end);
    for (int64_t i = 0; end < 0 && i < places; ++i) {
      Lane sum = 0;
      for (int64_t k = 0; k < scale; ++k) sum = Lane(sum + columns[i + k * channels]);
      sums[i] = sum;
    }
    if (channels == 1) pick<1>(sums, scale, 1, pixels, picked);
    else if (channels == 3) pick<3>(sums, scale, 3, pixels, picked);
    else pick<0>(sums, scale, channels, pixels, picked);
    for (int64_t i = 0; i < last; i += kDoubles)
      average(load_integers<int32_t, kDoubles>(picked + i), by, averages + i);
    if (last >= 0) return average(load_integers<int32_t, kDoubles>(picked + last), by, averages + last);
    for (int64_t i = 0; i < count; ++i) averages[i] = double(picked[i]) / divisor;
  }
};

}  // namespace ats
