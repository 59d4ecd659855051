// Eight numbers side by side, as one vector: GCC and Clang make of it whatever registers the function is compiled
// for. Every lane does what the scalar code does, bit for bit.
#pragma once

#include <cstdint>
#include <cstring>

#include "convert_lanes.h"
#include "portable_math.h"
#include "simd.h"

namespace ats {

typedef double Doubles __attribute__((vector_size(64)));
typedef uint64_t Words __attribute__((vector_size(64)));
typedef float SixteenFloats __attribute__((vector_size(64)));
typedef double FourDoubles __attribute__((vector_size(32)));
typedef uint64_t FourWords __attribute__((vector_size(32)));

struct HalvesOfDoubles {
  FourDoubles low, high;
};

// Four of the eight elements of a and b, by number.
#if defined(__clang__) || __GNUC__ >= 12
#define ATS_SHUFFLE(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
#define ATS_SHUFFLE(a, b, i, j, k, l) __builtin_shuffle(a, b, ::ats::FourWords{i, j, k, l})
#endif

// Eight elements from `data` on.
ATS_INLINE Doubles load_lanes(const double* data) {
  Doubles lanes;
  memcpy(&lanes, data, sizeof(lanes));
  return lanes;
}
ATS_INLINE Doubles load_lanes(const float* data) {
  typedef float Floats __attribute__((vector_size(32)));
  Floats lanes;
  memcpy(&lanes, data, sizeof(lanes));
  return __builtin_convertvector(lanes, Doubles);
}
template <typename Half>
ATS_INLINE Doubles load_lanes(const Half* data) {
  return widen<double, 8>(data);
}

// Sixteen at once, which GCC converts with half the instructions of twice eight.
ATS_INLINE SixteenFloats load_floats(const float* data) {
  SixteenFloats lanes;
  memcpy(&lanes, data, sizeof(lanes));
  return lanes;
}
template <typename Half>
ATS_INLINE SixteenFloats load_floats(const Half* data) {
  return widen<float, 16>(data);
}
struct TwoDoubles {
  Doubles low, high;
};
ATS_INLINE TwoDoubles widen(SixteenFloats lanes) {
  typedef double SixteenDoubles __attribute__((vector_size(128)));
  return bit_cast<TwoDoubles>(__builtin_convertvector(lanes, SixteenDoubles));
}

// float_exp of sixteen cells.
ATS_INLINE TwoDoubles float_exp(SixteenFloats x, float reference) {
  typedef uint64_t SixteenWords __attribute__((vector_size(128)));
  struct TwoWords {
    Words low, high;
  };
  const auto e = float_exp<SixteenFloats, Vector<uint32_t, 16>>(x, reference);
  const TwoDoubles fraction = widen(e.fraction);
  const TwoWords exponent = bit_cast<TwoWords>(__builtin_convertvector(e.exponent, SixteenWords));
  return {fraction.low * bit_cast<Doubles>(Words(exponent.low << 52)),
          fraction.high * bit_cast<Doubles>(Words(exponent.high << 52))};
}

ATS_INLINE void store_lanes(double* data, Doubles lanes) { memcpy(data, &lanes, sizeof(lanes)); }

ATS_INLINE FourDoubles add_halves(Doubles lanes) {
  const HalvesOfDoubles halves = bit_cast<HalvesOfDoubles>(lanes);
  return halves.low + halves.high;
}

// ((0 + 4) + (2 + 6)) + ((1 + 5) + (3 + 7)): halves are added to each other until one lane is left.
ATS_INLINE double sum_lanes(Doubles lanes) {
  typedef double Two __attribute__((vector_size(16)));
  struct Quarters {
    Two low, high;
  };
  const Quarters quarters = bit_cast<Quarters>(add_halves(lanes));
  const Two two = quarters.low + quarters.high;
  return two[0] + two[1];
}

// sum_lanes of four vectors at once.
ATS_INLINE FourDoubles sum_lanes(Doubles a, Doubles b, Doubles c, Doubles d) {
  const FourDoubles a4 = add_halves(a), b4 = add_halves(b), c4 = add_halves(c), d4 = add_halves(d);
  const FourDoubles ac = ATS_SHUFFLE(a4, c4, 0, 1, 4, 5) + ATS_SHUFFLE(a4, c4, 2, 3, 6, 7);
  const FourDoubles bd = ATS_SHUFFLE(b4, d4, 0, 1, 4, 5) + ATS_SHUFFLE(b4, d4, 2, 3, 6, 7);
  return ATS_SHUFFLE(ac, bd, 0, 4, 2, 6) + ATS_SHUFFLE(ac, bd, 1, 5, 3, 7);
}

// In how many lanes x >= y.
ATS_INLINE int count_not_less(Doubles x, Doubles y) {
  struct Halves {
    FourWords low, high;
  };
  struct Quarters {
    uint64_t word[4];
  };
  const Halves halves = bit_cast<Halves>(x >= y);  // all bits, -1, where true
  const Quarters sums = bit_cast<Quarters>(FourWords(halves.low + halves.high));
  return -int((sums.word[0] + sums.word[1]) + (sums.word[2] + sums.word[3]));
}

template <typename Lanes>
ATS_INLINE Lanes lower(Lanes a, Lanes b) {
  return a < b ? a : b;
}
template <typename Lanes>
ATS_INLINE Lanes higher(Lanes a, Lanes b) {
  return a > b ? a : b;
}

}  // namespace ats
