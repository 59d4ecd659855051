// c, M h and M of rows of attention. A block is one warp, and takes a row at a time: it reads the attention into memory
// of its own, and checks it; then the warp walks over murthy's nodes (murthy_warp.cuh). What other estimators and rows
// need is a few operations a cell, in the order of the cells: the first thread does them (in M, a thread a column).
//
// The memory of a warp is shared memory, if it is 48 KB or less (murthy: up to 236 samples), and else of the workspace.
// Warps that share a multiprocessor hide each other's latency: for murthy and N = 64 a warp has 13 KB and 127 registers
// a thread, and 16 of them share one of an H100.
//
// murthy, B = 1024, N = 64, backward: some 7 steps of 8 nodes (17 more where a sample holds nearly all mass), 60
// operations in double a cell and node: 0.2e9, 13 us at the 17e12 a second of an H100 without fused multiply-adds,
// beside 1.5 MB read and written, 0.5 us. What it waits for is latency: a step of a row is 16 times u, one after
// the other, and products and sums of 64 terms, about 8000 cycles, 30 us in all; for N = 10 it is about 10 us.
#include "estimators.cuh"

#include "murthy_warp.cuh"

namespace ats::cuda {
namespace {

constexpr int64_t kMostOfARow = 48 * 1024;
constexpr int64_t kRowsInScratch = 512, kMatricesInScratch = 128;  // taken at once

// What a warp keeps of a row of n samples, in doubles: a, da, and the sums of murthy's walk or weights.
constexpr int64_t kGradientDoubles = 2 + 24;
int64_t row_doubles(int estimator, bool gradient, int64_t n) {
  return n * (2 + (estimator != ATS_MURTHY ? 1 : gradient ? 24 : 16));
}
// For M: a, c, weights, and then the sums of murthy's walk or two vectors of every thread.
int64_t matrix_doubles(int64_t n) { return n * (3 + 2 * kWarp + n); }

// Rows of attention, and whose memory a block has: `scratch`, or shared memory where it is NULL.
template <typename T>
struct Rows {
  static constexpr int kThreads = kWarp;

  int estimator;
  MurthySize size;
  int64_t batch;
  const T* attention;
  int64_t row_stride, sample_stride;
  const T* threshold;
  int64_t threshold_stride;
  const T* weights;
  int64_t weight_stride;
  double* scratch;
  int64_t doubles;

  Rows(const Estimate& in, double* memory, int64_t doubles_of_a_row)
      : estimator(in.estimator),
        size(in.attention.shape[1]),
        batch(in.attention.shape[0]),
        attention(data_of<const T>(in.attention)),
        row_stride(in.attention.strides[0]),
        sample_stride(in.attention.strides[1]),
        threshold(in.threshold ? data_of<const T>(*in.threshold) : nullptr),
        threshold_stride(in.threshold ? in.threshold->strides[0] : 0),
        weights(in.weights ? data_of<const T>(*in.weights) : nullptr),
        weight_stride(in.weights ? in.weights->strides[0] : 0),
        scratch(memory),
        doubles(doubles_of_a_row) {}

  // The row, read into `a` and `w`, of n doubles each, and whether it is one that the estimator takes.
  __device__ bool read(const WarpNodes& nodes, int64_t b, double* a, double* w, EstimatorRow& row) const {
    const int64_t n = size.n;
    nodes.meet();  // nobody reads the row before
    const T* const from = attention + b * row_stride;
    for (int64_t i = nodes.lane; i < n; i += kWarp) a[i] = double(from[i * sample_stride]);
    if (weights != nullptr)
      for (int64_t i = nodes.lane; i < n; i += kWarp) w[i] = double(weights[i * weight_stride]);
    nodes.meet();
    row = {a, n, threshold ? double(threshold[b * threshold_stride]) : 0.0, weights ? w : nullptr};
    RowCheck check{estimator};
    for (int64_t i = 0; i < n; ++i) check.take(a[i]);
    return check.get() && (threshold == nullptr || good_threshold(row.threshold));
  }

  __device__ double* memory() const { return scratch ? scratch + blockIdx.x * doubles : shared_memory<double>(); }
};

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

template <typename T>
struct Coefficients : Rows<T> {
  double* c;

  __device__ void operator()() const {
    const WarpNodes nodes{};
    const int64_t n = this->size.n;
    double* const a = this->memory();
    double* const walk = a + 2 * n;
    for (int64_t b = blockIdx.x; b < this->batch; b += gridDim.x) {
      EstimatorRow row;
      const bool good = this->read(nodes, b, a, walk, row);
      const double rest = good ? murthy_rest(this->estimator, row) : 0.0;
      double* const to = c + b * n;
      if (!good) {
        for (int64_t i = nodes.lane; i < n; i += kWarp) to[i] = kNan;
      } else if (rest > 0.0) {
        murthy_coefficients(nodes, a, this->size, rest, walk, to);
      } else if (nodes.lane == 0) {
        coefficients(this->estimator, row, to);
      }
    }
  }
};

template <typename T>
struct Gradient : Rows<T> {
  double* c;
  const double* h;
  T* d_attention;
  int64_t d_row, d_sample;

