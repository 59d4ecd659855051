// murthy on a CPU: eight nodes of the walk (murthy_walk.h) are a vector. Scratch memory begins where a vector may.
#pragma once

#include "lanes.h"
#include "murthy_walk.h"

namespace ats {

ATS_INLINE int64_t padded_to_lanes(int64_t n) { return (n + 7) / 8 * 8; }

struct LaneNodes {
  using Real = Doubles;
  using Bits = Words;
  using Values = Doubles*;

  ATS_INLINE static Doubles* values(double* scratch, int64_t k, int64_t n) {
    return reinterpret_cast<Doubles*>(scratch) + k * n;
  }
  ATS_INLINE static double total(const Doubles* values, int64_t i) { return sum_lanes(values[i]); }
  ATS_INLINE static Doubles number() { return Doubles{0, 1, 2, 3, 4, 5, 6, 7}; }
  ATS_INLINE static double at(Doubles x, int node) { return x[node]; }
  ATS_INLINE static uint64_t at(Words x, int node) { return x[node]; }
  ATS_INLINE static double sum(Doubles x) { return sum_lanes(x); }
  ATS_INLINE static double highest(Doubles x) {
    double top = x[0];
    for (int l = 1; l < 8; ++l) top = x[l] > top ? x[l] : top;
    return top;
  }
  ATS_INLINE static int first_fallen(Doubles x) {
    int node = 0;
    while (node < 7 && x[node] > 0.0) ++node;
    return node;
  }
  ATS_INLINE static Doubles times_last(Doubles x, double y) {
    x[7] *= y;
    return x;
  }
  ATS_INLINE static int64_t first() { return 0; }
  ATS_INLINE static int64_t step() { return 1; }
  ATS_INLINE static int64_t together(int64_t) { return 1; }
  ATS_INLINE static int64_t first_cell() { return 0; }
  ATS_INLINE static int64_t cell_step() { return 1; }
  ATS_INLINE static void meet() {}
};

struct MurthyCoefficients {
  ATS_INLINE static void run(const double* a, MurthySize size, double rest, double* scratch, double* c) {
    murthy_coefficients(LaneNodes{}, a, size, rest, scratch, c);
  }
};

struct MurthyGradient {
  ATS_INLINE static void run(const double* a, MurthySize size, double rest, const double* h, double* scratch, double* c,
                             double* da) {
    murthy_gradient(LaneNodes{}, a, size, rest, h, scratch, c, da);
  }
};

// The arrays themselves, M in the type that is wanted.
template <typename T>
struct MurthyMatrix {
  int64_t n, stride;
  Doubles* c;
  double *nodes, *pairs;  // psi with the cells side by side, (8, stride); the sums of psi_i psi_j, (n, stride)

  // The sums of pairs grow by a product of matrices, its eight terms always in the same order; those with j >= i are
  // enough.
  ATS_INLINE void take(Doubles weight, Doubles per_time, Doubles* u) {
    for (int64_t i = 0; i < n; ++i) u[i] *= per_time;
    for (int64_t i = 0; i < n; ++i)
      for (int l = 0; l < 8; ++l) nodes[l * stride + i] = u[i][l];
    for (int64_t i = 0; i < n; ++i) {
      const Doubles weighted = weight * u[i];
      c[i] += weighted;
      for (int64_t j = i / 8 * 8; j < n; j += 8) {
        Doubles sum = load_lanes(pairs + i * stride + j);
        for (int l = 0; l < 8; ++l) sum += weighted[l] * load_lanes(nodes + l * stride + j);
        memcpy(pairs + i * stride + j, &sum, sizeof(sum));
      }
    }
  }

  // c and M, which is n x n; scratch is of 16 n + (8 + n) padded_to_lanes(n) doubles.
  ATS_INLINE static void run(const double* a, MurthySize size, double rest, double* scratch, double* c, T* m) {
    const int64_t n = size.n;
    Doubles* const lanes = reinterpret_cast<Doubles*>(scratch);
    double* const nodes = scratch + 16 * n;
    const int64_t stride = padded_to_lanes(n);
    MurthyMatrix sums{n, stride, lanes + n, nodes, nodes + 8 * stride};
    for (int64_t i = 0; i < n; ++i) sums.c[i] = Doubles{};
    for (int64_t k = 0; k < (8 + n) * stride; ++k) nodes[k] = 0.0;
    const double total = murthy_walk(LaneNodes{}, a, size, rest, lanes, sums);
    for (int64_t i = 0; i < n; ++i) c[i] = sum_lanes(sums.c[i]) / total;
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < n; ++j) {
        const double pair = i < j ? sums.pairs[i * stride + j] : sums.pairs[j * stride + i];
        m[i * n + j] = store_clamped<T>(murthy_entry(i == j, c[i], a[i], pair, total));
      }
  }
};

}  // namespace ats
