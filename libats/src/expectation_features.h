// The loops over the features of one row, or of a part of them: one pass each.
#pragma once

#include "feature_lanes.h"
#include "lanes.h"

namespace ats {

// out_k = sum_i c_i f_ik for k < width, in the order of i; the rows of f are `stride` apart. `sums` is room for `width`
// numbers, rounded up to whole vectors.
template <typename F>
struct WeightedSum {
  using Scalar = FeatureScalar<F>;

  ATS_INLINE static void run(const double* c, int64_t n, const F* f, int64_t stride, int64_t width, Scalar* sums,
                             F* out) {
    constexpr int64_t lanes = kFeatureLanes<F>;
    const int64_t whole = width / lanes * lanes;
    for (int64_t k = 0; k < whole + lanes; ++k) sums[k] = 0;
    for (int64_t i = 0; i < n; ++i, f += stride) {
      const Scalar weight = Scalar(c[i]);
      for (int64_t k = 0; k < whole; k += lanes)
        store_features(sums + k, load_features(sums + k) + weight * load_features(f + k));
      if (whole < width)
        store_features(sums + whole, load_features(sums + whole) + weight * load_some(f + whole, width - whole));
    }
    for (int64_t k = 0; k < whole; k += lanes) store_features(out + k, load_features(sums + k));
    if (whole < width) store_some(out + whole, load_features(sums + whole), width - whole);
  }
};

// h_i = <f_i, g> of `count` rows that are `stride` apart: products and sums in double, 16 or 8 of them side by side.
// Up to four rows share what is read of g; the sums of a row are those of its own.
ATS_INLINE Doubles in_doubles(Doubles x) { return x; }
ATS_INLINE TwoDoubles in_doubles(SixteenFloats x) { return widen(x); }
ATS_INLINE void add_products(Doubles* sums, Doubles x, Doubles y) { sums[0] += x * y; }
ATS_INLINE void add_products(Doubles* sums, TwoDoubles x, TwoDoubles y) {
  sums[0] += x.low * y.low;
  sums[1] += x.high * y.high;
}

template <typename F>
struct DotProducts {
  template <int kRows>
  ATS_INLINE static void rows(const F* f, int64_t stride, const F* g, int64_t width, double* h) {
    constexpr int64_t lanes = kFeatureLanes<F>;
    const int64_t whole = width / lanes * lanes;
    Doubles sums[kRows][2] = {};
    for (int64_t k = 0; k < whole; k += lanes) {
      const auto shared = in_doubles(load_features(g + k));
      for (int i = 0; i < kRows; ++i) add_products(sums[i], in_doubles(load_features(f + i * stride + k)), shared);
    }
    if (whole < width) {
      const auto shared = in_doubles(load_some(g + whole, width - whole));
      for (int i = 0; i < kRows; ++i)
        add_products(sums[i], in_doubles(load_some(f + i * stride + whole, width - whole)), shared);
    }
    for (int i = 0; i < kRows; ++i) h[i] = sum_lanes(sums[i][0] + sums[i][1]);
  }

  ATS_INLINE static void run(const F* f, int64_t stride, int64_t count, const F* g, int64_t width, double* h) {
    int64_t i = 0;
    for (; i + 4 <= count; i += 4) rows<4>(f + i * stride, stride, g, width, h + i);
    for (; i + 2 <= count; i += 2) rows<2>(f + i * stride, stride, g, width, h + i);
    for (; i < count; ++i) rows<1>(f + i * stride, stride, g, width, h + i);
  }
};

// out_k = c g_k
template <typename F>
struct Scaled {
  ATS_INLINE static void run(double c, const F* g, int64_t width, F* out) {
    constexpr int64_t lanes = kFeatureLanes<F>;
    const auto weight = FeatureScalar<F>(c);
    const int64_t whole = width / lanes * lanes;
    for (int64_t k = 0; k < whole; k += lanes) store_features(out + k, weight * load_features(g + k));
    if (whole < width) store_some(out + whole, weight * load_some(g + whole, width - whole), width - whole);
  }
};

}  // namespace ats
