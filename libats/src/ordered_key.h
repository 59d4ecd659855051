// Numbers as unsigned integers in the same order; -0 and 0 are one, and NaN has no place in it.
#pragma once

#include "half.h"

namespace ats {

ATS_HD ATS_INLINE uint32_t ordered_key(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x == 0.0f ? 0.0f : x);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}
ATS_HD ATS_INLINE uint64_t ordered_key(double x) {
  const uint64_t bits = bit_cast<uint64_t>(x == 0.0 ? 0.0 : x);
  return bits >> 63 ? ~bits : bits | 0x8000000000000000u;
}
ATS_HD ATS_INLINE double ordered_value(uint64_t key) {
  return bit_cast<double>(key >> 63 ? key & 0x7fffffffffffffffu : ~key);
}

}  // namespace ats
