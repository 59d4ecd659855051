// Where the patch of a cell begins, from the cell's place in the grid.
#pragma once

#include <ats/ats.h>

#include <cmath>
#include <cstdint>
#include <limits>

#include "host_device.h"

namespace ats {

// The cells of the grid.
ATS_HD inline int64_t grid_cells(const ats_locate_options& options) {
  int64_t cells = 1;
  for (int axis = 0; axis < options.spatial; ++axis) cells *= options.grid[axis];
  return cells;
}

// Origins of one cell, `stride` apart. A cell that is not of the grid (-1 stands for one that could not be drawn, on a
// GPU) lies before everything.
ATS_HD inline void locate_cell(const ats_locate_options& options, int64_t cells, int64_t cell, int64_t* origin,
                               int64_t stride) {
  const bool known = cell >= 0 && cell < cells;
  int64_t rest = cell;
  for (int axis = options.spatial - 1; axis >= 0; --axis) {
    const double grid = double(options.grid[axis]), low = double(options.low[axis]);
    const double field = double(options.receptive_field[axis]), patch = double(options.patch[axis]);
    const double scale = double(options.image[axis]) / low;
    const double step = (low - field) * scale / grid;
    const double index = double(rest % options.grid[axis]);
    rest /= options.grid[axis];
    // nearbyint rounds half to even
    origin[axis * stride] = known ? int64_t(nearbyint(field / 2.0 * scale + index * step + step / 2.0 - patch / 2.0))
                                  : std::numeric_limits<int64_t>::min();
  }
}

}  // namespace ats
