// The eight lanes in which the cells of a group are added (sample_math.h), as one vector: GCC and Clang make of it whatever
// registers the function is compiled for. Every lane does what the scalar code does, bit for bit.
#pragma once

#include <cstdint>
#include <cstring>

#include "half.h"
#include "simd.h"

namespace ats {

// Aligned as a double is: no code may count on more of the stack that it runs on.
typedef double Doubles __attribute__((vector_size(64), aligned(8)));
typedef uint64_t Words __attribute__((vector_size(64), aligned(8)));
typedef float Floats __attribute__((vector_size(32)));

// Eight elements from `data` on.
ATS_INLINE Doubles load_lanes(const double* data) {
  Doubles lanes;
  memcpy(&lanes, data, sizeof(lanes));
  return lanes;
}
ATS_INLINE Doubles load_lanes(const float* data) {
  Floats lanes;
  memcpy(&lanes, data, sizeof(lanes));
  return __builtin_convertvector(lanes, Doubles);
}
template <typename Half>
ATS_INLINE Doubles load_lanes(const Half* data) {
  float lanes[8];
  for (int l = 0; l < 8; ++l) lanes[l] = load(data[l]);
  return load_lanes(lanes);
}

// What sum_lanes in sample_math.h gives: halves are added to each other until one lane is left.
ATS_INLINE double sum_lanes(Doubles lanes) {
  typedef double Four __attribute__((vector_size(32)));
  typedef double Two __attribute__((vector_size(16)));
  struct Halves {
    Four low, high;
  };
  struct Quarters {
    Two low, high;
  };
  const Halves halves = bit_cast<Halves>(lanes);
  const Quarters quarters = bit_cast<Quarters>(halves.low + halves.high);
  const Two two = quarters.low + quarters.high;
  return two[0] + two[1];
}

ATS_INLINE Doubles lower(Doubles a, Doubles b) { return a < b ? a : b; }
ATS_INLINE Doubles higher(Doubles a, Doubles b) { return a > b ? a : b; }

}  // namespace ats
