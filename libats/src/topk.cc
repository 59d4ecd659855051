// topk: the n largest cells of every row, in one more pass over the cells after the tree has given the mass.
#include "cuda_ops.h"
#include "sample_rows.h"

namespace ats {
namespace {

constexpr const char* kOp = "topk";

template <typename P>
struct Candidate {
  P value;
  int64_t cell;
  // Larger value first, ties to the lower cell. As a heap's order, the worst candidate is at the front.
  friend bool operator<(const Candidate& a, const Candidate& b) {
    return a.value > b.value || (a.value == b.value && a.cell < b.cell);
  }
};

// The n best of `cells` values in order, kept in `best`.
template <typename T, typename P>
void select(const T* data, int64_t cells, int64_t n, Candidate<P>* best) {
  for (int64_t cell = 0; cell < n; ++cell) best[cell] = {P(load(data[cell])), cell};
  std::make_heap(best, best + n);
  for (int64_t first = n; first < cells; first += kFan) {
    const int64_t last = std::min(first + kFan, cells);
    // Most groups hold nothing better than the worst so far; a later cell loses ties.
    bool better = false;
    const P worst = best[0].value;
    for (int64_t cell = first; cell < last; ++cell) better |= P(load(data[cell])) > worst;
    if (!better) continue;
    for (int64_t cell = first; cell < last; ++cell) {
      const P value = P(load(data[cell]));
      if (!(value > best[0].value)) continue;
      std::pop_heap(best, best + n);
      best[n - 1] = {value, cell};
      std::push_heap(best, best + n);
    }
  }
  std::sort_heap(best, best + n);
}

template <typename T, bool Logits>
void run(const ats_tensor& attention, int64_t n, const SampleOutputs& outputs, void* workspace,
         const ats_executor* executor) {
  using P = std::conditional_t<std::is_same_v<T, double>, double, float>;
  const RowsLayout layout(attention.shape[0], row_cells(attention));
  char* candidates = static_cast<char*>(workspace) + layout.bytes();
  const auto take_best = [&](int64_t r, const CpuRowState<T, Logits>& state) {
    Candidate<P>* best = reinterpret_cast<Candidate<P>*>(candidates) + r * n;
    select(state.row.data, state.row.cells, n, best);
    for (int64_t i = 0; i < n; ++i) {
      data_of<int64_t>(*outputs.indices)[r * n + i] = best[i].cell;
      data_of<P>(*outputs.probabilities)[r * n + i] = P(state.probability(state.row.weight(best[i].cell)));
    }
    data_of<P>(*outputs.threshold)[r] = std::numeric_limits<P>::infinity();
    data_of<double>(*outputs.log_mass)[r] = state.log_mass();
    return true;
  };
  for_each_tree<T, Logits>(kOp, attention, 1, workspace, executor,
                           [&](int64_t first, int rows, const CpuRowState<T, Logits>* states, bool* good) {
                             for (int k = 0; k < rows; ++k) good[k] = take_best(first + k, states[k]);
                           });
}

SampleShapes shapes(const ats_tensor* attention, const ats_sample_options* options) {
  const SampleShapes result = sample_shapes(kOp, attention, options);
  if (options->replace) fail("topk: options.replace must be 0");
  return result;
}

}  // namespace
}  // namespace ats

using namespace ats;

int ats_topk_shape(const ats_tensor* attention, const ats_sample_options* options, ats_tensor* indices,
                   ats_tensor* probabilities, ats_tensor* threshold, ats_tensor* log_mass) noexcept {
  return guard([&] {
    const SampleShapes result = shapes(attention, options);
    for (const ats_tensor* output : {indices, probabilities, threshold, log_mass})
      check_pointer({kOp, "an output"}, output);
    *indices = result.indices;
    *probabilities = result.probabilities;
    *threshold = result.threshold;
    *log_mass = result.log_mass;
  });
}

int ats_topk_workspace(const ats_tensor* attention, const ats_sample_options* options, size_t* bytes) noexcept {
  return guard([&] {
    shapes(attention, options);
    check_known({kOp, "attention"}, *attention);
    check_pointer({kOp, "bytes"}, bytes);
    if (on_gpu(kOp, {{"attention", attention}})) {
      *bytes = size_t(cuda::topk_workspace(*attention, *options));
      return;
    }
    const RowsLayout layout(attention->shape[0], row_cells(*attention));
    const Where where{kOp, "n"};
    *bytes = size_t(layout.bytes()) +
             size_t(multiply_sizes(where, multiply_sizes(where, layout.rows, options->n), sizeof(Candidate<double>)));
  });
}

int ats_topk(const ats_tensor* attention, const ats_sample_options* options, const ats_tensor* indices,
             const ats_tensor* probabilities, const ats_tensor* threshold, const ats_tensor* log_mass, void* workspace,
             const ats_executor* executor) noexcept {
  return guard([&] {
    const SampleOutputs outputs{indices, probabilities, threshold, log_mass};
    check_sample(kOp, attention, outputs, shapes(attention, options));
    const bool gpu = check_place(kOp, attention, outputs);
    if (attention->shape[0] == 0) return;
    check_pointer({kOp, "workspace"}, workspace);
    if (gpu)
      return cuda::topk(*attention, *options, *indices, *probabilities, *threshold, *log_mass, workspace, executor);
    dispatch_floating(attention->dtype, [&](auto type) {
      using T = typename decltype(type)::type;
      if (options->logits) run<T, true>(*attention, options->n, outputs, workspace, executor);
      else run<T, false>(*attention, options->n, outputs, workspace, executor);
    });
  });
}
