// sample on a GPU: the tree of a row (sample_rows.cuh), then a warp that draws from it (sample_warp.cuh). The same bits
// as the CPU's, which runs the same draw_rows of sample_math.h.
//
// Rows of up to 32,768 cells: one kernel, a block a row; tree and bits of cells taken are in shared memory, and a draw
// touches memory once, for the 32 cells of its group. 128 rows of 32,400 float32 cells are 17 MB, 5 us; a draw is 3 nodes
// down, one group of cells, 3 sums up, about 2,000 cycles: 1.2 us a draw, all rows at the same time.
// Longer rows: levels 0 and 1 of the tree are in memory, the others in shared memory (up to about 1.6e8 cells), and a
// draw touches memory three times, one after the other. For 1 x 1e8, N = 100 that is 3 * 700 + 6 * 250 + 6 * 125 + 300 =
// 4,700 cycles a draw, 0.28 ms for all, beside the 0.13 ms in which all SMs read the 400 MB.
#include "cuda_ops.h"
#include "sample_rows.cuh"
#include "sample_warp.cuh"

namespace ats::cuda {
namespace {

constexpr const char* kOp = "sample";

// (seed, offset), in the memory of the GPU, or read by the host.
struct Rng {
  const int64_t* data;
  int64_t stride;
  uint64_t seed, offset;

  explicit Rng(const ats_tensor& rng) : data(data_of<const int64_t>(rng)), stride(rng.strides[0]), seed(0), offset(0) {
    if (rng.device != ATS_CPU) return;
    seed = uint64_t(data[0]);
    offset = uint64_t(data[stride]);
    data = nullptr;
  }
  __device__ uint64_t get_seed() const { return data ? uint64_t(data[0]) : seed; }
  __device__ uint64_t get_offset() const { return data ? uint64_t(data[stride]) : offset; }
};

template <typename T, bool Logits>
struct DrawRows {
  static constexpr int kThreads = 512;
  static constexpr int64_t kMostPrefetched = int64_t(1) << 17;  // doubles
  using P = std::conditional_t<std::is_same_v<T, double>, double, float>;
  using State = RowState<T, Logits, WarpDraw>;

  RowBuilder<T, Logits> builder;
  Rng rng;
  bool replace;
  Drawn<P> out;

  // Shared memory: BlockMemory, the path of a draw, then the bits of a short row or the upper levels of a long one.
  size_t shared_bytes() const {
    const TreeShape& shape = builder.in.shape;
    return sizeof(BlockMemory) + WarpDraw::Path::bytes(shape) +
           (LongRows::is_long(shape) ? builder.layout.upper_bytes() : size_t(shape.count[0]) * sizeof(uint32_t));
  }

  __device__ void operator()() const {
    char* behind = reinterpret_cast<char*>(WarpDraw::Path::nodes()) + WarpDraw::Path::bytes(builder.in.shape);
    for (int64_t r = blockIdx.x; r < builder.in.rows; r += gridDim.x) {
      if (threadIdx.x == 0) block_memory().done = 0;
      State state =
          builder.template build<WarpDraw>(r, reinterpret_cast<double*>(behind), reinterpret_cast<uint32_t*>(behind));
      if (threadIdx.x < unsigned(kWarp)) {
        draw(state, r);
      } else {
        prefetch_level(state, 1);
        help(state);
      }
      if (!block_memory().good) out.fail(r);
      __syncthreads();
    }
  }

  // By the other warps: most of a level in memory, of which draws will read they do not know what, comes nearer.
  __device__ void prefetch_level(const State& state, int level) const {
    constexpr int kLine = 16;  // doubles
    if (level >= state.tree.first_upper) return;
    const double* sums = level_of(state.tree, *state.shape, level);
    const int64_t size = state.shape->padded[level] < kMostPrefetched ? state.shape->padded[level] : kMostPrefetched;
    for (int64_t e = (int64_t(threadIdx.x) - kWarp) * kLine; e < size; e += (int64_t(blockDim.x) - kWarp) * kLine)
      prefetch(sums + e);
  }

  // By the first warp.
  __device__ void draw(State& state, int64_t r) const {
    const double mass = *level_of(state.tree, *state.shape, state.shape->levels - 1);
    bool good = mass == mass;
    if (good) {
      state.begin();
      good = state.mass > 0.0;
    }
    if (good) {
      double threshold;
      int64_t drawn;
      draw_rows(&state, 1, rng.get_seed(), rng.get_offset() + uint64_t(r), out.n, replace, out.indices + r * out.n,
                out.probabilities + r * out.n, &threshold, &drawn);
      WarpDraw::store(out.threshold[r], P(threshold));
      WarpDraw::store(out.log_mass[r], state.log_mass());
      good = drawn == out.n;
    }
    if (lane_of_warp() == 0) {
      block_memory().good = good;
      block_memory().done = 1;
    }
    __syncthreads();
  }
};

template <typename T, bool Logits>
void run(const Queue& queue, const ats_tensor& attention, const ats_tensor& rng, const ats_sample_options& options,
         const ats_tensor& indices, const ats_tensor& probabilities, const ats_tensor& threshold,
         const ats_tensor& log_mass, void* workspace) {
  using Kernel = DrawRows<T, Logits>;
  using P = typename Kernel::P;
  const Kernel kernel{prepare_rows<T, Logits>(queue, attention, true, workspace), Rng(rng), options.replace != 0,
                      Drawn<P>{options.n, data_of<int64_t>(indices), data_of<P>(probabilities), data_of<P>(threshold),
                               data_of<double>(log_mass)}};
  queue.launch(kernel, blocks_for(attention.shape[0], 1), threads_for_short(kernel.builder.in.shape, Kernel::kThreads),
               kernel.shared_bytes());
}

}  // namespace

int64_t sample_workspace(const ats_tensor& attention, const ats_sample_options&) {
  const Rows<char> in = rows_of<char>(attention);
  return std::max<int64_t>(LongRows(in.rows, in.shape, true).bytes({kOp, "attention"}), sizeof(double));
}

void sample(const ats_tensor& attention, const ats_tensor& rng, const ats_sample_options& options,
            const ats_tensor& indices, const ats_tensor& probabilities, const ats_tensor& threshold,
            const ats_tensor& log_mass, void* workspace, const ats_executor* executor) {
  const DeviceGuard guard(kOp, attention.device_index);
  const Queue queue{kOp, stream_of(executor)};
  dispatch_floating(attention.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    (options.logits ? run<T, true> : run<T, false>)(queue, attention, rng, options, indices, probabilities, threshold,
                                                    log_mass, workspace);
  });
}

}  // namespace ats::cuda
