// sample: draw cells without replacement (or with) at the cost of reading the weights once. See sample_math.h.
#include <numeric>
#include <vector>

#include "cuda_ops.h"
#include "sample_gradient.h"
#include "sample_rows.h"

namespace ats {
namespace {

constexpr const char* kOp = "sample";

template <typename T, bool Logits>
void run(const ats_tensor& attention, const ats_tensor& rng, const ats_sample_options& options,
         const SampleOutputs& outputs, void* workspace, const ats_executor* executor) {
  using P = std::conditional_t<std::is_same_v<T, double>, double, float>;
  const int64_t n = options.n;
  const uint64_t seed = uint64_t(data_of<int64_t>(rng)[0]);
  const uint64_t offset = uint64_t(data_of<int64_t>(rng)[rng.strides[0]]);
  for_each_tree<T, Logits>(
      kOp, attention, n, workspace, executor, [&](int64_t r, int rows, CpuRowState<T, Logits>* states, bool* good) {
        double threshold[VectorDraw::kTogether];
        int64_t drawn[VectorDraw::kTogether];
        on_this_cpu<DrawRows<T, Logits, P>>(states, rows, seed, offset + uint64_t(r), n, options.replace != 0,
                                            data_of<int64_t>(*outputs.indices) + r * n,
                                            data_of<P>(*outputs.probabilities) + r * n, threshold, drawn);
        for (int k = 0; k < rows; ++k) {
          data_of<P>(*outputs.threshold)[r + k] = P(threshold[k]);
          data_of<double>(*outputs.log_mass)[r + k] = states[k].log_mass();
          good[k] = drawn[k] == n;
        }
      });
}

// Element (row, i) of a (B, N) view.
template <typename T>
T& at(const ats_tensor& t, int64_t row, int64_t i) {
  return data_of<T>(t)[row * t.strides[0] + i * t.strides[1]];
}

template <typename T>
void backward(const ats_tensor& grad, const ats_tensor& attention, const ats_tensor& indices,
              const ats_tensor& probabilities, const ats_tensor& log_mass_view, bool logits,
              const ats_tensor& d_attention, const ats_executor* executor) {
  using P = std::conditional_t<std::is_same_v<T, double>, double, float>;
  const int64_t rows = attention.shape[0], cells = row_cells(attention), n = indices.shape[1];
  const auto weighted_sum = [&](int64_t r) {
    double sum = 0.0;
    for (int64_t i = 0; i < n; ++i) sum += double(at<P>(grad, r, i)) * double(at<P>(probabilities, r, i));
    return sum;
  };
  const auto log_mass = [&](int64_t r) { return data_of<double>(log_mass_view)[r * log_mass_view.strides[0]]; };
  const auto input = [&](int64_t r) { return data_of<const T>(attention) + r * attention.strides[0]; };
  const auto output = [&](int64_t r) { return data_of<T>(d_attention) + r * d_attention.strides[0]; };

  const auto gradient = [&](int64_t r, double sum) { return RowGradient(sum, log_mass(r), logits); };
  const int64_t chunks = chunk_count(cells);
  parallel_for(executor, rows * chunks, grain_for(std::min(cells, kChunkCells)), [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t r = item / chunks, first = item % chunks * kChunkCells;
      const int64_t last = std::min(first + kChunkCells, cells);
      const double sum = weighted_sum(r);
      T* out = output(r);
      if (logits && sum != 0.0) {
        on_this_cpu<SoftmaxGradient<T>>(input(r), first, last, -sum, log_mass(r), out);
      } else {
        std::fill(out + first, out + last, store_clamped<T>(gradient(r, sum).everywhere(0.0)));
      }
    }
  });
  // The draws of a row, equal cells side by side: what goes to one cell is added up in double and stored once.
  std::vector<int64_t> orders(static_cast<size_t>(rows * n));
  parallel_for(executor, rows, grain_for(16 * n), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const RowGradient row = gradient(r, weighted_sum(r));
      const auto cell = [&](int64_t i) { return at<int64_t>(indices, r, i); };
      int64_t* order = orders.data() + r * n;
      std::iota(order, order + n, int64_t{0});
      std::sort(order, order + n, [&](int64_t i, int64_t j) { return cell(i) != cell(j) ? cell(i) < cell(j) : i < j; });
      for (int64_t i = 0; i < n;) {
        const int64_t k = cell(order[i]);
        double total = row.everywhere(double(load(input(r)[k])));
        for (; i < n && cell(order[i]) == k; ++i)
          row.add_draw(double(at<P>(grad, r, order[i])), double(at<P>(probabilities, r, order[i])), total);
        output(r)[k] = store_clamped<T>(total);
      }
    }
  });
}

