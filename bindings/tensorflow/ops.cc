// The operations of libats for TensorFlow: their signatures and shape functions, which ask the core's shape rules with the
// sizes known so far. Kernels are in kernels.cc, gradients in ats_core/tensorflow/_ops.py. Types have no constraints here,
// so that the core can refuse them in its own words.
#include <tensorflow/core/framework/op.h>
#include <tensorflow/core/framework/shape_inference.h>

#include <optional>

#include "options.h"

namespace ats_tensorflow {

using tensorflow::Tensor;
using tensorflow::shape_inference::InferenceContext;

template <void (*Run)(InferenceContext*)>
absl::Status shape_function(InferenceContext* context) {
  try {
    Run(context);
  } catch (const Failure& failure) {
    return failure.status;
  }
  return absl::OkStatus();
}

// The description of an input, sizes -1 where unknown. Where not even the number of axes is known it has `axes`, with
// which the rest is checked and what follows from it is known.
ats_tensor described(InferenceContext* context, int number, const char* name, const char* type, int axes) {
  const auto shape = context->input(number);
  const bool known = context->RankKnown(shape);
  ats_tensor view{};
  view.ndim = known ? context->Rank(shape) : axes;
  view.dtype = core_dtype(attribute<DataType>(context, type));
  check_axes(name, view.ndim);
  for (int axis = 0; axis < view.ndim; ++axis)
    view.shape[axis] = known ? context->Value(context->Dim(shape, axis)) : -1;
  ats::set_strides(view);
  return view;
}

void set_output(InferenceContext* context, int number, ats_tensor wanted, int spatial = 0) {
  ats::move_axis(wanted, wanted.ndim - 1, wanted.ndim - 1 - spatial);
  std::vector<tensorflow::shape_inference::DimensionHandle> sizes;
  for (int axis = 0; axis < wanted.ndim; ++axis)
    sizes.push_back(wanted.shape[axis] < 0 ? context->UnknownDim() : context->MakeDim(wanted.shape[axis]));
  context->set_output(number, context->MakeShape(sizes));
}

// ---- shape functions ----

template <typename Options, typename Shape>
void draw_shape(InferenceContext* context, Shape shape) {
  const ats_tensor attention = described(context, 0, "attention", "T", 2);
  const Options options(context);
  ats_tensor wanted[4] = {};
  check(shape(&attention, &options.core, &wanted[0], &wanted[1], &wanted[2], &wanted[3]));
  const int order[4] = {1, 0, 2, 3};
  for (int i = 0; i < 4; ++i) set_output(context, i, wanted[order[i]]);
}

void sample_shape(InferenceContext* context) { draw_shape<SampleOptions>(context, ats_sample_shape); }
void topk_shape(InferenceContext* context) { draw_shape<DrawOptions>(context, ats_topk_shape); }

// The gradient has the shape of what it is the gradient of.
template <int Number>
void shape_of_input(InferenceContext* context) {
  context->set_output(0, context->input(Number));
}

// The sizes in an input if they are known by now.
std::optional<Sizes> known_sizes(InferenceContext* context, int number) {
  const Tensor* tensor = context->input_tensor(number);
  if (!tensor || tensor->dims() != 1 || tensor->dtype() != tensorflow::DT_INT64) return std::nullopt;
  const auto values = tensor->vec<int64_t>();
  return Sizes(values.data(), values.data() + values.size());
}

void locate_shape(InferenceContext* context) {
  const ats_tensor indices = described(context, 0, "indices", "T", 2);
  LocateOptions given(context);
  const Sizes ones(given.patch.size(), 1);  // no rule refuses them, but for a receptive field
  const auto grid = known_sizes(context, 1), low = known_sizes(context, 2), image = known_sizes(context, 3);
  if (!low) std::fill(given.receptive_field.begin(), given.receptive_field.end(), 0);
  const ats_locate_options options = given.core(grid.value_or(ones), low.value_or(ones), image.value_or(ones));
  ats_tensor wanted{};
  check(ats_locate_shape(&indices, &options, &wanted));
  set_output(context, 0, wanted);
}

void extract_patches_shape(InferenceContext* context) {
  const PatchesOptions options(context);
  ats_tensor image = described(context, 0, "image", "T", options.core.spatial + 2);
  const ats_tensor origins = described(context, 1, "origins", "I", 3);
  if (options.channels_first) ats::move_axis(image, 1, image.ndim - 1);
  ats_tensor wanted{};
  check(ats_extract_patches_shape(&image, &origins, &options.core, &wanted));
  set_output(context, 0, wanted, options.channels_first ? options.core.spatial : 0);
}

void extract_patches_grad_shape(InferenceContext* context) {
  tensorflow::shape_inference::ShapeHandle shape;
  check(context->MakeShapeFromShapeTensor(2, &shape));
  context->set_output(0, shape);
}

// The optional inputs of an estimator, which begin at `first` in the list of inputs: threshold, then weights.
struct DescribedOptions {
  std::optional<ats_tensor> threshold, weights;
  DescribedOptions(InferenceContext* context, int first) {
    if (attribute<int64_t>(context, "n_threshold") > 0) threshold = described(context, first++, "threshold", "H", 1);
    if (attribute<int64_t>(context, "n_weights") > 0) weights = described(context, first, "weights", "W", 1);
  }
  static View pointer(const std::optional<ats_tensor>& view) { return view ? &*view : nullptr; }
};

void expectation_shape(InferenceContext* context) {
  const ats_tensor features = described(context, 0, "features", "T", 2),
                   attention = described(context, 1, "attention", "R", 2);
  const DescribedOptions options(context, 2);
  ats_tensor wanted{};
  check(ats_expectation_shape(&features, &attention, options.pointer(options.threshold),
                              options.pointer(options.weights), EstimatorOption(context).estimator, &wanted));
  if (context->RankKnown(context->input(0))) set_output(context, 0, wanted);
  else context->set_output(0, context->UnknownShape());
}

void expectation_grad_shape(InferenceContext* context) {
  context->set_output(0, context->input(1));
  context->set_output(1, context->input(2));
}

void estimator_arrays_shape(InferenceContext* context) {
  const ats_tensor attention = described(context, 0, "attention", "R", 2);
  const DescribedOptions options(context, 1);
  ats_tensor wanted[2] = {};
  check(ats_estimator_arrays_shape(&attention, options.pointer(options.threshold), options.pointer(options.weights),
                                   EstimatorOption(context).estimator, &wanted[0], &wanted[1]));
  set_output(context, 0, wanted[0]);
  set_output(context, 1, wanted[1]);
}

// ---- signatures ----

// R is float64 for a float64 map, float32 otherwise. A list of one or none stands for an input that may be left out.
REGISTER_OP("Ats>Sample")
    .Input("attention: T")
    .Input("rng: I")
    .Output("probabilities: R")
    .Output("indices: int64")
    .Output("threshold: R")
    .Output("log_mass: double")
    .Attr("n: int")
    .Attr("replace: bool")
    .Attr("logits: bool")
    .Attr("T: type")
    .Attr("I: type")
    .Attr("R: type")
    .SetShapeFn(shape_function<sample_shape>);

REGISTER_OP("Ats>TopK")
    .Input("attention: T")
    .Output("probabilities: R")
    .Output("indices: int64")
    .Output("threshold: R")
    .Output("log_mass: double")
    .Attr("n: int")
    .Attr("logits: bool")
    .Attr("T: type")
    .Attr("R: type")
    .SetShapeFn(shape_function<topk_shape>);

REGISTER_OP("Ats>SampleGrad")
    .Input("grad: R")
    .Input("attention: T")
    .Input("indices: int64")
    .Input("probabilities: R")
    .Input("log_mass: double")
    .Output("d_attention: T")
    .Attr("logits: bool")
    .Attr("T: type")
    .Attr("R: type")
    .SetShapeFn(shape_function<shape_of_input<1>>);

REGISTER_OP("Ats>Locate")
    .Input("indices: T")
    .Input("grid: int64")
    .Input("low_shape: int64")
    .Input("image_shape: int64")
    .Output("origins: int64")
    .Attr("patch_size: list(int)")
    .Attr("receptive_field: list(int)")
    .Attr("T: type")
    .SetShapeFn(shape_function<locate_shape>);

// fill, mean and std are inputs because attributes of numbers have 32 bits; an empty mean or std stands for none.
REGISTER_OP("Ats>ExtractPatches")
    .Input("image: T")
    .Input("origins: I")
    .Input("fill: double")
    .Input("mean: double")
    .Input("std: double")
    .Output("patches: dtype")
    .Attr("patch_size: list(int)")
    .Attr("scales: list(int)")
    .Attr("padding: string")
    .Attr("channels_first: bool")
    .Attr("dtype: type")
    .Attr("T: type")
    .Attr("I: type")
    .SetShapeFn(shape_function<extract_patches_shape>);

REGISTER_OP("Ats>ExtractPatchesGrad")
    .Input("grad: T")
    .Input("origins: I")
    .Input("image_shape: int64")
    .Input("std: double")
    .Output("d_image: dtype")
    .Attr("patch_size: list(int)")
    .Attr("scales: list(int)")
    .Attr("padding: string")
    .Attr("channels_first: bool")
    .Attr("dtype: type")
    .Attr("T: type")
    .Attr("I: type")
    .SetShapeFn(shape_function<extract_patches_grad_shape>);

REGISTER_OP("Ats>Expectation")
    .Input("features: T")
    .Input("attention: R")
    .Input("threshold: n_threshold * H")
    .Input("weights: n_weights * W")
    .Output("expected: T")
    .Attr("estimator: string")
    .Attr("n_threshold: int >= 0")
    .Attr("n_weights: int >= 0")
    .Attr("T: type")
    .Attr("R: type")
    .Attr("H: type = DT_FLOAT")
    .Attr("W: type = DT_FLOAT")
    .SetShapeFn(shape_function<expectation_shape>);

REGISTER_OP("Ats>ExpectationGrad")
    .Input("grad: G")
    .Input("features: T")
    .Input("attention: R")
    .Input("threshold: n_threshold * H")
    .Input("weights: n_weights * W")
    .Output("d_features: T")
    .Output("d_attention: R")
    .Attr("estimator: string")
    .Attr("n_threshold: int >= 0")
    .Attr("n_weights: int >= 0")
    .Attr("T: type")
    .Attr("R: type")
    .Attr("H: type = DT_FLOAT")
    .Attr("W: type = DT_FLOAT")
    .Attr("G: type")
    .SetShapeFn(shape_function<expectation_grad_shape>);

REGISTER_OP("Ats>EstimatorArrays")
    .Input("attention: R")
    .Input("threshold: n_threshold * H")
    .Input("weights: n_weights * W")
    .Output("c: R")
    .Output("m: R")
    .Attr("estimator: string")
    .Attr("n_threshold: int >= 0")
    .Attr("n_weights: int >= 0")
    .Attr("R: type")
    .Attr("H: type = DT_FLOAT")
    .Attr("W: type = DT_FLOAT")
    .SetShapeFn(shape_function<estimator_arrays_shape>);

}  // namespace ats_tensorflow
