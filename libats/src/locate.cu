// locate on a GPU: a thread a cell.
#include "cuda_launch.cuh"
#include "cuda_ops.h"
#include "locate_math.h"

namespace ats::cuda {
namespace {

struct Locate {
  static constexpr int kThreads = 256;

  ats_locate_options options;
  int64_t count, samples, cells;
  const int64_t* indices;
  int64_t index_row, index_sample;
  int64_t* origins;
  int64_t origin_row, origin_sample, origin_axis;

  __device__ void operator()() const {
    for (int64_t i = thread_number(); i < count; i += grid_stride()) {
      const int64_t row = i / samples, sample = i % samples;
      locate_cell(options, cells, indices[row * index_row + sample * index_sample],
                  origins + row * origin_row + sample * origin_sample, origin_axis);
    }
  }
};

}  // namespace

void check_built(Where) {}

void locate(const ats_tensor& indices, const ats_locate_options& options, const ats_tensor& origins,
            const ats_executor* executor) {
  constexpr const char* op = "locate";
  const int64_t count = element_count(indices);
  if (count == 0) return;
  const DeviceGuard guard(op, indices.device_index);
  const Queue queue{op, stream_of(executor)};
  queue.launch(
      Locate{options, count, indices.shape[1], grid_cells(options), data_of<const int64_t>(indices), indices.strides[0],
             indices.strides[1], data_of<int64_t>(origins), origins.strides[0], origins.strides[1], origins.strides[2]},
      blocks_for(count, Locate::kThreads));
}

}  // namespace ats::cuda
