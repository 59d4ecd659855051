// locate: from cells of the attention map to where their patches begin in the full-resolution image.
#include "locate_math.h"

#include "cuda_ops.h"

namespace ats {
namespace {

constexpr const char* kOp = "locate";
// Sizes up to here keep every product below within what a double and an int64 hold.
constexpr int64_t kLargestSize = int64_t(1) << 52;

void check_sizes(const char* name, const int64_t* sizes, int spatial, int64_t lowest) {
  for (int axis = 0; axis < spatial; ++axis)
    if (sizes[axis] < lowest || sizes[axis] > kLargestSize)
      fail("locate: %s must be at least %lld (and at most 2^52) on every axis, got %s", name,
           static_cast<long long>(lowest), shape_text(sizes, spatial).c_str());
}

ats_tensor origins_shape(const ats_tensor* indices, const ats_locate_options* options) {
  check_described({kOp, "indices"}, indices, kInteger64, 2, 2, "(B, N)");
  check_pointer({kOp, "options"}, options);
  if (options->spatial < 1 || options->spatial > 3)
    fail("locate: grid must have 1, 2 or 3 spatial axes, got %d", int(options->spatial));
  check_sizes("grid", options->grid, options->spatial, 1);
  check_sizes("low_shape", options->low, options->spatial, 1);
  check_sizes("image_shape", options->image, options->spatial, 1);
  check_sizes("patch_size", options->patch, options->spatial, 1);
  check_sizes("receptive_field", options->receptive_field, options->spatial, 0);
  for (int axis = 0; axis < options->spatial; ++axis)
    if (options->receptive_field[axis] >= options->low[axis])
      fail("locate: receptive_field must be smaller than low_shape, got %lld on axis %d of %s",
           static_cast<long long>(options->receptive_field[axis]), axis,
           shape_text(options->low, options->spatial).c_str());
  int64_t cells = 1;
  for (int axis = 0; axis < options->spatial; ++axis) cells = multiply_sizes({kOp, "grid"}, cells, options->grid[axis]);
  multiply_sizes({kOp, "indices"}, multiply_sizes({kOp, "indices"}, indices->shape[0], indices->shape[1]), 24);
  const ats_tensor origins = describe(ATS_INT64, {indices->shape[0], indices->shape[1], options->spatial});
  return on_device_of(*indices, origins);
}

}  // namespace
}  // namespace ats

using namespace ats;

int ats_locate_shape(const ats_tensor* indices, const ats_locate_options* options, ats_tensor* origins) noexcept {
  return guard([&] {
    check_pointer({kOp, "origins"}, origins);
    *origins = origins_shape(indices, options);
  });
}

int ats_locate(const ats_tensor* indices, const ats_locate_options* options, const ats_tensor* origins,
               const ats_executor* executor) noexcept {
  return guard([&] {
    const ats_tensor expected = origins_shape(indices, options);
    check_tensor({kOp, "indices"}, indices, kInteger64, 2, 2, "(B, N)");
    check_output({kOp, "origins"}, origins, expected);
    if (on_gpu(kOp, {{"indices", indices}, {"origins", origins}}))
      return cuda::locate(*indices, *options, *origins, executor);
    const int64_t count = element_count(*indices), samples = indices->shape[1], cells = grid_cells(*options);
    const auto cell_at = [&](int64_t i) {
      return data_of<int64_t>(*indices)[i / samples * indices->strides[0] + i % samples * indices->strides[1]];
    };
    for (int64_t i = 0; i < count; ++i)
      if (cell_at(i) < 0 || cell_at(i) >= cells)
        fail("locate: indices must lie in [0, %lld), the cells of the grid %s; got %lld", static_cast<long long>(cells),
             shape_text(options->grid, options->spatial).c_str(), static_cast<long long>(cell_at(i)));
    parallel_for(executor, count, grain_for(8), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        locate_cell(*options, cells, cell_at(i),
                    data_of<int64_t>(*origins) + i / samples * origins->strides[0] + i % samples * origins->strides[1],
                    origins->strides[2]);
    });
  });
}
