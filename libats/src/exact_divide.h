// A division by a number of which the inverse is known: the same bits, in 5 instructions of a GPU, where one that expects
// everything takes 12.
#pragma once

#include <cmath>

#include "host_device.h"

namespace ats {

// x / by with inverse = 1 / by, both rounded, for numbers so far from the ends of the range that every step is a normal
// number (or 0): a quotient less than one unit off, whose remainder is exact, becomes the right one (Markstein 1990).
ATS_HD ATS_INLINE float divide_exactly(float x, float by, float inverse) {
  float quotient = x * inverse;
  quotient = std::fma(std::fma(-quotient, by, x), inverse, quotient);
  return std::fma(std::fma(-quotient, by, x), inverse, quotient);
}

// Whether (x - mean) / std, for integers x of at most 16 bits, is such a division.
inline bool divides_exactly(float mean, float std) {
  const float size = std::fabs(mean), spread = std::fabs(std);
  return (size == 0.0f || (size >= 0x1p-30f && size <= 0x1p30f)) && spread >= 0x1p-30f && spread <= 0x1p30f;
}

}  // namespace ats
