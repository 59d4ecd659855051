// topk on a GPU: the mass, from the same tree as sample's, then the n largest cells (topk_select.cuh), a block a row. Of
// long rows, blocks first take the n largest of every part, and only those are left for the block of the row.
//
// A block passes five times over its cells, of which four find them in the caches. 128 rows of 32,400 float32 cells are
// 17 MB, 5 us, and 5 * 63 cells a thread, 20 us. 1 x 1e8, n = 100: 400 MB read twice from memory, 0.25 ms, and
// 150,000 candidates five times by one block, 0.1 ms.
#include "cuda_ops.h"
#include "sample_rows.cuh"
#include "topk_select.cuh"

namespace ats::cuda {
namespace {

constexpr const char* kOp = "topk";

template <typename T>
constexpr int kKeyBits = std::is_same_v<T, double> ? 64 : 32;

// How a long row is cut for a grid of blocks; shorter ones, and those of which much is taken, are not.
struct Parts {
  int64_t size = 0, count = 0;

  Parts(const TreeShape& shape, int64_t n) {
    constexpr int64_t kSmallest = int64_t(1) << 16, kTimesTaken = 16;
    if (!LongRows::is_long(shape) || n > shape.cells / (2 * kTimesTaken)) return;
    size = std::max(kSmallest, kTimesTaken * n);
    count = (shape.cells + size - 1) / size;
    if (count < 2) count = 0;
  }
  // n of every part, but for what the last one may lack.
  ATS_HD int64_t candidates(const TreeShape& shape, int64_t n) const {
    if (count == 0) return 0;
    const int64_t rest = shape.cells - (count - 1) * size;
    return (count - 1) * n + (rest < n ? rest : n);
  }
};

template <typename T>
struct TopkParts {
  static constexpr int kThreads = kSelectThreads;
  Rows<T> in;
  Parts parts;
  int64_t n;
  Candidate* candidates;

  __device__ void operator()() const {
    const int64_t kept = parts.candidates(in.shape, n);
    for (int64_t item = blockIdx.x; item < in.rows * parts.count; item += gridDim.x) {
      const int64_t r = item / parts.count, part = item % parts.count, first = part * parts.size;
      const int64_t left = in.shape.cells - first, size = left < parts.size ? left : parts.size;
      const CellSource<T> source{in.data + r * in.stride, first, size};
      __syncthreads();
      Selection<CellSource<T>>{source, in.shape.cells, kKeyBits<T>, *shared_memory<SelectMemory>()}.select(
          n < size ? n : size, candidates + r * kept + part * n);
    }
  }
};

template <typename T, bool Logits>
struct TopkRows {
  static constexpr int kThreads = kSelectThreads;
  using P = std::conditional_t<std::is_same_v<T, double>, double, float>;
  using State = RowState<T, Logits, BlockDraw>;

  RowBuilder<T, Logits> builder;
  Drawn<P> out;
  Parts parts;
  const Candidate* candidates;  // of the parts of the rows
  Candidate* sorted;            // n a row, when they are too many for shared memory

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
      Candidate* taken = out.n > SelectMemory::kCandidates ? sorted + r * out.n : memory.candidates;
      const int64_t cells = state.row.cells, kept = parts.candidates(builder.in.shape, out.n);
      if (kept > 0) {
        const CandidateSource source{candidates + r * kept, kept};
        Selection<CandidateSource>{source, cells, kKeyBits<T>, memory}.select(out.n, taken);
      } else {
        const CellSource<T> source{state.row.data, 0, cells};
        Selection<CellSource<T>>{source, cells, kKeyBits<T>, memory}.select(out.n, taken);
      }
      sort(out.n, taken);
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

// The trees of long rows, the candidates of their parts, and what is too much to be sorted in shared memory.
struct Workspace {
  Parts parts;
  int64_t trees, candidates, sorted;

  Workspace(const ats_tensor& attention, int64_t n) : Workspace(rows_of<char>(attention), n) {}
  int64_t bytes() const {
    constexpr Where where{kOp, "n"};
    const int64_t taken = multiply_sizes(where, std::max(candidates, sorted), sizeof(Candidate));
    multiply_sizes(where, std::max(trees, taken), 3);  // so that the sum is a number
    return trees + (candidates + sorted) * int64_t(sizeof(Candidate));
  }

 private:
  Workspace(const Rows<char>& in, int64_t n)
      : parts(in.shape, n),
        trees(LongRows(in.rows, in.shape, false).bytes({kOp, "attention"})),
        candidates(multiply_sizes({kOp, "n"}, in.rows, parts.candidates(in.shape, n))),
        sorted(n > SelectMemory::kCandidates ? multiply_sizes({kOp, "n"}, in.rows, n) : 0) {}
};

template <typename T, bool Logits>
void run(const Queue& queue, const ats_tensor& attention, const ats_sample_options& options, const ats_tensor& indices,
         const ats_tensor& probabilities, const ats_tensor& threshold, const ats_tensor& log_mass, void* workspace) {
  using Kernel = TopkRows<T, Logits>;
  using P = typename Kernel::P;
  const RowBuilder<T, Logits> builder = prepare_rows<T, Logits>(queue, attention, false, workspace);
  const Rows<T>& in = builder.in;
  const Workspace layout(attention, options.n);
  Candidate* candidates = reinterpret_cast<Candidate*>(static_cast<char*>(workspace) + layout.trees);
  Candidate* sorted = candidates + layout.candidates;
  if (layout.parts.count > 0)
    queue.launch(TopkParts<T>{in, layout.parts, options.n, candidates}, blocks_for(in.rows * layout.parts.count, 1),
                 TopkParts<T>::kThreads, sizeof(SelectMemory));
  const Kernel kernel{builder,
                      {options.n, data_of<int64_t>(indices), data_of<P>(probabilities), data_of<P>(threshold),
                       data_of<double>(log_mass)},
                      layout.parts,
                      candidates,
                      sorted};
  queue.launch(kernel, blocks_for(attention.shape[0], 1), threads_for_short(builder.in.shape, Kernel::kThreads),
               kernel.shared_bytes());
}

}  // namespace

int64_t topk_workspace(const ats_tensor& attention, const ats_sample_options& options) {
  return std::max<int64_t>(Workspace(attention, options.n).bytes(), sizeof(double));
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
