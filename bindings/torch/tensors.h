// Tensors of PyTorch's stable ABI as the core's views: inputs, new outputs, scratch memory; and the core's status as an
// exception. Nothing here depends on the device, so an adapter for another one can share it.
#pragma once

#include <ats/ats.hpp>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <memory>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

namespace ats_torch {

// The argument of type `str`. PyTorch's own conversion to std::string (2.10 to 2.13) leaks the string it makes.
struct Name {
  char text[32];
};

// Owns a tensor as torch::stable::Tensor does, but with no count of references beside PyTorch's own: for small tensors
// a call is little else than memory from malloc.
struct Release {
  void operator()(AtenTensorHandle handle) const { aoti_torch_delete_tensor_object(handle); }
};
using Tensor = std::unique_ptr<AtenTensorOpaque, Release>;

// What an operation returns: a tensor handed over to PyTorch.
struct Result {
  AtenTensorHandle handle;
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

template <>
struct ToImpl<ats_torch::Tensor> {
  static ats_torch::Tensor call(StableIValue value, uint64_t, bool) {
    return ats_torch::Tensor(to<AtenTensorHandle>(value));
  }
};

}  // namespace torch::stable::detail

namespace ats_torch {

using OptionalTensor = std::optional<torch::stable::Tensor>;
using Sizes = std::vector<int64_t>;
using Values = std::optional<std::vector<double>>;
using View = const ats_tensor*;
using torch::headeronly::ScalarType;

inline void check(int status) {
  if (status != ATS_OK) throw std::runtime_error(ats_last_error());
}

// The message is put together only where it is needed.
template <typename... Parts>
void require(bool condition, const Parts&... parts) {
  if (condition) return;
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
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

inline bool is_contiguous(AtenTensorHandle tensor) {
  bool answer = false;
  TORCH_ERROR_CODE_CHECK(aoti_torch_is_contiguous(tensor, &answer));
  return answer;
}

inline Tensor contiguous(AtenTensorHandle tensor) {
  AtenTensorHandle argument = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_new_tensor_handle(tensor, &argument));
  const torch::stable::Tensor copy = torch::stable::contiguous(torch::stable::Tensor(argument));
  AtenTensorHandle result = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_new_tensor_handle(copy.get(), &result));
  return Tensor(result);
}

// The core's view of a tensor, and the tensor where it was made here.
struct Argument {
  Tensor made;
  ats_tensor view{};

  // Of a tensor that stays alive.
  Argument(const char* name, AtenTensorHandle tensor) {
    int64_t axes = 0, *shape = nullptr, *strides = nullptr;
    int32_t device = 0;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_dim(tensor, &axes));
    require(axes <= ATS_MAX_DIMS, name, ": has ", axes, " axes, at most ", ATS_MAX_DIMS, " are taken");
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(tensor, &shape));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(tensor, &strides));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor, &view.dtype));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(tensor, &device));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(tensor, &view.device_index));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(tensor, &view.data));
    std::copy_n(shape, axes, view.shape);
    std::copy_n(strides, axes, view.strides);
    view.ndim = static_cast<int32_t>(axes);
    view.dtype = core_dtype(view.dtype);
    view.device = device == aoti_torch_device_type_cuda() ? ATS_CUDA : ATS_CPU;
  }

  // Of a new tensor, whose shape is known.
  Argument(Tensor made_, const ats_tensor& known) : made(std::move(made_)), view(known) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(made.get(), &view.data));
  }

  operator View() const { return &view; }
  Result release() { return {made.release()}; }
};

inline Argument dense(const char* name, AtenTensorHandle given) {
  if (is_contiguous(given)) return Argument(name, given);
  Tensor copy = contiguous(given);
  Argument argument(name, copy.get());
  argument.made = std::move(copy);
  return argument;
}
inline Argument dense(const char* name, const Tensor& given) { return dense(name, given.get()); }

// A new tensor of the shape and dtype that the core asked for, where `like` is. With `spatial` > 0 the channels, last
// for the core, stand before that many axes in the tensor.
inline Argument allocate(ats_tensor wanted, const ats_tensor& like, int spatial = 0) {
  require(wanted.dtype >= 0, "dtype: not one that the core has");
  wanted.device = like.device;
  wanted.device_index = like.device_index;
  ats::move_axis(wanted, wanted.ndim - 1, wanted.ndim - 1 - spatial);
  ats::set_strides(wanted);
  const int32_t device = like.device == ATS_CUDA ? aoti_torch_device_type_cuda() : aoti_torch_device_type_cpu();
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(wanted.ndim, wanted.shape, wanted.strides, dtypes()[wanted.dtype],
                                                  device, like.device_index, &handle));
  Argument result(Tensor(handle), wanted);
  ats::move_axis(result.view, wanted.ndim - 1 - spatial, wanted.ndim - 1);
  return result;
}

struct OptionalArgument {
  std::optional<Argument> argument;
  OptionalArgument(const char* name, const OptionalTensor& given) {
    if (given) argument = dense(name, given->get());
  }
  operator View() const { return argument ? &argument->view : nullptr; }
};

// Scratch memory: a little of it on the stack of the CPU, the rest from PyTorch's allocator. Never NULL.
struct Workspace {
  alignas(64) std::byte little[4096];
  void* data = little;
  std::optional<Argument> memory;

  Workspace(size_t bytes, const ats_tensor& like) {
    if (bytes > (like.device == ATS_CPU ? sizeof(little) : 0)) {
      ats_tensor wanted{};
      wanted.ndim = 1;
      wanted.shape[0] = static_cast<int64_t>(bytes);
      wanted.dtype = ATS_UINT8;
      data = memory.emplace(allocate(wanted, like)).view.data;
    }
  }
  Workspace(const Workspace&) = delete;
  operator void*() const { return data; }
};

template <size_t N>
void copy_sizes(const char* name, const Sizes& sizes, int64_t (&out)[N], size_t axes) {
  require(sizes.size() <= N, name, ": at most ", N, " values are taken");
  require(sizes.size() == axes, name, ": must have ", axes, " values, got ", sizes.size());
  std::copy(sizes.begin(), sizes.end(), out);
}

}  // namespace ats_torch
