// Pixels of one dtype into those of another: the only part of extract_patches and its backward that two dtypes enter,
// so that nothing else is compiled for every pair.
#pragma once

#include <memory>

#include "core.h"

namespace ats {

// to = (from - mean) / std. Strides are in elements.
class Converter {
 public:
  virtual ~Converter() = default;
  // Rows of `count` elements side by side: pixels of channel c, or (interleaved, c = 0) pixels with all their channels.
  virtual void rows(const void* from, int64_t from_y, void* to, int64_t to_y, int64_t rows, int64_t count,
                    int64_t c) const = 0;
  // Pixels of channel c, wherever they are.
  virtual void pixels(const void* from, int64_t from_y, int64_t from_x, void* to, int64_t to_y, int64_t to_x,
                      int64_t rows, int64_t width, int64_t c) const = 0;
  // One value, as a pixel of channel c.
  virtual void fill(double value, void* to, int64_t to_y, int64_t to_x, int64_t rows, int64_t width,
                    int64_t c) const = 0;
};

// `mean` and `std` hold a value a channel; both null: the pixels as they are, of which there may be any number of
// channels. It computes in float, or in double when one of the dtypes is; `in_float`: never in double.
std::unique_ptr<Converter> make_converter(int from, int to, int64_t channels, const double* mean, const double* std,
                                          bool interleaved, bool in_float = false);

}  // namespace ats
