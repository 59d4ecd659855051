// TensorFlow's tensors as the core's views: inputs, new outputs, scratch memory; its threads, or its stream of a GPU, as the
// core's executor.
#pragma once

#include <tensorflow/core/framework/op_kernel.h>
#include <tensorflow/core/platform/denormal.h>
#include <xla/stream_executor/stream.h>

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "options.h"

namespace ats_tensorflow {

using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;

// ---- tensors ----

// Where the kernel runs, and all of its tensors are but those that it was registered to have in the host's memory. Of
// CUDA's numbers for a GPU TensorFlow has it here, not its own (which count visible and logical devices).
inline void place(const OpKernelContext* context, ats_tensor& view) {
  const auto* gpu = context->device()->tensorflow_accelerator_device_info();
  view.device = gpu ? ATS_CUDA : ATS_CPU;
  view.device_index = gpu ? gpu->gpu_id : 0;
}

// The input of that number. TensorFlow's tensors are contiguous.
struct Input {
  ats_tensor view{};

  Input(OpKernelContext* context, int number, const std::string& name) {
    const Tensor& tensor = context->input(number);
    check_axes(name, tensor.dims());
    view.data = tensor.data();
    view.ndim = tensor.dims();
    view.dtype = core_dtype(tensor.dtype());
    for (int axis = 0; axis < view.ndim; ++axis) view.shape[axis] = tensor.dim_size(axis);
    ats::set_strides(view);
    if (context->op_kernel().input_memory_types()[number] == tensorflow::DEVICE_MEMORY) place(context, view);
  }
  operator View() const { return &view; }

  // The values of a short vector of sizes or numbers, which is in the host's memory.
  template <typename T>
  std::vector<T> values(const std::string& name) const {
    require(view.ndim == 1 && view.dtype == ats::dtype_of<T>(), name + ": must be a vector");
    const T* data = static_cast<const T*>(view.data);
    return data ? std::vector<T>(data, data + view.shape[0]) : std::vector<T>();
  }
};

// An input that is there or not: TensorFlow has it as a list of one or none. `number` is that of the list's first.
struct OptionalInput {
  std::optional<Input> input;
  OptionalInput(OpKernelContext* context, const char* name) {
    int begin = 0, end = 0;
    check(context->op_kernel().InputRange(name, &begin, &end));
    if (end > begin) input.emplace(context, begin, name);
  }
  operator View() const { return input ? &input->view : nullptr; }
};

// A new output of the shape and dtype that the core asked for. With `spatial` > 0 the channels, last for the core, stand
// before that many axes in the tensor.
struct Output {
  ats_tensor view;

  Output(OpKernelContext* context, int number, const ats_tensor& wanted, int spatial = 0) : view(wanted) {
    require(view.dtype >= 0 && kDtypes[view.dtype] == context->expected_output_dtype(number),
            "dtype: not the one that the core gives here");
    const int channels = view.ndim - 1 - spatial;
    ats::move_axis(view, view.ndim - 1, channels);
    ats::set_strides(view);
    TensorShape shape;
    for (int axis = 0; axis < view.ndim; ++axis) check(shape.AddDimWithStatus(view.shape[axis]));
    Tensor* tensor = nullptr;
    check(context->allocate_output(number, shape, &tensor));
    view.data = tensor->data();
    place(context, view);
    ats::move_axis(view, channels, view.ndim - 1);
  }
  operator View() const { return &view; }
};

// Scratch memory from TensorFlow's allocator. On a GPU it is given back while the work that uses it is still queued: all
// kernels of a TensorFlow device share one stream and one allocator, so whoever gets the memory next writes to it later in
// that stream. (Copies on other streams wait for the stream before they touch memory, and hold what they read.)
struct Workspace {
  Tensor memory;
  Workspace(OpKernelContext* context, size_t bytes) {
    if (bytes > 0)
      check(context->allocate_temp(tensorflow::DT_UINT8, TensorShape({static_cast<int64_t>(bytes)}), &memory));
  }
  operator void*() const { return memory.data(); }
};

// Work runs on TensorFlow's own threads: its setting of intra-op parallelism holds, and two pools do not fight for cores.
// On a GPU it runs on TensorFlow's stream.
struct Executor {
  ats_executor core{};

  explicit Executor(OpKernelContext* context) {
    if (context->device()->tensorflow_accelerator_device_info()) {
      core.stream = context->op_device_context()->stream()->platform_specific_handle().stream;
      return;
    }
    core.context = context->device()->tensorflow_cpu_worker_threads()->workers;
    core.parallel_for = [](void* workers, int64_t begin, int64_t end, int64_t grain, ats_body body, void* data) {
      using Pool = tensorflow::thread::ThreadPool;
      auto* threads = static_cast<Pool*>(workers);
      // By its old name, which TensorFlow 2.18 has too. A few ranges a thread, so that a slow one does not keep the others waiting.
      const int64_t ranges = 4 * (threads->NumThreads() + 1);
      const int64_t block = std::max<int64_t>({grain, (end - begin + ranges - 1) / ranges, 1});
      threads->ParallelFor(end - begin,
                           Pool::SchedulingParams(Pool::SchedulingStrategy::kFixedBlockSize, std::nullopt, block),
                           [=](int64_t from, int64_t to) {
                             const tensorflow::port::ScopedDontFlushDenormal keep_subnormals;
                             body(data, begin + from, begin + to);
                           });
    };
  }
  operator const ats_executor*() const { return &core; }
};

// A kernel is a function of the context and of options that are made of the attributes.
template <typename Options, void (*Run)(OpKernelContext*, const Options&)>
class Kernel : public tensorflow::OpKernel {
 public:
  explicit Kernel(OpKernelConstruction* context) : OpKernel(context) {
    try {
      options_.emplace(context);
    } catch (const Failure& failure) {
      context->CtxFailure(failure.status);
    }
  }

  void Compute(OpKernelContext* context) final {
    // TensorFlow runs kernels with subnormals taken for zero; the core's results are the same everywhere. (Before a GPU is
    // told what to do the host computes too.)
    const tensorflow::port::ScopedDontFlushDenormal keep_subnormals;
    try {
      Run(context, *options_);
    } catch (const Failure& failure) {
      context->CtxFailure(failure.status);
    }
  }

 private:
  std::optional<Options> options_;
};

}  // namespace ats_tensorflow
