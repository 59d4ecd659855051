// The operations of libats for TensorFlow: their signatures and shape functions, which ask the core's shape rules with the
// sizes known so far. Kernels are in kernels.cc, gradients in ats_core/tensorflow/_ops.py. Types have no constraints here,
// so that the core can refuse them in its own words.
#include <tensorflow/core/framework/op.h>
#include <tensorflow/core/framework/shape_inference.h>

#include <optional>
#include <tuple>

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

// The description of an input, sizes -1 where unknown; nothing when not even the number of axes is known.
std::optional<ats_tensor> described(InferenceContext* context, int number, DataType dtype) {
  const auto shape = context->input(number);
  if (!context->RankKnown(shape)) return std::nullopt;
  ats_tensor view{};
  view.ndim = context->Rank(shape);
  view.dtype = core_dtype(dtype);
  require(view.ndim <= ATS_MAX_DIMS, "a tensor has " + std::to_string(view.ndim) + " axes, at most " +
                                         std::to_string(ATS_MAX_DIMS) + " are taken");
  for (int axis = 0; axis < view.ndim; ++axis) view.shape[axis] = context->Value(context->Dim(shape, axis));
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

void set_unknown(InferenceContext* context) {
  for (int i = 0; i < context->num_outputs(); ++i) context->set_output(i, context->UnknownShape());
}

// ---- shape functions ----

template <typename Options, typename Shape>
void draw_shape(InferenceContext* context, Shape shape) {
  const auto attention = described(context, 0, attribute<DataType>(context, "T"));
  if (!attention) return set_unknown(context);
  const Options options(context);
  ats_tensor wanted[4] = {};
  check(shape(&*attention, &options.core, &wanted[0], &wanted[1], &wanted[2], &wanted[3]));
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

// The sizes in an input if they are known by now, otherwise ones that no rule refuses.
Sizes known_sizes(InferenceContext* context, int number, const Sizes& otherwise) {
  const Tensor* tensor = context->input_tensor(number);
  if (!tensor || tensor->dims() != 1 || tensor->dtype() != tensorflow::DT_INT64) return otherwise;
  const auto values = tensor->vec<int64_t>();
  return Sizes(values.data(), values.data() + values.size());
}

void locate_shape(InferenceContext* context) {
  const auto indices = described(context, 0, attribute<DataType>(context, "T"));
  if (!indices) return set_unknown(context);
  const LocateOptions given(context);
  Sizes above = given.receptive_field;
  for (int64_t& size : above) ++size;
  const Sizes ones(given.patch.size(), 1);
  const ats_locate_options options =
      given.core(known_sizes(context, 1, ones), known_sizes(context, 2, above), known_sizes(context, 3, ones));
  ats_tensor wanted{};
  check(ats_locate_shape(&*indices, &options, &wanted));
  set_output(context, 0, wanted);
}

void extract_patches_shape(InferenceContext* context) {
  auto image = described(context, 0, attribute<DataType>(context, "T"));
  auto origins = described(context, 1, attribute<DataType>(context, "I"));
  if (!image || !origins) return set_unknown(context);
  const PatchesOptions options(context);
  if (options.channels_first) ats::move_axis(*image, 1, image->ndim - 1);
  ats_tensor wanted{};
  check(ats_extract_patches_shape(&*image, &*origins, &options.core, &wanted));
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
  bool known = true;
  DescribedOptions(InferenceContext* context, int first) {
    for (const auto& [count, dtype, view] :
         {std::tuple("n_threshold", "H", &threshold), std::tuple("n_weights", "W", &weights)})
      if (attribute<int64_t>(context, count) > 0) {
        *view = described(context, first++, attribute<DataType>(context, dtype));
        known = known && view->has_value();
      }
  }
  static View pointer(const std::optional<ats_tensor>& view) { return view ? &*view : nullptr; }
};

void expectation_shape(InferenceContext* context) {
  const auto real = attribute<DataType>(context, "R");
  const auto features = described(context, 0, attribute<DataType>(context, "T")),
             attention = described(context, 1, real);
  const DescribedOptions options(context, 2);
  if (!features || !attention || !options.known) return set_unknown(context);
  ats_tensor wanted{};
  check(ats_expectation_shape(&*features, &*attention, options.pointer(options.threshold),
                              options.pointer(options.weights), EstimatorOption(context).estimator, &wanted));
  set_output(context, 0, wanted);
}

void expectation_grad_shape(InferenceContext* context) {
  context->set_output(0, context->input(1));
  context->set_output(1, context->input(2));
}

void estimator_arrays_shape(InferenceContext* context) {
  const auto real = attribute<DataType>(context, "R");
  const auto attention = described(context, 0, real);
  const DescribedOptions options(context, 1);
  if (!attention || !options.known) return set_unknown(context);
  ats_tensor wanted[2] = {};
  check(ats_estimator_arrays_shape(&*attention, options.pointer(options.threshold), options.pointer(options.weights),
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
