// Division by a divisor that is known before the launch: a multiplication and a shift. And positions in several axes,
// of which a block knows its first: what threads add to it is small, so that carrying takes 32 bits.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace ats::cuda {

// n / divisor for n < 2^31 and 1 <= divisor <= 2^30 (Granlund, Montgomery 1994): factor = (2^(31 + bits) + e) / divisor
// with 0 < e <= 2^bits, so that n * e < 2^(31 + bits) adds less than 1 / divisor.
struct Divider {
  uint32_t divisor = 1, factor = 0x80000001u;
  int shift = 31;

  Divider() = default;
  explicit Divider(int64_t by) : divisor(uint32_t(by)) {
    int bits = 0;
    while ((int64_t(1) << bits) < by) ++bits;
    shift = 31 + bits;
    factor = uint32_t((uint64_t(1) << shift) / divisor + 1);
  }
  ATS_HD uint32_t divide(uint32_t n) const { return uint32_t((uint64_t(n) * factor) >> shift); }
};

// One axis of a position.
struct Digit {
  int64_t size = 1;
  Divider by;

  Digit() = default;
  explicit Digit(int64_t size_) : size(size_), by(narrow(size_) ? size_ : 1) {}
  ATS_HD static bool narrow(int64_t size) { return size <= int64_t(1) << 30; }
  // What of a position in memory order goes to the slower axes; `value` becomes the place on this one.
  ATS_HD int64_t split(int64_t& value) const {
    const int64_t over = narrow(size) && value >> 31 == 0 ? int64_t(by.divide(uint32_t(value))) : value / size;
    value -= over * size;
    return over;
  }
  // The same below 2^31, of an axis of at most 2^30.
  ATS_HD uint32_t carry(uint32_t& value) const {
    const uint32_t over = by.divide(value);
    value -= over * by.divisor;
    return over;
  }
  // And of a place that has moved a little, to below size + 2^20.
  ATS_HD int64_t carry(int64_t& value) const {
    const int64_t over = narrow(size) ? int64_t(by.divide(uint32_t(value))) : int64_t(value >= size);
    value -= over * size;
    return over;
  }
};

}  // namespace ats::cuda
