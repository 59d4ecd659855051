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

// h = <f, g>: products and sums in double, 16 or 8 of them side by side.
ATS_INLINE void add_products(Doubles* sums, Doubles x, Doubles y) { sums[0] += x * y; }
ATS_INLINE void add_products(Doubles* sums, SixteenFloats x, SixteenFloats y) {
  const TwoDoubles a = widen(x), b = widen(y);
  sums[0] += a.low * b.low;
  sums[1] += a.high * b.high;
}

template <typename F>
struct DotProduct {
  ATS_INLINE static double run(const F* f, const F* g, int64_t width) {
    constexpr int64_t lanes = kFeatureLanes<F>;
    const int64_t whole = width / lanes * lanes;
    Doubles sums[2] = {};
    for (int64_t k = 0; k < whole; k += lanes) add_products(sums, load_features(f + k), load_features(g + k));
    if (whole < width) add_products(sums, load_some(f + whole, width - whole), load_some(g + whole, width - whole));
    return sum_lanes(sums[0] + sums[1]);
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
