// sample_backward on a GPU: a pass that writes the gradient that every cell has, then a thread a draw for the cells that
// were drawn. 1 x 1e8 weights of float32: 400 MB written, 0.12 ms; logits: as much read, and 48 operations in double a
// cell, 0.33 ms. The sum over the draws of a row is a chain of n additions, which every block has to wait for: 8 cycles
// each, 5 us for n = 1000.
#include "cuda_launch.cuh"
#include "cuda_ops.h"
#include "sample_gradient.h"

namespace ats::cuda {
namespace {

constexpr const char* kOp = "sample_backward";

// Element (row, i) of a (B, N) view.
template <typename T>
struct Matrix {
  const T* data;
  int64_t row_stride, stride;

  explicit Matrix(const ats_tensor& t) : data(data_of<const T>(t)), row_stride(t.strides[0]), stride(t.strides[1]) {}
  __device__ T operator()(int64_t row, int64_t i) const { return data[row * row_stride + i * stride]; }
};

template <typename T, bool Logits>
struct Arguments {
  using P = std::conditional_t<std::is_same_v<T, double>, double, float>;
  int64_t rows, cells, n;
  Matrix<P> grad, probabilities;
  Matrix<int64_t> indices;
  const double* log_mass;
  int64_t mass_stride;
  const T* attention;
  int64_t row_stride;
  T* d_attention;
  int64_t d_row_stride;

  __device__ bool known(int64_t cell) const { return cell >= 0 && cell < cells; }

  // By all threads of a block; the first warp adds up, in the order of the draws.
  __device__ RowGradient row(int64_t r) const {
    double* shared = shared_memory<double>();
    __syncthreads();
    if (threadIdx.x < unsigned(kWarp)) {
      double sum = 0.0;
      for (int64_t first = 0; first < n; first += kWarp) {
        const int64_t i = first + lane_of_warp();
        const double product = i < n && known(indices(r, i)) ? double(grad(r, i)) * double(probabilities(r, i)) : 0.0;
#pragma unroll
        for (int j = 0; j < kWarp; ++j) sum += __shfl_sync(kWholeWarp, product, j);
      }
      if (lane_of_warp() == 0) *shared = sum;
    }
    __syncthreads();
    return RowGradient(*shared, log_mass[r * mass_stride], Logits);
  }
};

// A block a piece of a row.
template <typename T, bool Logits>
struct Everywhere {
  static constexpr int kThreads = 256;
  static constexpr int64_t kAhead = 4;  // cells of a thread on their way at once
  Arguments<T, Logits> in;
  int64_t piece, pieces;

  __device__ void operator()() const {
    for (int64_t item = blockIdx.x; item < in.rows * pieces; item += gridDim.x) {
      const int64_t r = item / pieces, begin = item % pieces * piece;
      const int64_t end = begin + piece < in.cells ? begin + piece : in.cells;
      const RowGradient row = in.row(r);
      const T* x = in.attention + r * in.row_stride;
      T* out = in.d_attention + r * in.d_row_stride;
      if (Logits && row.sum != 0.0) {
        for (int64_t first = begin + threadIdx.x; first < end; first += kAhead * kThreads) {
          double logit[kAhead];
#pragma unroll
          for (int j = 0; j < kAhead; ++j)
            logit[j] = first + j * kThreads < end ? double(load(x[first + j * kThreads])) : 0.0;
#pragma unroll
          for (int j = 0; j < kAhead; ++j)
            if (first + j * kThreads < end) out[first + j * kThreads] = store_clamped<T>(row.everywhere(logit[j]));
        }
      } else {
        const T value = store_clamped<T>(row.everywhere(0.0));
        for (int64_t cell = begin + threadIdx.x; cell < end; cell += kThreads) out[cell] = value;
      }
    }
  }
};

// A thread a draw: the first draw of a cell adds the others of it up.
template <typename T, bool Logits>
struct OfDraws {
  static constexpr int kThreads = 128;
  static constexpr int kAhead = 8;
  Arguments<T, Logits> in;
  int64_t pieces;

  __device__ void operator()() const {
    for (int64_t item = blockIdx.x; item < in.rows * pieces; item += gridDim.x) {
      const int64_t r = item / pieces, i = item % pieces * kThreads + threadIdx.x;
      const RowGradient row = in.row(r);
      const int64_t cell = i < in.n ? in.indices(r, i) : -1;
      const bool known = in.known(cell);
      bool first = known;
      double total = known ? row.everywhere(double(load(in.attention[r * in.row_stride + cell]))) : 0.0;
      for (int64_t begin = 0; begin < in.n; begin += kAhead) {
        int64_t other[kAhead];
#pragma unroll
        for (int j = 0; j < kAhead; ++j) other[j] = begin + j < in.n ? in.indices(r, begin + j) : -1;
#pragma unroll
        for (int j = 0; j < kAhead; ++j) {
          if (other[j] != cell || !known) continue;
          first &= begin + j >= i;
          if (first) row.add_draw(double(in.grad(r, begin + j)), double(in.probabilities(r, begin + j)), total);
        }
      }
      if (!first) continue;
      in.d_attention[r * in.d_row_stride + cell] = store_clamped<T>(total);
    }
  }
};

template <typename T, bool Logits>
void run(const Queue& queue, const Arguments<T, Logits>& in) {
  // At most some thousands of pieces, for each waits for the sum over its row's draws.
  constexpr int64_t kSmallest = 8192, kMostPieces = 4096;
  const int64_t piece = std::max(kSmallest, in.cells / kMostPieces + 1);
  const int64_t pieces = in.cells / piece + (in.cells % piece != 0);
  using Map = Everywhere<T, Logits>;
  queue.launch(Map{in, piece, pieces}, blocks_for(in.rows * pieces, 1), Map::kThreads, sizeof(double));
  using Draws = OfDraws<T, Logits>;
  const int64_t tiles = (in.n + Draws::kThreads - 1) / Draws::kThreads;
  queue.launch(Draws{in, tiles}, blocks_for(in.rows * tiles, 1), Draws::kThreads, sizeof(double));
}

}  // namespace

void sample_backward(const ats_tensor& grad, const ats_tensor& attention, const ats_tensor& indices,
                     const ats_tensor& probabilities, const ats_tensor& log_mass, bool logits,
                     const ats_tensor& d_attention, const ats_executor* executor) {
  if (element_count(attention) == 0) return;
  const DeviceGuard guard(kOp, attention.device_index);
  const Queue queue{kOp, stream_of(executor)};
  const auto go = [&](auto type, auto of_logits) {
    using T = typename decltype(type)::type;
    constexpr bool kLogits = decltype(of_logits)::value;
    using P = typename Arguments<T, kLogits>::P;
    const int64_t rows = attention.shape[0];
    run(queue, Arguments<T, kLogits>{rows, element_count(attention) / rows, indices.shape[1], Matrix<P>(grad),
                                     Matrix<P>(probabilities), Matrix<int64_t>(indices),
                                     data_of<const double>(log_mass), log_mass.strides[0], data_of<const T>(attention),
                                     attention.strides[0], data_of<T>(d_attention), d_attention.strides[0]});
  };
  dispatch_floating(attention.dtype, [&](auto type) {
    if (logits) go(type, std::true_type());
    else go(type, std::false_type());
  });
}

}  // namespace ats::cuda
