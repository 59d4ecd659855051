// C++17 sugar over ats.h: exceptions in place of status codes, and views made from a pointer and a shape.
// Header-only: nothing of the C++ standard library crosses the library's boundary.
#pragma once

#include <ats/ats.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <new>
#include <stdexcept>
#include <string>
#include <type_traits>

namespace ats {

// Throws std::invalid_argument, std::bad_alloc or std::runtime_error with the library's message.
inline void check(int status) {
  if (status == ATS_OK) return;
  if (status == ATS_INVALID_ARGUMENT) throw std::invalid_argument(ats_last_error());
  if (status == ATS_OUT_OF_MEMORY) throw std::bad_alloc();
  throw std::runtime_error(ats_last_error());
}

template <typename T>
constexpr ats_dtype dtype_of() {
  using U = std::remove_cv_t<T>;
  if constexpr (std::is_same_v<U, std::uint8_t>) return ATS_UINT8;
  else if constexpr (std::is_same_v<U, std::int16_t>) return ATS_INT16;
  else if constexpr (std::is_same_v<U, std::uint16_t>) return ATS_UINT16;
  else if constexpr (std::is_same_v<U, float>) return ATS_FLOAT32;
  else if constexpr (std::is_same_v<U, double>) return ATS_FLOAT64;
  else {
    static_assert(std::is_same_v<U, std::int64_t>, "no ats_dtype for this type");
    return ATS_INT64;
  }
}

// Strides of a contiguous tensor, last axis fastest.
inline void set_strides(ats_tensor& view) {
  std::int64_t stride = 1;
  for (int axis = view.ndim - 1; axis >= 0; stride *= std::max<std::int64_t>(view.shape[axis--], 1))
    view.strides[axis] = stride;
}

// Moves one axis of a view, which makes channels-first channels-last. An axis that is not there is left for the library
// to complain of.
inline void move_axis(ats_tensor& view, int from, int to) {
  if (std::min(from, to) < 0 || std::max(from, to) >= view.ndim) return;
  for (std::int64_t* axes : {view.shape, view.strides}) {
    if (from < to) std::rotate(axes + from, axes + from + 1, axes + to + 1);
    else std::rotate(axes + to, axes + from, axes + from + 1);
  }
}

// A contiguous view of memory on the CPU. It does not own the memory; a const input is never written to.
template <typename T>
ats_tensor view(T* data, std::initializer_list<std::int64_t> shape) {
  if (shape.size() > ATS_MAX_DIMS) throw std::invalid_argument("view: more than ATS_MAX_DIMS axes");
  ats_tensor result{};
  result.data = const_cast<std::remove_const_t<T>*>(data);
  result.dtype = dtype_of<T>();
  for (std::int64_t size : shape) result.shape[result.ndim++] = size;
  set_strides(result);
  return result;
}

}  // namespace ats
