// The attributes of TensorFlow's operations as the core's options, for kernels and shape functions alike; its dtypes; and
// the core's status as an exception, which Kernel and shape_function turn into TensorFlow's.
#pragma once

#include <ats/ats.hpp>
#include <tensorflow/core/framework/types.h>

#include <algorithm>
#include <array>
#include <string>
#include <vector>

namespace ats_tensorflow {

using tensorflow::DataType;
using View = const ats_tensor*;
using Sizes = std::vector<int64_t>;

struct Failure {
  absl::Status status;
};

inline void check(const absl::Status& status) {
  if (!status.ok()) throw Failure{status};
}

inline void check(int status) {
  if (status == ATS_OK) return;
  const char* message = ats_last_error();
  if (status == ATS_INVALID_ARGUMENT) throw Failure{absl::InvalidArgumentError(message)};
  if (status == ATS_OUT_OF_MEMORY) throw Failure{absl::ResourceExhaustedError(message)};
  if (status == ATS_UNSUPPORTED) throw Failure{absl::UnimplementedError(message)};
  throw Failure{absl::InternalError(message)};
}

inline void require(bool condition, const std::string& message) {
  if (!condition) throw Failure{absl::InvalidArgumentError(message)};
}

inline void check_axes(const std::string& name, int axes) {
  require(axes <= ATS_MAX_DIMS,
          name + ": has " + std::to_string(axes) + " axes, at most " + std::to_string(ATS_MAX_DIMS) + " are taken");
}

// ---- dtypes: TensorFlow's code for each ats_dtype, in that enumeration's order ----

constexpr std::array<DataType, ATS_INT64 + 1> kDtypes = {
    tensorflow::DT_UINT8,    tensorflow::DT_INT16, tensorflow::DT_UINT16, tensorflow::DT_HALF,
    tensorflow::DT_BFLOAT16, tensorflow::DT_FLOAT, tensorflow::DT_DOUBLE, tensorflow::DT_INT64};

// For a dtype that the core does not have, -1, which it refuses in its own words.
inline int32_t core_dtype(DataType dtype) {
  const auto found = std::find(kDtypes.begin(), kDtypes.end(), dtype);
  return found == kDtypes.end() ? -1 : static_cast<int32_t>(found - kDtypes.begin());
}

// ---- attributes: Context is OpKernelConstruction or InferenceContext ----

template <typename T, typename Context>
T attribute(Context* context, const char* name) {
  T value{};
  check(context->GetAttr(name, &value));
  return value;
}

template <size_t N>
void copy_sizes(const std::string& name, const Sizes& sizes, int64_t (&out)[N], size_t axes) {
  require(sizes.size() <= N, name + ": at most " + std::to_string(N) + " values are taken");
  require(sizes.size() == axes,
          name + ": must have " + std::to_string(axes) + " values, got " + std::to_string(sizes.size()));
  std::copy(sizes.begin(), sizes.end(), out);
}

struct DrawOptions {
  ats_sample_options core{};
  template <typename Context>
  explicit DrawOptions(Context* context) {
    core.n = attribute<int64_t>(context, "n");
    core.logits = attribute<bool>(context, "logits");
  }
};

struct SampleOptions : DrawOptions {
  template <typename Context>
  explicit SampleOptions(Context* context) : DrawOptions(context) {
    core.replace = attribute<bool>(context, "replace");
  }
};

struct LogitsOption {
  bool logits;
  template <typename Context>
  explicit LogitsOption(Context* context) : logits(attribute<bool>(context, "logits")) {}
};

struct LocateOptions {
  Sizes patch, receptive_field;
  template <typename Context>
  explicit LocateOptions(Context* context)
      : patch(attribute<Sizes>(context, "patch_size")), receptive_field(attribute<Sizes>(context, "receptive_field")) {}

  ats_locate_options core(const Sizes& grid, const Sizes& low, const Sizes& image) const {
    ats_locate_options options{};
    options.spatial = static_cast<int32_t>(patch.size());
    copy_sizes("patch_size", patch, options.patch, patch.size());
    copy_sizes("grid", grid, options.grid, patch.size());
    copy_sizes("low_shape", low, options.low, patch.size());
    copy_sizes("image_shape", image, options.image, patch.size());
    copy_sizes("receptive_field", receptive_field, options.receptive_field, patch.size());
    return options;
  }
};

struct PatchesOptions {
  ats_patches_options core{};
  bool channels_first;

  template <typename Context>
  explicit PatchesOptions(Context* context) : channels_first(attribute<bool>(context, "channels_first")) {
    const auto patch = attribute<Sizes>(context, "patch_size"), scales = attribute<Sizes>(context, "scales");
    core.spatial = static_cast<int32_t>(patch.size());
    copy_sizes("patch_size", patch, core.patch, patch.size());
    core.n_scales = static_cast<int32_t>(scales.size());
    copy_sizes("scales", scales, core.scales, scales.size());
    check(ats_padding_by_name(attribute<std::string>(context, "padding").c_str(), &core.padding));
    core.dtype = core_dtype(attribute<DataType>(context, "dtype"));
  }

  // With what stands in inputs; an empty one stands for none.
  ats_patches_options with(const std::vector<double>& fill, const std::vector<double>& mean,
                           const std::vector<double>& std) const {
    ats_patches_options options = core;
    require(fill.size() == 1, "fill: must be one number");
    options.fill = fill[0];
    if (!mean.empty()) options.mean = mean.data(), options.n_mean = static_cast<int64_t>(mean.size());
    if (!std.empty()) options.std = std.data(), options.n_std = static_cast<int64_t>(std.size());
    return options;
  }
};

inline int32_t estimator_of(const std::string& name) {
  int32_t estimator = 0;
  check(ats_estimator_by_name(name.c_str(), &estimator));
  return estimator;
}

struct EstimatorOption {
  int32_t estimator;
  template <typename Context>
  explicit EstimatorOption(Context* context) : estimator(estimator_of(attribute<std::string>(context, "estimator"))) {}
};

}  // namespace ats_tensorflow