  __device__ void operator()() const {
    const WarpNodes nodes{};
    const int64_t n = this->size.n;
    double* const a = this->memory();
    double* const da = a + n;
    double* const walk = a + 2 * n;
    for (int64_t b = blockIdx.x; b < this->batch; b += gridDim.x) {
      EstimatorRow row;
      const bool good = this->read(nodes, b, a, walk, row);
      const double rest = good ? murthy_rest(this->estimator, row) : 0.0;
      double* const to = c + b * n;
      if (!good) {
        for (int64_t i = nodes.lane; i < n; i += kWarp) to[i] = da[i] = kNan;
      } else if (rest > 0.0) {
        murthy_gradient(nodes, a, this->size, rest, h + b * n, walk, to, da);
      } else if (nodes.lane == 0) {
        coefficients(this->estimator, row, to);
        attention_gradient(this->estimator, row, to, h + b * n, da);
      }
      nodes.meet();
      T* const out = d_attention + b * d_row;
      for (int64_t i = nodes.lane; i < n; i += kWarp) out[i * d_sample] = store_clamped<T>(da[i]);
    }
  }
};

template <typename T>
struct Arrays : Rows<T> {
  T *c, *m;

  __device__ void operator()() const {
    const WarpNodes nodes{};
    const int64_t n = this->size.n;
    double* const a = this->memory();
    double* const coefficient = a + n;
    double* const walk = a + 3 * n;
    for (int64_t b = blockIdx.x; b < this->batch; b += gridDim.x) {
      EstimatorRow row;
      const bool good = this->read(nodes, b, a, a + 2 * n, row);
      const double rest = good ? murthy_rest(this->estimator, row) : 0.0;
      T* const matrix = m + b * n * n;
      if (!good) {
        for (int64_t i = nodes.lane; i < n; i += kWarp) coefficient[i] = kNan;
        for (int64_t k = nodes.lane; k < n * n; k += kWarp) matrix[k] = T(kNan);
      } else if (rest > 0.0) {
        murthy_matrix(nodes, a, this->size, rest, walk, coefficient, matrix);
      } else {
        if (nodes.lane == 0) coefficients(this->estimator, row, coefficient);
        nodes.meet();
        double* const unit = walk + 2 * n * nodes.lane;
        attention_matrix(this->estimator, row, coefficient, unit, unit + n, matrix, nodes.lane, kWarp);
      }
      nodes.meet();
      for (int64_t i = nodes.lane; i < n; i += kWarp) c[b * n + i] = store_clamped<T>(coefficient[i]);
    }
  }
};

// launch(memory, blocks, bytes of shared memory) for rows that take `doubles` each.
template <typename Launch>
void launch_rows(int64_t batch, int64_t doubles, void* scratch, const Launch& launch) {
  const int64_t bytes = doubles * int64_t(sizeof(double));
  if (bytes <= kMostOfARow) launch(nullptr, blocks_for(batch, 1), size_t(bytes));
  else launch(static_cast<double*>(scratch), std::min(batch, kRowsInScratch), size_t{0});
}

}  // namespace

int64_t estimator_scratch(Where where, const ats_tensor& attention) {
  const int64_t batch = attention.shape[0];
  const int64_t bytes = multiply_sizes(where, attention.shape[1], kGradientDoubles * 8);
  return bytes <= kMostOfARow ? 0 : multiply_sizes(where, bytes, std::min(batch, kRowsInScratch));
}

void fill_coefficients(const char* op, const Estimate& in, double* c, void* scratch, const ats_executor* executor) {
  const int64_t batch = in.attention.shape[0], doubles = row_doubles(in.estimator, false, in.attention.shape[1]);
  const Queue queue{op, stream_of(executor)};
  launch_rows(batch, doubles, scratch, [&](double* memory, int64_t blocks, size_t shared) {
    dispatch_single_or_double(in.attention.dtype, [&](auto type) {
      using T = typename decltype(type)::type;
      queue.launch(Coefficients<T>{{in, memory, doubles}, c}, blocks, kWarp, shared);
    });
  });
}

void fill_gradient(const char* op, const Estimate& in, const double* h, double* c, const ats_tensor& d_attention,
                   void* scratch, const ats_executor* executor) {
  const int64_t batch = in.attention.shape[0], doubles = row_doubles(in.estimator, true, in.attention.shape[1]);
  const Queue queue{op, stream_of(executor)};
  launch_rows(batch, doubles, scratch, [&](double* memory, int64_t blocks, size_t shared) {
    dispatch_single_or_double(in.attention.dtype, [&](auto type) {
      using T = typename decltype(type)::type;
      queue.launch(
          Gradient<T>{
              {in, memory, doubles}, c, h, data_of<T>(d_attention), d_attention.strides[0], d_attention.strides[1]},
          blocks, kWarp, shared);
    });
  });
}

int64_t estimator_arrays_workspace(Where where, const ats_tensor& attention) {
  const int64_t batch = attention.shape[0], n = attention.shape[1];
  multiply_sizes(where, n, 1000 + n);  // more than matrix_doubles
  return multiply_sizes(where, matrix_doubles(n), 8 * std::min(batch, kMatricesInScratch));
}

void estimator_arrays(const Estimate& in, const ats_tensor& c, const ats_tensor& m, void* workspace,
                      const ats_executor* executor) {
  constexpr const char* op = "estimator_arrays";
  const DeviceGuard guard(op, in.attention.device_index);
  const Queue queue{op, stream_of(executor)};
  const int64_t batch = in.attention.shape[0], doubles = matrix_doubles(in.attention.shape[1]);
  dispatch_single_or_double(in.attention.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    queue.launch(Arrays<T>{{in, static_cast<double*>(workspace), doubles}, data_of<T>(c), data_of<T>(m)},
                 std::min(batch, kMatricesInScratch));
  });
}

}  // namespace ats::cuda
