// Philox4x32-10 (Salmon et al., SC 2011): a counter goes in, 128 random bits come out, with no state to keep.
//
// Word holds 32 bits of one number; it is uint64_t, or a vector of them (lanes.h) for several numbers at once.
#pragma once

#include <cstdint>

#include "half.h"
#include "host_device.h"

namespace ats {

template <typename Word>
ATS_HD ATS_INLINE void philox(uint64_t key, Word counter_low, uint64_t counter_high, Word (&word)[4]) {
  constexpr uint64_t kLow = 0xffffffffu;
  Word c0 = counter_low & kLow, c1 = counter_low >> 32;
  Word c2 = Word{} + (counter_high & kLow), c3 = Word{} + (counter_high >> 32);
  uint64_t k0 = key & kLow, k1 = key >> 32;
  for (int round = 0; round < 10; ++round) {
    const Word product0 = c0 * uint64_t(0xD2511F53u);
    const Word product1 = c2 * uint64_t(0xCD9E8D57u);
    c0 = (product1 >> 32) ^ c1 ^ k0;
    c2 = (product0 >> 32) ^ c3 ^ k1;
    c1 = product1 & kLow;
    c3 = product0 & kLow;
    k0 = (k0 + 0x9E3779B9u) & kLow;
    k1 = (k1 + 0xBB67AE85u) & kLow;
  }
  word[0] = c0, word[1] = c1, word[2] = c2, word[3] = c3;
}

// 53 bits of two words as an integer. Integers below 2^52 become doubles by their bits.
template <typename Real, typename Word>
ATS_HD ATS_INLINE Real random_integer(Word high, Word low) {
  constexpr uint64_t kBits = 0x4330000000000000u;  // of 2^52
  const Real above = bit_cast<Real>(high | kBits) - 0x1p52;
  return above * 0x1p21 + (bit_cast<Real>((low >> 11) | kBits) - 0x1p52);
}

// k * 2^-53 with k in [0, 2^53).
template <typename Real, typename Word>
ATS_HD ATS_INLINE Real uniform_below_one(Word high, Word low) {
  return random_integer<Real>(high, low) * 0x1p-53;
}

// (k + 1) * 2^-53: never 0, so that its logarithm is finite.
template <typename Real, typename Word>
ATS_HD ATS_INLINE Real uniform_above_zero(Word high, Word low) {
  return (random_integer<Real>(high, low) + 1.0) * 0x1p-53;
}

}  // namespace ats
