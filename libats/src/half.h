// float16 and bfloat16 as storage: arithmetic happens in float. Conversions round to nearest even.
// store<T> narrows to any dtype: integers round half to even and saturate, floats follow IEEE.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "host_device.h"

namespace ats {

struct float16 {
  uint16_t bits;
};
struct bfloat16 {
  uint16_t bits;
};

template <typename To, typename From>
ATS_HD ATS_INLINE To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

ATS_HD inline float to_float(bfloat16 x) { return bit_cast<float>(uint32_t(x.bits) << 16); }

ATS_HD inline float to_float(float16 x) {
  const uint32_t sign = uint32_t(x.bits & 0x8000u) << 16;
  const uint32_t magnitude = x.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return bit_cast<float>(sign | 0x7f800000u | (magnitude << 13));  // inf, NaN
  // Subnormals by their definition: no float is subnormal on the way, so flush-to-zero modes change nothing.
  if (magnitude < 0x400u) return bit_cast<float>(sign | bit_cast<uint32_t>(float(int32_t(magnitude)) * 0x1p-24f));
  return bit_cast<float>(sign | ((magnitude << 13) + 0x38000000u));
}

ATS_HD inline bfloat16 to_bfloat16(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {uint16_t((bits >> 16) | 0x40u)};  // NaN stays NaN
  return {uint16_t((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

ATS_HD inline float16 to_float16(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  const uint16_t sign = uint16_t((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {uint16_t(sign | 0x7e00u)};
  if (magnitude >= 0x477ff000u) return {uint16_t(sign | 0x7c00u)};  // rounds to infinity
  if (magnitude < 0x38800000u) {
    // Subnormal: adding 0.5 leaves the rounded multiple of 2^-24 in the low bits.
    const float shifted = bit_cast<float>(magnitude) + 0.5f;
    return {uint16_t(sign | (bit_cast<uint32_t>(shifted) - 0x3f000000u))};
  }
  const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u) - 0x38000000u;
  return {uint16_t(sign | (rounded >> 13))};
}

// Any dtype as the type that computes: float, or double for double.
ATS_HD inline float load(float16 x) { return to_float(x); }
ATS_HD inline float load(bfloat16 x) { return to_float(x); }
template <typename T>
ATS_HD inline std::conditional_t<std::is_same_v<T, double>, double, float> load(T x) {
  return static_cast<std::conditional_t<std::is_same_v<T, double>, double, float>>(x);
}

// A double that goes to a half dtype must not be rounded twice: to float by round-to-odd, then to the half.
ATS_HD inline float round_to_odd(float x) { return x; }
ATS_HD inline float round_to_odd(double x) {
  const float y = static_cast<float>(x);
  const double back = y;
  if (back == x || y != y) return y;
  const uint32_t bits = bit_cast<uint32_t>(y);
  if ((bits & 1u) || (bits & 0x7fffffffu) >= 0x7f800000u) return y;
  // y is even and inexact: the odd neighbour on x's side of y.
  const bool away_from_zero = (back < x) == (x > 0);
  return bit_cast<float>(away_from_zero ? bits + 1u : bits - 1u);
}

template <typename T, typename A>
ATS_HD inline T store(A x) {
  if constexpr (std::is_same_v<T, float16>) {
    return to_float16(round_to_odd(x));
  } else if constexpr (std::is_same_v<T, bfloat16>) {
    return to_bfloat16(round_to_odd(x));
  } else if constexpr (std::is_integral_v<T>) {
    constexpr A low = static_cast<A>(std::numeric_limits<T>::min());
    constexpr A high = static_cast<A>(std::numeric_limits<T>::max());
    if (!(x > low)) return x == x ? std::numeric_limits<T>::min() : T(0);  // NaN becomes 0
    if (x >= high) return std::numeric_limits<T>::max();
    return static_cast<T>(nearbyint(x));
  } else {
    return static_cast<T>(x);
  }
}

template <typename T>
ATS_HD constexpr double largest_finite() {
  return std::is_same_v<T, float16>    ? 65504.0
         : std::is_same_v<T, bfloat16> ? 3.3895313892515355e38
         : std::is_same_v<T, float>    ? double(std::numeric_limits<float>::max())
                                       : std::numeric_limits<double>::max();
}

// Gradients of tiny probabilities can pass the range of a narrow dtype; they are clamped to it, so that the product
// with that probability, further down the chain, stays finite.
template <typename T>
ATS_HD inline T store_clamped(double x) {
  constexpr double top = largest_finite<T>();
  return store<T>(x > top ? top : x < -top ? -top : x);
}

}  // namespace ats
