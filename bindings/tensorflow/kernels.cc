// The kernels, the same for CPU and GPU. Each is the same five steps: views of the inputs, shape and allocation of the
// outputs, workspace, the call, the status. Rules and words are the core's, also where it was built without CUDA.
#include "tensors.h"

namespace ats_tensorflow {

// ---- Sample, TopK ----

// Outputs are probabilities, indices, threshold, log_mass; the core has indices first.
template <typename Shape, typename Size, typename Call>
void draw(OpKernelContext* context, const Input& attention, const ats_sample_options& options, Shape shape, Size size,
          Call call) {
  ats_tensor wanted[4] = {};
  size_t bytes = 0;
  check(shape(attention, &options, &wanted[0], &wanted[1], &wanted[2], &wanted[3]));
  check(size(attention, &options, &bytes));
  const Output probabilities(context, 0, wanted[1]), indices(context, 1, wanted[0]), threshold(context, 2, wanted[2]),
      log_mass(context, 3, wanted[3]);
  check(call(indices, probabilities, threshold, log_mass, Workspace(context, bytes)));
}

void sample(OpKernelContext* context, const SampleOptions& options) {
  const Input attention(context, 0, "attention"), rng(context, 1, "rng");
  const Executor executor(context);
  draw(context, attention, options.core, ats_sample_shape, ats_sample_workspace,
       [&](View indices, View probabilities, View threshold, View log_mass, void* workspace) {
         return ats_sample(attention, rng, &options.core, indices, probabilities, threshold, log_mass, workspace,
                           executor);
       });
}

void topk(OpKernelContext* context, const DrawOptions& options) {
  const Input attention(context, 0, "attention");
  const Executor executor(context);
  draw(context, attention, options.core, ats_topk_shape, ats_topk_workspace,
       [&](View indices, View probabilities, View threshold, View log_mass, void* workspace) {
         return ats_topk(attention, &options.core, indices, probabilities, threshold, log_mass, workspace, executor);
       });
}

void sample_grad(OpKernelContext* context, const LogitsOption& option) {
  const Input grad(context, 0, "grad"), attention(context, 1, "attention"), indices(context, 2, "indices"),
      probabilities(context, 3, "probabilities"), log_mass(context, 4, "log_mass");
  const Output d_attention(context, 0, attention.view);
  check(ats_sample_backward(grad, attention, indices, probabilities, log_mass, option.logits, d_attention,
                            Executor(context)));
}

// ---- Locate, ExtractPatches ----

void locate(OpKernelContext* context, const LocateOptions& given) {
  const Input indices(context, 0, "indices"), grid(context, 1, "grid"), low(context, 2, "low_shape"),
      image(context, 3, "image_shape");
  const ats_locate_options options =
      given.core(grid.values<int64_t>("grid"), low.values<int64_t>("low_shape"), image.values<int64_t>("image_shape"));
  ats_tensor wanted{};
  check(ats_locate_shape(indices, &options, &wanted));
  const Output origins(context, 0, wanted);
  check(ats_locate(indices, &options, origins, Executor(context)));
}

void extract_patches(OpKernelContext* context, const PatchesOptions& given) {
  Input image(context, 0, "image");
  const Input origins(context, 1, "origins");
  const auto fill = Input(context, 2, "fill").values<double>("fill"),
             mean = Input(context, 3, "mean").values<double>("mean"),
             std = Input(context, 4, "std").values<double>("std");
  const ats_patches_options options = given.with(fill, mean, std);
  if (given.channels_first) ats::move_axis(image.view, 1, image.view.ndim - 1);
  ats_tensor wanted{};
  check(ats_extract_patches_shape(image, origins, &options, &wanted));
  const Output patches(context, 0, wanted, given.channels_first ? options.spatial : 0);
  check(ats_extract_patches(image, origins, &options, patches, Executor(context)));
}

// options.core.dtype is that of the gradient, as the image's.
void extract_patches_grad(OpKernelContext* context, const PatchesOptions& given) {
  Input grad(context, 0, "grad");
  const Input origins(context, 1, "origins");
  const Sizes image_shape = Input(context, 2, "image_shape").values<int64_t>("image_shape");
  const auto std = Input(context, 3, "std").values<double>("std");
  ats_patches_options options = given.with({0.0}, {}, std);
  ats_tensor wanted{};
  wanted.ndim = static_cast<int32_t>(image_shape.size());
  wanted.dtype = options.dtype;
  copy_sizes("image_shape", image_shape, wanted.shape, static_cast<size_t>(options.spatial) + 2);
  TensorShape possible;
  require(TensorShape::BuildTensorShape(image_shape, &possible).ok(),
          "image_shape: must not be negative, nor have too many elements for 64 bits");
  if (given.channels_first) {
    ats::move_axis(grad.view, 2 + (options.n_scales > 0), grad.view.ndim - 1);
    ats::move_axis(wanted, 1, wanted.ndim - 1);
  }
  const Output d_image(context, 0, wanted, given.channels_first ? options.spatial : 0);
  size_t bytes = 0;
  check(ats_extract_patches_backward_workspace(d_image, &bytes));
  check(ats_extract_patches_backward(grad, origins, &options, d_image, Workspace(context, bytes), Executor(context)));
}

// ---- Expectation, EstimatorArrays ----

void expectation(OpKernelContext* context, const EstimatorOption& option) {
  const Input features(context, 0, "features"), attention(context, 1, "attention");
  const OptionalInput threshold(context, "threshold"), weights(context, "weights");
  ats_tensor wanted{};
  size_t bytes = 0;
  check(ats_expectation_shape(features, attention, threshold, weights, option.estimator, &wanted));
  check(ats_expectation_workspace(attention, &bytes));
  const Output expected(context, 0, wanted);
  check(ats_expectation(features, attention, threshold, weights, option.estimator, expected, Workspace(context, bytes),
                        Executor(context)));
}

void expectation_grad(OpKernelContext* context, const EstimatorOption& option) {
  const Input grad(context, 0, "grad"), features(context, 1, "features"), attention(context, 2, "attention");
  const OptionalInput threshold(context, "threshold"), weights(context, "weights");
  ats_tensor expected{};
  size_t bytes = 0;
  check(ats_expectation_shape(features, attention, threshold, weights, option.estimator, &expected));
  check(ats_expectation_backward_workspace(attention, &bytes));
  const Output d_features(context, 0, features.view), d_attention(context, 1, attention.view);
  check(ats_expectation_backward(grad, features, attention, threshold, weights, option.estimator, d_features,
                                 d_attention, Workspace(context, bytes), Executor(context)));
}

void estimator_arrays(OpKernelContext* context, const EstimatorOption& option) {
  const Input attention(context, 0, "attention");
  const OptionalInput threshold(context, "threshold"), weights(context, "weights");
  ats_tensor wanted[2] = {};
  size_t bytes = 0;
  check(ats_estimator_arrays_shape(attention, threshold, weights, option.estimator, &wanted[0], &wanted[1]));
  check(ats_estimator_arrays_workspace(attention, &bytes));
  const Output c(context, 0, wanted[0]), m(context, 1, wanted[1]);
  check(ats_estimator_arrays(attention, threshold, weights, option.estimator, c, m, Workspace(context, bytes),
                             Executor(context)));
}

// ---- registration: one kernel for all dtypes, on either device ----

// Inputs named by HostMemory are those that the host reads. rng is not among them: a GPU reads its own, where Keras's seed
// generators have theirs, and nobody waits for it.
#define ATS_REGISTER(kernel, ...)                                              \
  REGISTER_KERNEL_BUILDER(kernel.Device(tensorflow::DEVICE_CPU), __VA_ARGS__); \
  REGISTER_KERNEL_BUILDER(kernel.Device(tensorflow::DEVICE_GPU), __VA_ARGS__)

ATS_REGISTER(Name("Ats>Sample"), Kernel<SampleOptions, sample>);
ATS_REGISTER(Name("Ats>TopK"), Kernel<DrawOptions, topk>);
ATS_REGISTER(Name("Ats>SampleGrad"), Kernel<LogitsOption, sample_grad>);
ATS_REGISTER(Name("Ats>Locate").HostMemory("grid").HostMemory("low_shape").HostMemory("image_shape"),
             Kernel<LocateOptions, locate>);
ATS_REGISTER(Name("Ats>ExtractPatches").HostMemory("fill").HostMemory("mean").HostMemory("std"),
             Kernel<PatchesOptions, extract_patches>);
ATS_REGISTER(Name("Ats>ExtractPatchesGrad").HostMemory("image_shape").HostMemory("std"),
             Kernel<PatchesOptions, extract_patches_grad>);
ATS_REGISTER(Name("Ats>Expectation"), Kernel<EstimatorOption, expectation>);
ATS_REGISTER(Name("Ats>ExpectationGrad"), Kernel<EstimatorOption, expectation_grad>);
ATS_REGISTER(Name("Ats>EstimatorArrays"), Kernel<EstimatorOption, estimator_arrays>);

}  // namespace ats_tensorflow
