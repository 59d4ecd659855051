// Tensors of PyTorch's stable ABI as the core's views: inputs, new outputs, scratch memory; and the core's status as an
// exception. Nothing here depends on the device, so an adapter for another one can share it.
#pragma once

#include <ats/ats.hpp>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

namespace ats_torch {

// The argument of type `str`. PyTorch's own conversion to std::string (2.10 to 2.13) leaks the string it makes.
struct Name {
  char text[32];
};

}  // namespace ats_torch

namespace torch::stable::detail {

template <>
struct ToImpl<ats_torch::Name> {
  static ats_torch::Name call(StableIValue value, uint64_t, bool) {
    StringHandle handle = to<StringHandle>(value);
    const char* data = nullptr;
    size_t length = 0;
    ats_torch::Name name{};
    if (torch_string_c_str(handle, &data) == TORCH_SUCCESS && torch_string_length(handle, &length) == TORCH_SUCCESS)
      std::copy_n(data, std::min(length, sizeof(name.text) - 1), name.text);
    torch_delete_string(handle);
    return name;
  }
};

}  // namespace torch::stable::detail

namespace ats_torch {

using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Sizes = std::vector<int64_t>;
using Values = std::optional<std::vector<double>>;
using View = const ats_tensor*;
using torch::headeronly::ScalarType;

inline void check(int status) {
  if (status != ATS_OK) throw std::runtime_error(ats_last_error());
}

inline void require(bool condition, const std::string& message) {
  if (!condition) throw std::runtime_error(message);
}

// ---- tensors as views ----

// PyTorch's code for each ats_dtype, in that enumeration's order. The codes are asked for, as the stable ABI wants.
inline const std::array<int32_t, ATS_INT64 + 1>& dtypes() {
  static const std::array<int32_t, ATS_INT64 + 1> codes = {
      aoti_torch_dtype_uint8(),    aoti_torch_dtype_int16(),   aoti_torch_dtype_uint16(),  aoti_torch_dtype_float16(),
      aoti_torch_dtype_bfloat16(), aoti_torch_dtype_float32(), aoti_torch_dtype_float64(), aoti_torch_dtype_int64()};
  return codes;
}

// For a dtype that the core does not have, -1, which it refuses in its own words.
inline int32_t core_dtype(int32_t code) {
  const auto found = std::find(dtypes().begin(), dtypes().end(), code);
  return found == dtypes().end() ? -1 : static_cast<int32_t>(found - dtypes().begin());
}

inline int32_t core_dtype(const std::optional<ScalarType>& dtype, int32_t otherwise) {
  namespace stable = torch::stable::detail;
  return dtype ? core_dtype(stable::to<int32_t>(stable::from(*dtype))) : otherwise;
}

// A tensor, and the core's view of it.
struct Argument {
  Tensor tensor;
  ats_tensor view{};

  Argument(const std::string& name, const Tensor& given) : tensor(given) {
    const auto shape = tensor.sizes(), strides = tensor.strides();
    require(shape.size() <= ATS_MAX_DIMS, name + ": has " + std::to_string(shape.size()) + " axes, at most " +
                                              std::to_string(ATS_MAX_DIMS) + " are taken");
    std::copy(shape.begin(), shape.end(), view.shape);
    std::copy(strides.begin(), strides.end(), view.strides);
    view.ndim = static_cast<int32_t>(shape.size());
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &view.dtype));
    view.dtype = core_dtype(view.dtype);
    view.device = tensor.is_cuda() ? ATS_CUDA : ATS_CPU;
    view.device_index = tensor.get_device_index();
    view.data = tensor.data_ptr();
  }

  operator View() const { return &view; }
};

inline Argument dense(const char* name, const Tensor& given) {
  return Argument(name, given.is_contiguous() ? given : torch::stable::contiguous(given));
}

// A new tensor of the shape and dtype that the core asked for, where `like` is. With `spatial` > 0 the channels, last
// for the core, stand before that many axes in the tensor.
inline Argument allocate(ats_tensor wanted, const ats_tensor& like, int spatial = 0) {
  require(wanted.dtype >= 0, "dtype: not one that the core has");
  ats::move_axis(wanted, wanted.ndim - 1, wanted.ndim - 1 - spatial);
  ats::set_strides(wanted);
  const int32_t device = like.device == ATS_CUDA ? aoti_torch_device_type_cuda() : aoti_torch_device_type_cpu();
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(wanted.ndim, wanted.shape, wanted.strides, dtypes()[wanted.dtype],
                                                  device, like.device_index, &handle));
  Argument result("output", Tensor(handle));
  ats::move_axis(result.view, wanted.ndim - 1 - spatial, wanted.ndim - 1);
  return result;
}

struct OptionalArgument {
  std::optional<Argument> argument;
  OptionalArgument(const char* name, const OptionalTensor& given) {
    if (given) argument = dense(name, *given);
  }
  operator View() const { return argument ? &argument->view : nullptr; }
};

// Scratch memory from PyTorch's allocator.
struct Workspace {
  std::optional<Argument> memory;
  Workspace(size_t bytes, const ats_tensor& like) {
    ats_tensor wanted{};
    wanted.ndim = 1;
    wanted.shape[0] = static_cast<int64_t>(bytes);
    wanted.dtype = ATS_UINT8;
    if (bytes > 0) memory = allocate(wanted, like);
  }
  operator void*() const { return memory ? memory->view.data : nullptr; }
};

template <size_t N>
void copy_sizes(const std::string& name, const Sizes& sizes, int64_t (&out)[N], size_t axes) {
  require(sizes.size() <= N, name + ": at most " + std::to_string(N) + " values are taken");
  require(sizes.size() == axes,
          name + ": must have " + std::to_string(axes) + " values, got " + std::to_string(sizes.size()));
  std::copy(sizes.begin(), sizes.end(), out);
}

}  // namespace ats_torch
