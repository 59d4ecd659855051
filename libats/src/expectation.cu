// expectation on a GPU: c, h and M h in double, a warp a row (estimators.cu), and around it passes over the features.
//
//   forward   c (1 launch), then sum_i c_i f_i: a thread takes some neighbouring features of a row, and their sums in
//             the order of the samples. One pass over the features.
//   backward  h = <f_i, g>: some threads take a pair of samples, whose sums are lanes as on a CPU, each thread some of
//             them. One pass over the features. Then c and M h (1 launch), and d_features = c g, one pass of writing.
//
// A thread reads and writes 16 bytes at a time where all rows begin at multiples of 16, else a feature at a time;
// neighbouring threads read neighbouring bytes.
//
// B = 1024, N = 64, 2048 floats, on an H100: forward reads 537 MB: 160 us at 3.35 TB/s; 134e6 multiplications and
// additions are 8 us. h reads as much, 160 us; two of its four operations a feature, conversions to double, take the
// longest: 1.5 * 134e6 at 16 a cycle and multiprocessor, 56 us. d_features writes 537 MB, 160 us. For B = 128, N = 10,
// 512 floats (2.6 MB, 0.8 us; all of it stays in the second cache) every pass is the latency of some rounds of loads.
#include "cuda_launch.cuh"
#include "cuda_ops.h"
#include "estimators.cuh"
#include "half.h"

namespace ats::cuda {
namespace {

template <typename F>
using Scalar = std::conditional_t<std::is_same_v<F, double>, double, float>;

// Neighbouring features, read and written at once.
template <typename F, int kPer>
struct alignas(sizeof(F) * kPer) Pack {
  F x[kPer];
};
template <int kPer, typename F>
__device__ inline Pack<F, kPer> load_pack(const F* from) {
  return *reinterpret_cast<const Pack<F, kPer>*>(from);
}
// nvcc takes a structure apart into single stores; an intrinsic it leaves whole. Nobody here reads it again.
template <int kPer, typename F>
__device__ inline void store_pack(F* to, const Pack<F, kPer>& pack) {
  if constexpr (kPer == 1) *to = pack.x[0];
  else __stcs(reinterpret_cast<uint4*>(to), bit_cast<uint4>(pack));
}

// expected = sum_i c_i f_i: a thread a pack of a row.
template <typename F, int kPer>
struct WeightedSums {
  static constexpr int kThreads = 128;

  int64_t batch, n, packs;
  const double* c;
  const F* f;
  int64_t f_row, f_sample;
  F* expected;
  int64_t expected_row;

  __device__ void operator()() const {
    for (int64_t item = thread_number(); item < batch * packs; item += grid_stride()) {
      const int64_t b = item / packs, k = item % packs * kPer;
      const F* const from = f + b * f_row + k;
      Scalar<F> sums[kPer] = {};
#pragma unroll 4
      for (int64_t i = 0; i < n; ++i) {
        const auto weight = Scalar<F>(c[b * n + i]);
        const Pack<F, kPer> pack = load_pack<kPer>(from + i * f_sample);
        for (int j = 0; j < kPer; ++j) sums[j] += weight * load(pack.x[j]);
      }
      Pack<F, kPer> out;
      for (int j = 0; j < kPer; ++j) out.x[j] = store<F>(sums[j]);
      store_pack(expected + b * expected_row + k, out);
    }
  }
};

// h_i = <f_i, g>. The sum of a sample is kept in 16 lanes (8 for double), feature k in lane k % 16, as DotProducts does
// (expectation_features.h). Each of the neighbouring threads of a group has kPer of the lanes, of kSamples samples,
// which share what is read of g.
template <typename F, int kPer>
struct Dots {
  static constexpr int kThreads = 128, kSamples = 2;
  static constexpr int kLanes = int(64 / sizeof(Scalar<F>)), kGroup = kLanes / kPer, kGroups = kThreads / kGroup;

  int64_t batch, n, channels;
  const F* f;
  int64_t f_row, f_sample;
  const F* g;
  int64_t g_row;
  double* h;

