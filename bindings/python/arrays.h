// NumPy arrays as the core's views: inputs, new outputs, scratch memory, and the core's status as a Python exception.
#pragma once

#include <ats/ats.hpp>

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cxxabi.h>
#include <unistd.h>

#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace ats_python {

namespace py = pybind11;

using View = const ats_tensor*;

inline void check(int status) {
  if (status == ATS_OK) return;
  PyObject* type = status == ATS_INVALID_ARGUMENT ? PyExc_ValueError
                   : status == ATS_OUT_OF_MEMORY  ? PyExc_MemoryError
                   : status == ATS_UNSUPPORTED    ? PyExc_NotImplementedError
                                                  : PyExc_RuntimeError;
  PyErr_SetString(type, ats_last_error());
  throw py::error_already_set();
}

// Runs the core without the GIL. When the interpreter ends meanwhile, a daemon thread that wants the GIL back is made
// to unwind (before Python 3.14), through destructors that need the GIL; it stops here for good instead, as it does in
// newer Pythons.
template <typename Call>
void run(const Call& call) {
  PyThreadState* state = PyEval_SaveThread();
  const int status = call();
  try {
    PyEval_RestoreThread(state);
  } catch (abi::__forced_unwind&) {
    for (;;) pause();
  }
  check(status);
}

inline constexpr std::pair<const char*, ats_dtype> kDtypes[] = {
    {"u1", ATS_UINT8},   {"i2", ATS_INT16},   {"u2", ATS_UINT16}, {"f2", ATS_FLOAT16},
    {"f4", ATS_FLOAT32}, {"f8", ATS_FLOAT64}, {"i8", ATS_INT64}};

inline ats_dtype core_dtype(const char* name, const py::dtype& dtype) {
  for (const auto& [code, value] : kDtypes)
    if (dtype.kind() == code[0] && dtype.itemsize() == code[1] - '0') return value;
  throw py::type_error(std::string(name) + ": dtype " + std::string(py::str(dtype)) +
                       " is none of uint8, int16, uint16, int64, float16, float32, float64");
}

inline py::dtype numpy_dtype(int32_t dtype) {
  for (const auto& [code, value] : kDtypes)
    if (value == dtype) return py::dtype(code);
  throw std::runtime_error("the core asked for a dtype that NumPy does not have");
}

// True when the axes from `first` on are laid out row by row.
inline bool contiguous_from(const py::array& array, py::ssize_t first) {
  py::ssize_t stride = array.itemsize();
  for (py::ssize_t axis = array.ndim() - 1; axis >= first; --axis) {
    if (array.shape(axis) != 1 && array.strides(axis) != stride) return false;
    stride *= array.shape(axis);
  }
  return true;
}

// An input: a view of the array itself where the core can read it, otherwise of a copy. `contiguous` is the first
// axis from which the core wants the layout row by row.
class Input {
 public:
  Input(const char* name, py::array array, py::ssize_t contiguous = ATS_MAX_DIMS) : array_(std::move(array)) {
    view_.dtype = core_dtype(name, array_.dtype());
    if (array_.ndim() > ATS_MAX_DIMS)
      throw py::value_error(std::string(name) + ": has " + std::to_string(array_.ndim()) + " axes, at most " +
                            std::to_string(ATS_MAX_DIMS) + " are taken");
    if (!readable() || !contiguous_from(array_, contiguous))
      array_ = py::module_::import("numpy").attr("array")(array_, numpy_dtype(view_.dtype), py::arg("order") = "C");
    view_.data = const_cast<void*>(array_.data());
    view_.ndim = static_cast<int32_t>(array_.ndim());
    for (int axis = 0; axis < view_.ndim; ++axis) {
      view_.shape[axis] = array_.shape(axis);
      view_.strides[axis] = array_.strides(axis) / array_.itemsize();
    }
  }
  operator View() const { return &view_; }

 private:
  bool readable() const {
    if (!(array_.flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_)) return false;
    if (!array_.dtype().attr("isnative").cast<bool>()) return false;
    for (py::ssize_t axis = 0; axis < array_.ndim(); ++axis)
      if (array_.strides(axis) % array_.itemsize() != 0) return false;
    return true;
  }
  py::array array_;
  ats_tensor view_{};
};

// An input that may be None, which the core takes as NULL.
class OptionalInput {
 public:
  OptionalInput(const char* name, std::optional<py::array> array) {
    if (array) input_.emplace(name, *std::move(array));
  }
  operator View() const { return input_ ? static_cast<View>(*input_) : nullptr; }

 private:
  std::optional<Input> input_;
};

// A new array of the shape and dtype that the core gave. With `inner` > 0 its last axis stands `inner` places further
// left in memory: channels-first patches under a channels-last shape.
class Output {
 public:
  explicit Output(const ats_tensor& wanted, int inner = 0) : view_(wanted) {
    std::vector<py::ssize_t> shape(wanted.shape, wanted.shape + wanted.ndim), strides(shape.size());
    py::ssize_t stride = 1;
    for (int place = wanted.ndim - 1; place >= 0; --place) {
      const int channel_place = wanted.ndim - 1 - inner;
      const int axis = place == channel_place ? wanted.ndim - 1 : place > channel_place ? place - 1 : place;
      view_.strides[axis] = stride;
      stride *= shape[axis];
    }
    const py::dtype dtype = numpy_dtype(wanted.dtype);
    for (int axis = 0; axis < wanted.ndim; ++axis) strides[axis] = view_.strides[axis] * dtype.itemsize();
    array = py::array(dtype, shape, strides);
    view_.data = array.mutable_data();
  }
  operator View() const { return &view_; }
  py::array array;

 private:
  ats_tensor view_;
};

class Workspace {
 public:
  explicit Workspace(size_t bytes) : data_(::operator new(bytes, kAlignment)) {}
  Workspace(const Workspace&) = delete;
  ~Workspace() { ::operator delete(data_, kAlignment); }
  operator void*() const { return data_; }

 private:
  static constexpr std::align_val_t kAlignment{64};
  void* data_;
};

}  // namespace ats_python
