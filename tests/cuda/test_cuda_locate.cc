// locate on a GPU gives what it gives on the CPU, and words for what cannot be.
#include <cstring>
#include <limits>
#include <vector>

#include "../cpp/check.h"
#include "device.h"

namespace {

void test_same_as_cpu() {
  const std::vector<int64_t> cells{0, 5, 104, 77, 13, 2, 104, 0};
  for (int spatial = 1; spatial <= 3; ++spatial) {
    ats_locate_options options{};
    options.spatial = spatial;
    const int64_t grid[] = {3, 5, 7}, image[] = {301, 1500, 77}, patch[] = {50, 33, 8}, field[] = {1, 0, 2};
    for (int axis = 0; axis < spatial; ++axis) {
      options.grid[axis] = spatial == 1 ? 105 : spatial == 2 ? 11 : grid[axis];
      options.low[axis] = options.grid[axis] + 3;
      options.image[axis] = image[axis];
      options.patch[axis] = patch[axis];
      options.receptive_field[axis] = field[axis];
    }
    std::vector<int64_t> expected(cells.size() * size_t(spatial));
    const ats_tensor indices = ats::view(cells.data(), {2, 4}), origins = ats::view(expected.data(), {2, 4, spatial});
    CHECK_OK(ats_locate(&indices, &options, &origins, nullptr));
    const OnDevice<int64_t> device_cells(cells), device_origins(expected.size());
    const ats_tensor gpu_indices = gpu_view(device_cells, {2, 4}),
                     gpu_origins = gpu_view(device_origins, {2, 4, spatial});
    CHECK_OK(ats_locate(&gpu_indices, &options, &gpu_origins, nullptr));
    CHECK(device_origins.get() == expected);
    ats_tensor described{};
    CHECK_OK(ats_locate_shape(&gpu_indices, &options, &described));
    CHECK(described.device == ATS_CUDA);

    // What cannot be read before the call lies before everything.
    const OnDevice<int64_t> bad(std::vector<int64_t>{-1, 1 << 20});
    const OnDevice<int64_t> bad_origins(2 * size_t(spatial));
    const ats_tensor bad_view = gpu_view(bad, {1, 2}), bad_result = gpu_view(bad_origins, {1, 2, spatial});
    CHECK_OK(ats_locate(&bad_view, &options, &bad_result, nullptr));
    for (const int64_t origin : bad_origins.get()) CHECK(origin == std::numeric_limits<int64_t>::min());

    CHECK(ats_locate(&gpu_indices, &options, &origins, nullptr) == ATS_INVALID_ARGUMENT);
    CHECK(std::strcmp(ats_last_error(), "locate: origins is on the CPU, but indices is on GPU 0") == 0);
  }
}

}  // namespace

int main() {
  in_every_order(test_same_as_cpu);
  return finish();
}
