// Features of any dtype as vectors of the type that computes, 16 floats or 8 doubles, and back.
#pragma once

#include "convert_lanes.h"

namespace ats {

template <typename F>
using FeatureScalar = std::conditional_t<std::is_same_v<F, double>, double, float>;
template <typename F>
constexpr int kFeatureLanes = int(64 / sizeof(FeatureScalar<F>));
template <typename F>
using FeatureVector = Vector<FeatureScalar<F>, kFeatureLanes<F>>;

template <typename F>
ATS_INLINE FeatureVector<F> load_features(const F* from) {
  return widen<FeatureScalar<F>, kFeatureLanes<F>>(from);
}
template <typename F>
ATS_INLINE void store_features(F* to, FeatureVector<F> lanes) {
  narrow<kFeatureLanes<F>, FeatureScalar<F>>(lanes, to);
}

// The last few: fewer than kFeatureLanes, the others 0.
template <typename F>
ATS_INLINE auto load_some(const F* from, int64_t count) {
  F all[kFeatureLanes<F>] = {};
  memcpy(all, from, static_cast<size_t>(count) * sizeof(F));
  return load_features(all);
}
template <typename F>
ATS_INLINE void store_some(F* to, FeatureVector<F> lanes, int64_t count) {
  F all[kFeatureLanes<F>];
  store_features(all, lanes);
  memcpy(to, all, static_cast<size_t>(count) * sizeof(F));
}

}  // namespace ats