void check_indices(const ats_tensor& indices, int64_t cells) {
  for (int64_t r = 0; r < indices.shape[0]; ++r)
    for (int64_t i = 0; i < indices.shape[1]; ++i)
      if (const int64_t cell = at<int64_t>(indices, r, i); cell < 0 || cell >= cells)
        fail("sample_backward: indices must lie in [0, %lld), got %lld", static_cast<long long>(cells),
             static_cast<long long>(cell));
}

}  // namespace
}  // namespace ats

using namespace ats;

int ats_sample_shape(const ats_tensor* attention, const ats_sample_options* options, ats_tensor* indices,
                     ats_tensor* probabilities, ats_tensor* threshold, ats_tensor* log_mass) noexcept {
  return guard([&] {
    const SampleShapes shapes = sample_shapes(kOp, attention, options);
    for (const ats_tensor* output : {indices, probabilities, threshold, log_mass})
      check_pointer({kOp, "an output"}, output);
    *indices = shapes.indices;
    *probabilities = shapes.probabilities;
    *threshold = shapes.threshold;
    *log_mass = shapes.log_mass;
  });
}

int ats_sample_workspace(const ats_tensor* attention, const ats_sample_options* options, size_t* bytes) noexcept {
  return guard([&] {
    sample_shapes(kOp, attention, options);
    check_known({kOp, "attention"}, *attention);
    check_pointer({kOp, "bytes"}, bytes);
    if (on_gpu(kOp, {{"attention", attention}})) *bytes = size_t(cuda::sample_workspace(*attention, *options));
    else *bytes = size_t(RowsLayout(attention->shape[0], row_cells(*attention)).bytes());
  });
}

int ats_sample(const ats_tensor* attention, const ats_tensor* rng, const ats_sample_options* options,
               const ats_tensor* indices, const ats_tensor* probabilities, const ats_tensor* threshold,
               const ats_tensor* log_mass, void* workspace, const ats_executor* executor) noexcept {
  return guard([&] {
    const SampleOutputs outputs{indices, probabilities, threshold, log_mass};
    check_sample(kOp, attention, outputs, sample_shapes(kOp, attention, options));
    check_tensor({kOp, "rng"}, rng, kInteger64, 1, 1, "(2,): seed, offset");
    if (rng->shape[0] != 2)
      fail("sample: rng must have the shape (2,): seed, offset; got %s", shape_text(*rng).c_str());
    const bool gpu = check_place(kOp, attention, outputs);
    if (rng->device != ATS_CPU) on_gpu(kOp, {{"attention", attention}, {"rng", rng}});
    if (attention->shape[0] == 0) return;
    check_pointer({kOp, "workspace"}, workspace);
    if (gpu)
      return cuda::sample(*attention, *rng, *options, *indices, *probabilities, *threshold, *log_mass, workspace,
                          executor);
    dispatch_floating(attention->dtype, [&](auto type) {
      using T = typename decltype(type)::type;
      if (options->logits) run<T, true>(*attention, *rng, *options, outputs, workspace, executor);
      else run<T, false>(*attention, *rng, *options, outputs, workspace, executor);
    });
  });
}

int ats_sample_backward(const ats_tensor* grad, const ats_tensor* attention, const ats_tensor* indices,
                        const ats_tensor* probabilities, const ats_tensor* log_mass, int32_t logits,
                        const ats_tensor* d_attention, const ats_executor* executor) noexcept {
  return guard([&] {
    constexpr const char* op = "sample_backward";
    check_tensor({op, "attention"}, attention, kFloating, 2, ATS_MAX_DIMS, "(B, *grid)");
    check_contiguous_from({op, "attention"}, *attention, 1);
    check_tensor({op, "indices"}, indices, kInteger64, 2, 2, "(B, N)");
    const ats_tensor drawn = describe(probability_dtype(attention->dtype), {attention->shape[0], indices->shape[1]});
    const ats_tensor cells_drawn = describe(ATS_INT64, {attention->shape[0], indices->shape[1]});
    check_output({op, "indices"}, indices, cells_drawn);
    check_output({op, "probabilities"}, probabilities, drawn);
    check_output({op, "grad"}, grad, drawn);
    check_output({op, "log_mass"}, log_mass, describe(ATS_FLOAT64, {attention->shape[0]}));
    check_output({op, "d_attention"}, d_attention, *attention);
    check_contiguous_from({op, "d_attention"}, *d_attention, 1);
    if (on_gpu(op, {{"attention", attention},
                    {"grad", grad},
                    {"indices", indices},
                    {"probabilities", probabilities},
                    {"log_mass", log_mass},
                    {"d_attention", d_attention}}))
      return cuda::sample_backward(*grad, *attention, *indices, *probabilities, *log_mass, logits != 0, *d_attention,
                                   executor);
    check_indices(*indices, row_cells(*attention));
    dispatch_floating(attention->dtype, [&](auto type) {
      using T = typename decltype(type)::type;
      backward<T>(*grad, *attention, *indices, *probabilities, *log_mass, logits != 0, *d_attention, executor);
    });
  });
}