  // ((0 + 4) + (2 + 6)) + ((1 + 5) + (3 + 7)), after 8 + l has been added to l
  __device__ static double sum(double* lanes) {
    for (int distance = kLanes / 2; distance >= kPer; distance /= 2)
      for (int j = 0; j < kPer; ++j) lanes[j] += __shfl_xor_sync(kWholeWarp, lanes[j], distance / kPer);
    for (int distance = kPer / 2; distance > 0; distance /= 2)
      for (int j = 0; j < distance; ++j) lanes[j] += lanes[j + distance];
    return lanes[0];
  }

  __device__ void operator()() const {
    const int64_t pairs = (n + kSamples - 1) / kSamples, items = batch * pairs;
    const int in_group = int(threadIdx.x) % kGroup;
    // All threads of a warp go round equally often, since all of them meet in sum().
    for (int64_t first = int64_t(blockIdx.x) * kGroups; first < items; first += int64_t(gridDim.x) * kGroups) {
      const int64_t item = first + threadIdx.x / kGroup;
      const int64_t b = item / pairs, i = item % pairs * kSamples;
      double sums[kSamples][kPer] = {};
      if (item < items) {
        const F* const shared = g + b * g_row;
        const F* samples[kSamples];
        for (int s = 0; s < kSamples; ++s) samples[s] = f + b * f_row + (i + s < n ? i + s : i) * f_sample;
#pragma unroll 4
        for (int64_t k = in_group * kPer; k < channels; k += kLanes) {
          const Pack<F, kPer> of_g = load_pack<kPer>(shared + k);
          for (int s = 0; s < kSamples; ++s) {
            const Pack<F, kPer> of_f = load_pack<kPer>(samples[s] + k);
            for (int j = 0; j < kPer; ++j) sums[s][j] += double(load(of_f.x[j])) * double(load(of_g.x[j]));
          }
        }
      }
      for (int s = 0; s < kSamples; ++s) {
        const double total = sum(sums[s]);
        if (item < items && in_group == 0 && i + s < n) h[b * n + i + s] = total;
      }
    }
  }
};

// d_features_i = c_i g: a thread a pack of g and kSamples samples.
template <typename F, int kPer>
struct Scaled {
  static constexpr int kThreads = 128, kSamples = 8;

  int64_t batch, n, packs;
  const double* c;
  const F* g;
  int64_t g_row;
  F* d_features;
  int64_t d_row, d_sample;

