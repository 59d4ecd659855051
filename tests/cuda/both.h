// A tensor on the CPU and the same on a GPU, of any dtype and layout.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "../../libats/src/half.h"
#include "device.h"

using Bytes = std::vector<unsigned char>;
using Shape = std::vector<int64_t>;

inline size_t item_size(int dtype) { return dtype == ATS_FLOAT64 ? 8 : dtype == ATS_FLOAT32 ? 4 : 2; }

template <typename Body>
void with_type(int dtype, const Body& body) {
  switch (dtype) {
    case ATS_FLOAT16:
      return body(ats::float16{});
    case ATS_BFLOAT16:
      return body(ats::bfloat16{});
    case ATS_FLOAT32:
      return body(float{});
    default:
      return body(double{});
  }
}
inline double read(int dtype, const Bytes& bytes, size_t i) {
  double value = 0.0;
  with_type(dtype, [&](auto x) {
    std::memcpy(&x, bytes.data() + i * sizeof(x), sizeof(x));
    value = double(ats::load(x));
  });
  return value;
}

// The same tensor on the CPU and on the GPU. Its memory ends with its last element.
enum Layout { kContiguous, kOddGaps, kWideGaps, kSamplesFirst, kBackwards, kLayouts };
class Both {
 public:
  // The axes from `inner` on are contiguous.
  Both(int dtype, const Shape& shape, int inner, int layout) {
    ats_tensor& t = cpu;
    t.dtype = dtype;
    t.ndim = int(shape.size());
    int64_t stride = 1, offset = 0;
    const int64_t gap = layout == kOddGaps ? 1 : layout == kWideGaps ? 16 : 0;
    for (int axis = t.ndim - 1; axis >= 0; --axis) {
      t.shape[axis] = shape[size_t(axis)];
      if (axis == inner - 1) stride += gap;
      t.strides[axis] = stride;
      stride *= std::max<int64_t>(t.shape[axis], 1);
      if (axis < inner) stride += gap;
    }
    if (layout == kSamplesFirst && inner == 2) {
      t.strides[0] = t.ndim > 2 ? t.strides[1] : 1;
      t.strides[1] = t.strides[0] * std::max<int64_t>(t.shape[0], 1);
    }
    for (int axis = 0; axis < inner && layout == kBackwards; ++axis) {
      offset += std::max<int64_t>(t.shape[axis] - 1, 0) * t.strides[axis];
      t.strides[axis] = -t.strides[axis];
    }
    if (layout == kOddGaps) offset += 1;
    int64_t last = offset;
    bool empty = false;
    for (int axis = 0; axis < t.ndim; ++axis) {
      empty |= t.shape[axis] == 0;
      if (t.strides[axis] > 0) last += (t.shape[axis] - 1) * t.strides[axis];
    }
    memory.reserve(1);  // even where it is empty it is somewhere
    memory.assign(empty ? 0 : size_t(last + 1) * item_size(dtype), 0xcd);
    device_memory = std::make_unique<OnDevice<unsigned char>>(memory.size());
    offset_ = offset;
    t.data = memory.data() + (empty ? 0 : size_t(offset) * item_size(dtype));
    gpu = on_gpu(t);
    gpu.data = device_memory->data() + (empty ? 0 : size_t(offset) * item_size(dtype));
  }

  // value(number of the element), on both.
  template <typename Value>
  void fill(const Value& value) {
    each([&](int64_t number, size_t at) {
      with_type(cpu.dtype, [&](auto x) {
        x = ats::store<decltype(x)>(double(value(number)));
        std::memcpy(memory.data() + at * sizeof(x), &x, sizeof(x));
      });
    });
    if (!memory.empty()) std::memcpy(device_memory->data(), memory.data(), memory.size());
  }
  // body(number, place in memory) of all elements.
  template <typename Body>
  void each(const Body& body) const {
    int64_t count = 1;
    for (int axis = 0; axis < cpu.ndim; ++axis) count *= cpu.shape[axis];
    for (int64_t number = 0; number < count; ++number) {
      int64_t at = offset_, left = number;
      for (int axis = cpu.ndim - 1; axis >= 0; left /= cpu.shape[axis--])
        at += left % cpu.shape[axis] * cpu.strides[axis];
      body(number, size_t(at));
    }
  }

  // All memory is the same. Where the exponential of the machine comes in, and that is another one on a GPU, elements
  // are the same to some units in the last place, of themselves and of `sum`, what they are summed up of.
  bool same(int estimator, double sum = 0.0) const {
    const Bytes found = device_memory->get();
#if defined(ATS_EMULATION)
    (void)estimator, (void)sum;
    return found == memory;
#else
    if (estimator != ATS_HORVITZ_THOMPSON) return found == memory;
    const double unit = cpu.dtype == ATS_FLOAT64 ? 2e-16 : cpu.dtype == ATS_FLOAT32 ? 1e-7 : 8e-3;
    bool near = true;
    each([&](int64_t, size_t at) {
      const double x = read(cpu.dtype, memory, at), y = read(cpu.dtype, found, at);
      near &= std::fabs(x - y) <= 4.0 * unit * (std::fabs(x) + sum);
    });
    return near;
#endif
  }
  // Row b, of `rows`, is the same, or all of it is NaN.
  bool same_row(int64_t b, int64_t rows, bool nan) const {
    const Bytes found = device_memory->get();
    bool good = true;
    int64_t count = 1;
    for (int axis = 0; axis < cpu.ndim; ++axis) count *= cpu.shape[axis];
    each([&](int64_t number, size_t at) {
      if (number / (count / rows) != b) return;
      const double x = read(cpu.dtype, memory, at), y = read(cpu.dtype, found, at);
      good &= nan ? std::isnan(y) : std::fabs(x - y) <= 0.0 || x == y;
    });
    return good;
  }

  ats_tensor cpu{}, gpu{};

 private:
  int64_t offset_ = 0;
  Bytes memory;
  std::unique_ptr<OnDevice<unsigned char>> device_memory;
};
