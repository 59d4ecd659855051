// topk on a GPU, a block a row: the mass, from the same tree as sample's, then the n largest cells (topk_select.cuh).
// Four passes over a row that fits the caches, as rows of 32,400 cells do: 128 of them take 30 us. 1 x 1e8 is
// read once by all SMs and five times by one, which has some 150 GB/s: 13 ms.
#include "cuda_ops.h"
#include "sample_rows.cuh"
#include "topk_select.cuh"

namespace ats::cuda {
namespace {

constexpr const char* kOp = "topk";

template <typename T, bool Logits>
struct TopkRows {
  static constexpr int kThreads = kSelectThreads;
  using P = std::conditional_t<std::is_same_v<T, double>, double, float>;
  using State = RowState<T, Logits, BlockDraw>;

  RowBuilder<T, Logits> builder;
  Drawn<P> out;
  Candidate* candidates;  // n a row, when they are too many for shared memory

  // Shared memory: BlockMemory, then the upper levels of a long row, and in their place what selects.
  size_t shared_bytes() const {
    return sizeof(BlockMemory) + std::max(sizeof(SelectMemory), LongRows::is_long(builder.in.shape)
                                                                    ? builder.layout.upper_bytes()
                                                                    : size_t(0));
  }

  __device__ void operator()() const {
    void* behind = &block_memory() + 1;
    SelectMemory& memory = *static_cast<SelectMemory*>(behind);
    for (int64_t r = blockIdx.x; r < builder.in.rows; r += gridDim.x) {
      __syncthreads();
      State state = builder.template build<BlockDraw>(r, static_cast<double*>(behind), nullptr);
      const double mass = *level_of(state.tree, *state.shape, state.shape->levels - 1);
      if (mass == mass) state.begin();
      __syncthreads();
      if (!(mass == mass && state.mass > 0.0)) {
        out.fail(r);
        continue;
      }
      Candidate* taken = out.n > SelectMemory::kCandidates ? candidates + r * out.n : memory.candidates;
      Selection<T>{state.row.data, state.row.cells, memory}.select(out.n, taken);
      for (int64_t i = threadIdx.x; i < out.n; i += blockDim.x) {
        const int64_t cell = taken[i].cell;
        out.indices[r * out.n + i] = cell;
        out.probabilities[r * out.n + i] = P(state.probability(state.row.weight(cell)));
      }
      if (threadIdx.x == 0) {
        out.threshold[r] = std::numeric_limits<P>::infinity();
        out.log_mass[r] = state.log_mass();
      }
    }
  }
};

template <typename T, bool Logits>
void run(const Queue& queue, const ats_tensor& attention, const ats_sample_options& options, const ats_tensor& indices,
         const ats_tensor& probabilities, const ats_tensor& threshold, const ats_tensor& log_mass, void* workspace) {
  using Kernel = TopkRows<T, Logits>;
  using P = typename Kernel::P;
  const RowBuilder<T, Logits> builder = prepare_rows<T, Logits>(queue, attention, false, workspace);
  void* behind = static_cast<char*>(workspace) + builder.layout.bytes({kOp, "attention"});
  const Kernel kernel{builder,
                      {options.n, data_of<int64_t>(indices), data_of<P>(probabilities), data_of<P>(threshold),
                       data_of<double>(log_mass)},
                      static_cast<Candidate*>(behind)};
  queue.launch(kernel, blocks_for(attention.shape[0], 1), threads_for_short(builder.in.shape, Kernel::kThreads),
               kernel.shared_bytes());
}

}  // namespace

int64_t topk_workspace(const ats_tensor& attention, const ats_sample_options& options) {
  const Rows<char> in = rows_of<char>(attention);
  const int64_t trees = LongRows(in.rows, in.shape, false).bytes({kOp, "attention"});
  const int64_t sorted = options.n > SelectMemory::kCandidates ? multiply_sizes({kOp, "n"}, in.rows, options.n) : 0;
  return std::max<int64_t>(trees + multiply_sizes({kOp, "n"}, sorted, sizeof(Candidate)), sizeof(double));
}

void topk(const ats_tensor& attention, const ats_sample_options& options, const ats_tensor& indices,
          const ats_tensor& probabilities, const ats_tensor& threshold, const ats_tensor& log_mass, void* workspace,
          const ats_executor* executor) {
  const DeviceGuard guard(kOp, attention.device_index);
  const Queue queue{kOp, stream_of(executor)};
  dispatch_floating(attention.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    (options.logits ? run<T, true> : run<T, false>)(queue, attention, options, indices, probabilities, threshold,
                                                    log_mass, workspace);
  });
}

}  // namespace ats::cuda
