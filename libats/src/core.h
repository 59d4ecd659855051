// What every operation shares: errors and the guard at the C edge, checks of arguments, dtype dispatch, parallel_for.
#pragma once

#include <ats/ats.h>

#include <cstdint>
#include <exception>
#include <initializer_list>
#include <new>
#include <string>
#include <utility>

#include "half.h"

namespace ats {

// ---- errors -------------------------------------------------------------------------------------------------------
class Error : public std::exception {
 public:
  Error(ats_status status, std::string message) : status_(status), message_(std::move(message)) {}
  ats_status status() const { return status_; }
  const char* what() const noexcept override { return message_.c_str(); }

 private:
  ats_status status_;
  std::string message_;
};

[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));
void set_last_error(const char* message) noexcept;

// Runs `body` and turns what it throws into a status and the thread's message. Nothing is thrown past it.
template <typename Body>
int guard(Body&& body) noexcept {
  try {
    body();
    return ATS_OK;
  } catch (const Error& error) {
    set_last_error(error.what());
    return error.status();
  } catch (const std::bad_alloc&) {
    set_last_error("out of memory");
    return ATS_OUT_OF_MEMORY;
  } catch (const std::exception& error) {
    set_last_error(error.what());
    return ATS_INTERNAL;
  } catch (...) {  // from the caller's parallel_for
    set_last_error("the executor threw something that is not a std::exception");
    return ATS_INTERNAL;
  }
}

// ---- checks -------------------------------------------------------------------------------------------------------
// Which operation and argument is being checked: the first words of every message.
struct Where {
  const char* op;
  const char* name;
};

// A bit set of dtypes, for `check_tensor`.
constexpr unsigned bit(ats_dtype dtype) { return 1u << dtype; }
constexpr unsigned kInteger64 = bit(ATS_INT64);
constexpr unsigned kSingleOrDouble = bit(ATS_FLOAT32) | bit(ATS_FLOAT64);
constexpr unsigned kFloating = kSingleOrDouble | bit(ATS_FLOAT16) | bit(ATS_BFLOAT16);
constexpr unsigned kImage = kFloating | bit(ATS_UINT8) | bit(ATS_INT16) | bit(ATS_UINT16);

std::string shape_text(const int64_t* shape, int ndim);
inline std::string shape_text(const ats_tensor& t) { return shape_text(t.shape, t.ndim); }
const char* dtype_name(int dtype);
int64_t item_size(int dtype);

// The product of two sizes; an error that names the argument when it leaves int64. Unknown (-1) stays unknown.
int64_t multiply_sizes(Where where, int64_t a, int64_t b);
int64_t element_count(const ats_tensor& t);  // of a tensor that was checked

// A view that may be described only (sizes may be -1, data is not looked at).
void check_described(Where where, const ats_tensor* t, unsigned dtypes, int min_ndim, int max_ndim, const char* layout);
// A view that will be read or written: known sizes, data there.
void check_tensor(Where where, const ats_tensor* t, unsigned dtypes, int min_ndim, int max_ndim, const char* layout);
// All sizes of a described view are known: for what depends on them.
void check_known(Where where, const ats_tensor& t);
// Exactly the shape and dtype that the shape rule gave.
void check_output(Where where, const ats_tensor* t, const ats_tensor& expected);
void check_contiguous_from(Where where, const ats_tensor& t, int first_axis);
void check_pointer(Where where, const void* pointer);
// Whether the views (those that are not NULL) are on a GPU: all on the same one, or none. Every operation asks this
// before it looks at data. A GPU in a build without CUDA is an error.
struct NamedView {
  const char* name;
  const ats_tensor* view;
};
bool on_gpu(const char* op, std::initializer_list<NamedView> views);
void check_same_size(Where where, int64_t size, const char* what, int64_t expected, const char* source);

ats_tensor describe(int dtype, std::initializer_list<int64_t> shape);
// `t`, a description, on the device of `other`.
inline ats_tensor on_device_of(const ats_tensor& other, ats_tensor t) {
  t.device = other.device;
  t.device_index = other.device_index;
  return t;
}
void set_contiguous_strides(ats_tensor& t);
// The dtype in which probabilities of an attention of `dtype` are given.
inline int probability_dtype(int dtype) { return dtype == ATS_FLOAT64 ? ATS_FLOAT64 : ATS_FLOAT32; }

// ---- dispatch -----------------------------------------------------------------------------------------------------
template <typename T>
struct Type {
  using type = T;
};

template <typename Body>
void dispatch_single_or_double(int dtype, Body&& body) {
  if (dtype == ATS_FLOAT64) return body(Type<double>{});
  body(Type<float>{});
}

template <typename Body>
void dispatch_floating(int dtype, Body&& body) {
  switch (dtype) {
    case ATS_FLOAT16:
      return body(Type<float16>{});
    case ATS_BFLOAT16:
      return body(Type<bfloat16>{});
    default:
      return dispatch_single_or_double(dtype, body);
  }
}

template <typename Body>
void dispatch_image(int dtype, Body&& body) {
  switch (dtype) {
    case ATS_UINT8:
      return body(Type<uint8_t>{});
    case ATS_INT16:
      return body(Type<int16_t>{});
    case ATS_UINT16:
      return body(Type<uint16_t>{});
    default:
      return dispatch_floating(dtype, body);
  }
}

// ---- work ---------------------------------------------------------------------------------------------------------
// body(begin, end) over [0, size) in ranges of at least `grain`, on the executor's threads. It must not throw.
template <typename Body>
void parallel_for(const ats_executor* executor, int64_t size, int64_t grain, const Body& body) {
  if (size <= 0) return;
  if (executor == nullptr || executor->parallel_for == nullptr || size <= grain) return body(int64_t{0}, size);
  executor->parallel_for(
      executor->context, 0, size, grain,
      [](void* data, int64_t begin, int64_t end) { (*static_cast<const Body*>(data))(begin, end); },
      const_cast<Body*>(&body));
}

// A grain that gives each range about 32,768 elementary steps when one item costs `cost` of them.
inline int64_t grain_for(int64_t cost) { return cost >= 32768 ? 1 : 32768 / (cost < 1 ? 1 : cost); }

template <typename T>
T* data_of(const ats_tensor& t) {
  return static_cast<T*>(t.data);
}

}  // namespace ats
