#include "core.h"

#include <cstdarg>
#include <cstdio>
#include <limits>

#include "cuda_ops.h"

namespace ats {
namespace {

constexpr size_t kMessageSize = 512;
thread_local char last_error[kMessageSize] = "";

const char* const kDtypeNames[] = {"uint8", "int16", "uint16", "float16", "bfloat16", "float32", "float64", "int64"};
const int64_t kItemSizes[] = {1, 2, 2, 2, 2, 4, 8, 8};

std::string dtypes_text(unsigned dtypes) {
  std::string text;
  for (int dtype = 0; dtype <= ATS_INT64; ++dtype) {
    if (!(dtypes & (1u << dtype))) continue;
    if (!text.empty()) text += ", ";
    text += kDtypeNames[dtype];
  }
  return text;
}

}  // namespace

void fail(const char* format, ...) {
  char message[kMessageSize];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(message, sizeof message, format, arguments);
  va_end(arguments);
  throw Error(ATS_INVALID_ARGUMENT, message);
}

void set_last_error(const char* message) noexcept { std::snprintf(last_error, sizeof last_error, "%s", message); }

std::string shape_text(const int64_t* shape, int ndim) {
  std::string text = "(";
  for (int axis = 0; axis < ndim; ++axis) {
    if (axis) text += ", ";
    text += std::to_string(shape[axis]);
  }
  return text + (ndim == 1 ? ",)" : ")");
}

const char* dtype_name(int dtype) {
  return dtype >= 0 && dtype <= ATS_INT64 ? kDtypeNames[dtype] : "a dtype that it does not know";
}
int64_t item_size(int dtype) { return kItemSizes[dtype]; }

int64_t multiply_sizes(Where where, int64_t a, int64_t b) {
  if (a < 0 || b < 0) return a == 0 || b == 0 ? 0 : -1;
  int64_t product = 0;
  if (__builtin_mul_overflow(a, b, &product)) fail("%s: %s has too many elements for 64 bits", where.op, where.name);
  return product;
}

int64_t element_count(const ats_tensor& t) {
  int64_t count = 1;
  for (int axis = 0; axis < t.ndim; ++axis) count *= t.shape[axis];
  return count;
}

void check_pointer(Where where, const void* pointer) {
  if (pointer == nullptr) fail("%s: %s is missing (NULL)", where.op, where.name);
}

void check_described(Where where, const ats_tensor* t, unsigned dtypes, int min_ndim, int max_ndim,
                     const char* layout) {
  check_pointer(where, t);
  if (t->ndim < 0 || t->ndim > ATS_MAX_DIMS)
    fail("%s: %s has %d axes, at most %d are possible", where.op, where.name, int(t->ndim), ATS_MAX_DIMS);
  if (t->dtype < 0 || t->dtype > ATS_INT64 || !(dtypes & (1u << t->dtype)))
    fail("%s: %s must be %s%s, got %s", where.op, where.name, (dtypes & (dtypes - 1)) ? "one of " : "",
         dtypes_text(dtypes).c_str(), dtype_name(t->dtype));
  if (t->ndim < min_ndim || t->ndim > max_ndim)
    fail("%s: %s must have the shape %s, got %s", where.op, where.name, layout, shape_text(*t).c_str());
  int64_t bytes = item_size(t->dtype);
  for (int axis = 0; axis < t->ndim; ++axis) {
    if (t->shape[axis] < -1) fail("%s: %s has a negative size: %s", where.op, where.name, shape_text(*t).c_str());
    bytes = multiply_sizes(where, bytes, t->shape[axis]);
  }
}

void check_known(Where where, const ats_tensor& t) {
  for (int axis = 0; axis < t.ndim; ++axis)
    if (t.shape[axis] < 0) fail("%s: %s has a size that is not known: %s", where.op, where.name, shape_text(t).c_str());
}

void check_tensor(Where where, const ats_tensor* t, unsigned dtypes, int min_ndim, int max_ndim, const char* layout) {
  check_described(where, t, dtypes, min_ndim, max_ndim, layout);
  check_known(where, *t);
  if (t->data == nullptr && element_count(*t) > 0) fail("%s: %s has no data (NULL)", where.op, where.name);
}

bool on_gpu(const char* op, std::initializer_list<NamedView> views) {
  const auto place = [](const ats_tensor& t) {
    return t.device == ATS_CPU ? std::string("the CPU") : "GPU " + std::to_string(t.device_index);
  };
  const NamedView* first = nullptr;
  for (const NamedView& next : views) {
    if (next.view == nullptr) continue;
    const ats_tensor& t = *next.view;
    if (t.device != ATS_CPU && t.device != ATS_CUDA)
      fail("%s: %s is on a device that is neither the CPU nor a GPU: %d", op, next.name, int(t.device));
    if (t.device == ATS_CUDA) cuda::check_built({op, next.name});
    if (first == nullptr) first = &next;
    const ats_tensor& other = *first->view;
    if (t.device != other.device || (t.device == ATS_CUDA && t.device_index != other.device_index))
      fail("%s: %s is on %s, but %s is on %s", op, next.name, place(t).c_str(), first->name, place(other).c_str());
  }
  return first != nullptr && first->view->device == ATS_CUDA;
}

void check_output(Where where, const ats_tensor* t, const ats_tensor& expected) {
  check_tensor(where, t, 1u << expected.dtype, 0, ATS_MAX_DIMS, "");
  bool same = t->ndim == expected.ndim;
  for (int axis = 0; same && axis < t->ndim; ++axis) same = t->shape[axis] == expected.shape[axis];
  if (!same)
    fail("%s: %s must have the shape %s, got %s", where.op, where.name, shape_text(expected).c_str(),
         shape_text(*t).c_str());
}

void check_contiguous_from(Where where, const ats_tensor& t, int first_axis) {
  if (element_count(t) == 0) return;
  int64_t stride = 1;
  for (int axis = t.ndim - 1; axis >= first_axis; --axis) {
    if (t.shape[axis] != 1 && t.strides[axis] != stride)
      fail("%s: %s must be contiguous from axis %d on", where.op, where.name, first_axis);
    stride *= t.shape[axis];
  }
}

void check_same_size(Where where, int64_t size, const char* what, int64_t expected, const char* source) {
  if (size < 0 || expected < 0 || size == expected) return;
  fail("%s: %s has %s = %lld, but %s has %lld", where.op, where.name, what, static_cast<long long>(size), source,
       static_cast<long long>(expected));
}

void set_contiguous_strides(ats_tensor& t) {
  int64_t stride = 1;
  for (int axis = t.ndim - 1; axis >= 0; --axis) {
    t.strides[axis] = stride;
    // Past an unknown size the stride is unknown too; a size of 0 leaves nothing to step over.
    stride = t.shape[axis] < 0 || stride < 0 ? -1 : multiply_sizes({"shape", "the result"}, stride, t.shape[axis]);
  }
}

ats_tensor describe(int dtype, std::initializer_list<int64_t> shape) {
  ats_tensor t{};
  t.dtype = dtype;
  t.device = ATS_CPU;
  for (int64_t size : shape) t.shape[t.ndim++] = size;
  set_contiguous_strides(t);
  return t;
}

}  // namespace ats

#define ATS_TEXT_(x) #x
#define ATS_TEXT(x) ATS_TEXT_(x)

const char* ats_version(void) noexcept {
  return ATS_TEXT(ATS_VERSION_MAJOR) "." ATS_TEXT(ATS_VERSION_MINOR) "." ATS_TEXT(ATS_VERSION_PATCH);
}

const char* ats_last_error(void) noexcept { return ats::last_error; }
