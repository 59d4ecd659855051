// murthy on a GPU: a warp walks over the nodes of a row (murthy_walk.h). Thread l stands at node l % 8, and computes u
// and keeps the sums of every fourth cell, from l / 8 on. What has to be added or multiplied in the order of the cells
// (an addition or two a cell, beside the some 50 of u) all four do alike. So a row has 32 threads for what takes long,
// and 200 bytes of memory a cell serve a whole warp: many rows fit on a multiprocessor.
//
// The eight numbers of a cell lie side by side, so that a warp reads and writes 32 of them in a row.
#pragma once

#include "cuda_launch.cuh"
#include "murthy_walk.h"

namespace ats::cuda {

struct WarpNodes {
  using Real = double;
  using Bits = uint64_t;
  struct Values {
    double* cells;  // of this thread's node
    __device__ double& operator[](int64_t i) const { return cells[8 * i]; }
  };
  static constexpr int kNodes = 8, kParts = kWarp / kNodes;

  int lane = lane_of_warp(), node = lane % kNodes;

  __device__ Values values(double* scratch, int64_t k, int64_t n) const { return {scratch + kNodes * n * k + node}; }
  __device__ double total(Values values, int64_t i) const {
    const double* const x = values.cells - node + kNodes * i;
    return ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7]));
  }
  __device__ double number() const { return double(node); }
  template <typename T>
  __device__ T at(T x, int other) const {
    return __shfl_sync(kWholeWarp, x, other);
  }
  __device__ double sum(double x) const {
    for (int distance = 4; distance > 0; distance /= 2) x += __shfl_xor_sync(kWholeWarp, x, distance);
    return x;
  }
  __device__ double highest(double x) const {
    for (int distance = 4; distance > 0; distance /= 2) {
      const double other = __shfl_xor_sync(kWholeWarp, x, distance);
      x = other > x ? other : x;
    }
    return x;
  }
  __device__ int first_fallen(double x) const {
    const unsigned rising = __ballot_sync(kWholeWarp, x > 0.0);
    return __ffs(int(~rising | 0x80u)) - 1;
  }
  __device__ double times_last(double x, double y) const { return node == kNodes - 1 ? x * y : x; }
  __device__ int64_t first() const { return lane / kNodes; }
  __device__ int64_t step() const { return kParts; }
  __device__ int64_t together(int64_t n) const { return n; }
  __device__ int64_t first_cell() const { return lane; }
  __device__ int64_t cell_step() const { return kWarp; }
  __device__ void meet() const { __syncwarp(); }
};

// The sums of psi_i psi_j, i <= j, an (n, n) matrix whose entries the threads share out; each takes its eight terms in
// the order of MurthyMatrix (murthy_lanes.h).
struct WarpPairSums {
  const WarpNodes& nodes;
  int64_t n;
  WarpNodes::Values c, weighted;
  double* pairs;

  __device__ void take(double weight, double per_time, WarpNodes::Values u) {
    nodes.meet();
    for (int64_t i = nodes.first(); i < n; i += nodes.step()) {
      u[i] *= per_time;
      c[i] += weighted[i] = weight * u[i];
    }
    nodes.meet();
    const double* const left = weighted.cells - nodes.node;
    const double* const right = u.cells - nodes.node;
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = i + nodes.lane; j < n; j += kWarp) {
        double sum = pairs[i * n + j];
        for (int l = 0; l < 8; ++l) sum += left[8 * i + l] * right[8 * j + l];
        pairs[i * n + j] = sum;
      }
  }
};

// c and M, which is n x n; scratch is of 24 n + n n doubles.
template <typename T>
__device__ inline void murthy_matrix(const WarpNodes& nodes, const double* a, const MurthySize& size, double rest,
                                     double* scratch, double* c, T* m) {
  const int64_t n = size.n;
  WarpPairSums sums{nodes, n, nodes.values(scratch, 1, n), nodes.values(scratch, 2, n), scratch + 24 * n};
  for (int64_t i = nodes.first(); i < n; i += nodes.step()) sums.c[i] = 0.0;
  for (int64_t k = nodes.lane; k < n * n; k += kWarp) sums.pairs[k] = 0.0;
  const double total = murthy_walk(nodes, a, size, rest, nodes.values(scratch, 0, n), sums);
  nodes.meet();
  for (int64_t i = nodes.lane; i < n; i += kWarp) c[i] = nodes.total(sums.c, i) / total;
  nodes.meet();
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = nodes.lane; j < n; j += kWarp) {
      const double pair = i < j ? sums.pairs[i * n + j] : sums.pairs[j * n + i];
      m[i * n + j] = store_clamped<T>(murthy_entry(i == j, c[i], a[i], pair, total));
    }
}

}  // namespace ats::cuda
