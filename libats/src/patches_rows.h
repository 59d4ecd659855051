// The loops over rows of pixels that extract_patches and its backward are made of, compiled for several instruction
// sets (simd.h). A row is `count` elements that lie side by side: pixels of one channel, or pixels with all their
// channels.
#pragma once

#include <algorithm>
#include <vector>

#include "convert_lanes.h"
#include "simd.h"

namespace ats {

template <typename A>
constexpr int kRowLanes = 64 / int(sizeof(A));

// mean and std as a row meets them: element i of a row of channel c (of all channels, when they lie side by side) is
// normalised with mean_of(c)[i % period]. As many values follow a period as a vector that begins in it can reach.
template <typename A>
class Normalization {
 public:
  // `mean` and `std` of every channel; null: 0 and 1.
  Normalization(int64_t channels, const double* mean, const double* std, bool interleaved)
      : active_(mean || std), stride_(interleaved ? 0 : kRowLanes<A>), period_(interleaved ? channels : 1) {
    if (!active_) return;
    const int64_t size = interleaved ? channels + kRowLanes<A> : channels * kRowLanes<A>;
    mean_.resize(size_t(size));
    std_.resize(size_t(size));
    for (int64_t i = 0; i < size; ++i) {
      const int64_t c = interleaved ? i % channels : i / kRowLanes<A>;
      mean_[size_t(i)] = mean ? A(mean[c]) : A(0);
      std_[size_t(i)] = std ? A(std[c]) : A(1);
    }
  }

  bool active() const { return active_; }
  int64_t period() const { return period_; }
  const A* mean_of(int64_t c) const { return active_ ? mean_.data() + c * stride_ : nullptr; }
  const A* std_of(int64_t c) const { return active_ ? std_.data() + c * stride_ : nullptr; }
  // Of channel c, in either form.
  A mean(int64_t c) const { return mean_[size_t(stride_ ? c * stride_ : c)]; }
  A std(int64_t c) const { return std_[size_t(stride_ ? c * stride_ : c)]; }

 private:
  bool active_;
  int64_t stride_, period_;
  std::vector<A> mean_, std_;
};

template <typename Out, bool normal, typename A>
ATS_INLINE Out normalized(A x, A mean, A std) {
  return store<Out>(normal ? (x - mean) / std : x);
}

// Rows of a patch lie far apart, so that no hardware foresees the next one: it is asked for kAhead rows before its
// turn.
constexpr int64_t kAhead = 4;
template <typename T>
ATS_INLINE void prefetch_row(const T* row, int64_t count) {
  const char* bytes = reinterpret_cast<const char*>(row);
  const int64_t size = std::min<int64_t>(count * int64_t(sizeof(T)), 1024);
  for (int64_t i = 0; i < size; i += 64) __builtin_prefetch(bytes + i);
  __builtin_prefetch(bytes + size - 1);
}
template <typename T>
ATS_INLINE void prefetch_rows(const T* from, int64_t step, int64_t rows, int64_t count) {
  for (int64_t row = 0; row < std::min(rows, kAhead); ++row) prefetch_row(from + row * step, count);
}

template <typename T>
struct CopyRows {
  static constexpr int kLanes = 64 / int(sizeof(T));

  ATS_INLINE static void run(const T* from, int64_t from_step, T* to, int64_t to_step, int64_t rows, int64_t count) {
    const int64_t last = count - kLanes;
    prefetch_rows(from, from_step, rows, count);
    for (int64_t row = 0; row < rows; ++row, from += from_step, to += to_step) {
      if (row + kAhead < rows) prefetch_row(from + kAhead * from_step, count);
      if (last < 0) {
        memcpy(to, from, size_t(count) * sizeof(T));
        continue;
      }
      for (int64_t i = 0; i < last; i += kLanes) memcpy(to + i, from + i, 64);
      memcpy(to + last, from + last, 64);
    }
  }
};

// to = (from - mean) / std in the type A, or from alone.
template <typename In, typename Out, typename A, bool normal>
struct ConvertRows {
  static constexpr int kLanes = kRowLanes<A>;

  ATS_INLINE static void vector(const In* from, Out* to, const A* mean, const A* std) {
    Vector<A, kLanes> x = widen<A, kLanes>(from);
    if constexpr (normal) x = (x - widen<A, kLanes>(mean)) / widen<A, kLanes>(std);
    narrow<kLanes, A>(x, to);
  }

  ATS_INLINE static void run(const In* from, int64_t from_step, Out* to, int64_t to_step, int64_t rows, int64_t count,
                             const A* mean, const A* std, int64_t period) {
    // The last vector of a row reaches back into what is done already.
    const int64_t last = count - kLanes, last_phase = normal && last > 0 ? last % period : 0;
    const int64_t step = normal ? kLanes % period : 0;
    prefetch_rows(from, from_step, rows, count);
    for (int64_t row = 0; row < rows; ++row, from += from_step, to += to_step) {
      if (row + kAhead < rows) prefetch_row(from + kAhead * from_step, count);
      if (last < 0) {
        for (int64_t i = 0; i < count; ++i)
          to[i] = normalized<Out, normal>(A(load(from[i])), normal ? mean[i] : A(0), normal ? std[i] : A(1));
        continue;
      }
      int64_t phase = 0;
      for (int64_t i = 0; i < last; i += kLanes) {
        vector(from + i, to + i, mean + phase, std + phase);
        phase += step;
        if (phase >= period) phase -= period;
      }
      vector(from + last, to + last, mean + last_phase, std + last_phase);
    }
  }
};

}  // namespace ats
