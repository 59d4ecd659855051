// Patches at scales above 1: every patch pixel is the average of scale^D image pixels.
#pragma once

#include <memory>

#include "patches_plan.h"

namespace ats {

class Averaging {
 public:
  virtual ~Averaging() = default;
  // Rows [first, last) of slice z of a patch at scale s that begins at `start` in the image.
  virtual void rows(int s, const void* image, const int64_t* start, int64_t z, int64_t first, int64_t last,
                    void* out) const = 0;
};

std::unique_ptr<Averaging> make_averaging(const PatchesPlan& plan, int from, int to);

}  // namespace ats
