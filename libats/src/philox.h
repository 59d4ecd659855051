// Philox4x32-10 (Salmon et al., SC 2011): a counter goes in, 128 random bits come out, with no state to keep.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace ats {

struct Random128 {
  uint32_t word[4];
};

ATS_HD inline Random128 philox(uint64_t key, uint64_t counter_low, uint64_t counter_high) {
  uint32_t c0 = uint32_t(counter_low), c1 = uint32_t(counter_low >> 32);
  uint32_t c2 = uint32_t(counter_high), c3 = uint32_t(counter_high >> 32);
  uint32_t k0 = uint32_t(key), k1 = uint32_t(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t(0xD2511F53u) * c0;
    const uint64_t product1 = uint64_t(0xCD9E8D57u) * c2;
    c0 = uint32_t(product1 >> 32) ^ c1 ^ k0;
    c2 = uint32_t(product0 >> 32) ^ c3 ^ k1;
    c1 = uint32_t(product1);
    c3 = uint32_t(product0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// Draw number `draw` of the stream (seed, row).
ATS_HD inline Random128 random_bits(uint64_t seed, uint64_t row, uint64_t draw) { return philox(seed, draw, row); }

// 53 bits: k * 2^-53 with k in [0, 2^53).
ATS_HD inline double uniform_below_one(uint32_t high, uint32_t low) {
  return double((uint64_t(high) << 21) ^ (low >> 11)) * 0x1p-53;
}

// (k + 1) * 2^-53: never 0, so that its logarithm is finite.
ATS_HD inline double uniform_above_zero(uint32_t high, uint32_t low) {
  return (double((uint64_t(high) << 21) ^ (low >> 11)) + 1.0) * 0x1p-53;
}

}  // namespace ats
