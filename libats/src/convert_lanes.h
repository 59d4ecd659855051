// Elements of any dtype into a vector of the type that computes, and out of it: load and store of half.h for many
// lanes at once, bit for bit.
#pragma once

#include "half.h"

namespace ats {

template <typename T, int lanes>
struct VectorOf {
  typedef T type __attribute__((vector_size(lanes * sizeof(T))));
};
template <typename T, int lanes>
using Vector = typename VectorOf<T, lanes>::type;

template <typename T>
constexpr bool kIsHalf = std::is_same_v<T, float16> || std::is_same_v<T, bfloat16>;

// Masks by arithmetic: GCC takes comparisons of vectors wider than the registers apart into single numbers.
// All bits where 0 <= x < limit, none where x >= limit.
template <int lanes>
ATS_INLINE Vector<uint32_t, lanes> below(Vector<uint32_t, lanes> x, int32_t limit) {
  using Ints = Vector<int32_t, lanes>;
  return Vector<uint32_t, lanes>((Ints(x) - limit) >> 31);
}
template <typename Words>
ATS_INLINE Words select(Words mask, Words yes, Words no) {
  return no ^ ((yes ^ no) & mask);
}

// to_float(float16)
template <int lanes>
ATS_INLINE Vector<float, lanes> float16_lanes(Vector<uint32_t, lanes> bits) {
  using Words = Vector<uint32_t, lanes>;
  const Words magnitude = bits & 0x7fffu, sign = (bits & 0x8000u) << 16;
  const auto integers = __builtin_convertvector(Vector<int32_t, lanes>(magnitude), Vector<float, lanes>);
  const Words subnormal = Words(integers * 0x1p-24f);
  const Words normal = (magnitude << 13) + 0x38000000u;
  const Words special = (magnitude << 13) | 0x7f800000u;
  const Words finite = select(below<lanes>(magnitude, 0x400), subnormal, normal);
  return Vector<float, lanes>(sign | select(below<lanes>(magnitude, 0x7c00), finite, special));
}

// to_float16 and to_bfloat16
template <typename Half, int lanes>
ATS_INLINE Vector<uint32_t, lanes> half_bits(Vector<float, lanes> x) {
  using Words = Vector<uint32_t, lanes>;
  const Words bits = Words(x), magnitude = bits & 0x7fffffffu;
  const Words number = below<lanes>(magnitude, 0x7f800001);  // else NaN
  if constexpr (std::is_same_v<Half, bfloat16>) {
    return select(number, (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16, (bits >> 16) | 0x40u);
  } else {
    const Words subnormal = Words(Vector<float, lanes>(magnitude) + 0.5f) - 0x3f000000u;
    const Words normal = (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - 0x38000000u) >> 13;
    const Words finite = select(below<lanes>(magnitude, 0x38800000), subnormal, normal);
    const Words special = 0x7e00u - (number & 0x200u);
    return ((bits >> 16) & 0x8000u) | select(below<lanes>(magnitude, 0x477ff000), finite, special);
  }
}

// round_to_odd(double)
template <int lanes>
ATS_INLINE Vector<float, lanes> round_to_odd_lanes(Vector<double, lanes> x) {
  using Ints = Vector<int32_t, lanes>;
  using Longs = Vector<int64_t, lanes>;
  const Vector<float, lanes> y = __builtin_convertvector(x, Vector<float, lanes>);
  // 1 where x lies above y, -1 below, 0 on it.
  const Longs error = Longs(x - __builtin_convertvector(y, Vector<double, lanes>));
  const Longs inexact = -(error & std::numeric_limits<int64_t>::max()) >> 63;
  const Ints up = __builtin_convertvector(inexact & ((error >> 63) | 1), Ints);
  const Ints bits = Ints(y), negative = bits >> 31;
  const Ints away = (up ^ negative) - negative;  // -up for a negative y: one bit further from zero, or nearer to it
  const Ints even = (bits & 1) - 1, finite = ((bits & 0x7fffffff) - 0x7f800000) >> 31;
  return Vector<float, lanes>(bits + (away & even & finite));
}

// Integers to twice their width and so on: compilers have instructions for a doubling.
template <typename A, int lanes, typename Integer>
ATS_INLINE Vector<A, lanes> from_integers(Vector<Integer, lanes> x) {
  if constexpr (sizeof(Integer) == 1) {
    return from_integers<A, lanes, uint16_t>(__builtin_convertvector(x, Vector<uint16_t, lanes>));
  } else {
    return __builtin_convertvector(__builtin_convertvector(x, Vector<int32_t, lanes>), Vector<A, lanes>);
  }
}

template <typename A, int lanes, typename In>
ATS_INLINE Vector<A, lanes> widen(const In* from) {
  Vector<std::conditional_t<kIsHalf<In>, uint16_t, In>, lanes> pixels;
  memcpy(&pixels, from, sizeof(pixels));
  if constexpr (std::is_same_v<In, A>) {
    return pixels;
  } else if constexpr (std::is_integral_v<In>) {
    return from_integers<A, lanes, In>(pixels);
  } else if constexpr (kIsHalf<In>) {
    const auto bits = __builtin_convertvector(pixels, Vector<uint32_t, lanes>);
    Vector<float, lanes> x;
    if constexpr (std::is_same_v<In, bfloat16>) {
      x = Vector<float, lanes>(bits << 16);
    } else {
      x = float16_lanes<lanes>(bits);
    }
    return __builtin_convertvector(x, Vector<A, lanes>);
  } else {
    return __builtin_convertvector(pixels, Vector<A, lanes>);
  }
}

template <int lanes, typename A, typename Out>
ATS_INLINE void narrow(Vector<A, lanes> x, Out* to) {
  if constexpr (kIsHalf<Out>) {
    Vector<float, lanes> single;
    if constexpr (std::is_same_v<A, double>) {
      single = round_to_odd_lanes<lanes>(x);
    } else {
      single = x;
    }
    const auto bits = __builtin_convertvector(half_bits<Out, lanes>(single), Vector<uint16_t, lanes>);
    memcpy(to, &bits, sizeof(bits));
  } else if constexpr (std::is_integral_v<Out>) {
    for (int l = 0; l < lanes; ++l) to[l] = store<Out>(A(x[l]));
  } else {
    const auto values = __builtin_convertvector(x, Vector<Out, lanes>);
    memcpy(to, &values, sizeof(values));
  }
}

}  // namespace ats