  __device__ void operator()() const {
    const int64_t parts = (n + kSamples - 1) / kSamples;
    for (int64_t item = thread_number(); item < batch * parts * packs; item += grid_stride()) {
      const int64_t k = item % packs * kPer, row_part = item / packs;
      const int64_t b = row_part / parts, first = row_part % parts * kSamples;
      const Pack<F, kPer> pack = load_pack<kPer>(g + b * g_row + k);
      Scalar<F> x[kPer];
      for (int j = 0; j < kPer; ++j) x[j] = load(pack.x[j]);
      F* const to = d_features + b * d_row + k;
      Scalar<F> weights[kSamples];  // read before anything is written, all at once
      for (int s = 0; s < kSamples; ++s) weights[s] = Scalar<F>(c[b * n + (first + s < n ? first + s : first)]);
      for (int s = 0; s < kSamples; ++s) {
        Pack<F, kPer> out;
        for (int j = 0; j < kPer; ++j) out.x[j] = store<F>(weights[s] * x[j]);
        if (first + s < n) store_pack(to + (first + s) * d_sample, out);
      }
    }
  }
};

int64_t trailing(const ats_tensor& features) {
  int64_t count = 1;
  for (int axis = 2; axis < features.ndim; ++axis) count *= features.shape[axis];
  return count;
}

// Whether all rows of a tensor, which differ in the first `axes` axes, begin at multiples of 16 bytes.
bool aligned(const ats_tensor& t, int axes) {
  bool all = reinterpret_cast<uintptr_t>(t.data) % 16 == 0;
  for (int axis = 0; axis < axes; ++axis) all &= t.shape[axis] <= 1 || t.strides[axis] * item_size(t.dtype) % 16 == 0;
  return all;
}

// body(feature type, features at a time)
template <typename Body>
void dispatch_packs(int dtype, bool wide, const Body& body) {
  dispatch_floating(dtype, [&](auto type) {
    using F = typename decltype(type)::type;
    if (wide) body(type, std::integral_constant<int, int(16 / sizeof(F))>{});
    else body(type, std::integral_constant<int, 1>{});
  });
}

// The workspace: c and h, (B, N) each, and the scratch of estimators.cu.
struct Workspace {
  double *c, *h;
  void* scratch;
  Workspace(const ats_tensor& attention, void* workspace) {
    const int64_t count = attention.shape[0] * attention.shape[1];
    c = static_cast<double*>(workspace);
    h = c + count;
    scratch = h + count;
  }
};

}  // namespace

int64_t expectation_workspace(Where where, const ats_tensor& attention) {
  const int64_t count = multiply_sizes(where, attention.shape[0], attention.shape[1]);
  // Halves of what can be counted.
  const int64_t rows = multiply_sizes(where, count, 2 * 16), scratch = estimator_scratch(where, attention);
  return rows / 2 + multiply_sizes(where, scratch, 2) / 2;
}

void expectation(const Estimate& in, const ats_tensor& features, const ats_tensor& expected, void* workspace,
                 const ats_executor* executor) {
  constexpr const char* op = "expectation";
  const int64_t batch = in.attention.shape[0], n = in.attention.shape[1], channels = trailing(features);
  if (batch * channels == 0) return;
  const DeviceGuard guard(op, in.attention.device_index);
  const Queue queue{op, stream_of(executor)};
  const Workspace memory(in.attention, workspace);
  fill_coefficients(op, in, memory.c, memory.scratch, executor);
  const bool wide = channels * item_size(features.dtype) % 16 == 0 && aligned(features, 2) && aligned(expected, 1);
  dispatch_packs(features.dtype, wide, [&](auto type, auto per) {
    using Kernel = WeightedSums<typename decltype(type)::type, per.value>;
    using F = typename decltype(type)::type;
    const int64_t packs = channels / per.value;
    queue.launch(Kernel{batch, n, packs, memory.c, data_of<const F>(features), features.strides[0], features.strides[1],
                        data_of<F>(expected), expected.strides[0]},
                 blocks_for(batch * packs, Kernel::kThreads));
  });
}

void expectation_backward(const Estimate& in, const ats_tensor& grad, const ats_tensor& features,
                          const ats_tensor& d_features, const ats_tensor& d_attention, void* workspace,
                          const ats_executor* executor) {
  constexpr const char* op = "expectation_backward";
  const int64_t batch = in.attention.shape[0], n = in.attention.shape[1], channels = trailing(features);
  if (batch == 0) return;
  const DeviceGuard guard(op, in.attention.device_index);
  const Queue queue{op, stream_of(executor)};
  const Workspace memory(in.attention, workspace);
  const bool whole = channels * item_size(features.dtype) % 16 == 0 && aligned(grad, 1);
  dispatch_packs(features.dtype, whole && aligned(features, 2), [&](auto type, auto per) {
    using Kernel = Dots<typename decltype(type)::type, per.value>;
    using F = typename decltype(type)::type;
    const int64_t pairs = (n + Kernel::kSamples - 1) / Kernel::kSamples;
    queue.launch(Kernel{batch, n, channels, data_of<const F>(features), features.strides[0], features.strides[1],
                        data_of<const F>(grad), grad.strides[0], memory.h},
                 blocks_for(batch * pairs, Kernel::kGroups));
  });
  fill_gradient(op, in, memory.h, memory.c, d_attention, memory.scratch, executor);
  dispatch_packs(features.dtype, whole && aligned(d_features, 2), [&](auto type, auto per) {
    using Kernel = Scaled<typename decltype(type)::type, per.value>;
    using F = typename decltype(type)::type;
    const int64_t packs = channels / per.value, parts = (n + Kernel::kSamples - 1) / Kernel::kSamples;
    queue.launch(Kernel{batch, n, packs, memory.c, data_of<const F>(grad), grad.strides[0], data_of<F>(d_features),
                        d_features.strides[0], d_features.strides[1]},
                 blocks_for(batch * parts * packs, Kernel::kThreads));
  });
}

}  // namespace ats::cuda
