// A GPU for TensorFlow on a machine without one: its memory is the host's, its stream is a number, and it counts the copies
// to the host, each of which would wait for a real one. A program loads this before TensorFlow looks for devices.
#include <tensorflow/core/common_runtime/local_device.h>
#include <tensorflow/core/framework/device_factory.h>
#include <tensorflow/core/framework/op_kernel.h>
#include <tensorflow/core/public/session_options.h>
#include <xla/stream_executor/stream.h>

#include <atomic>
#include <cstring>

namespace {

namespace se = stream_executor;
using namespace tensorflow;

std::atomic<int> copies_to_host{0}, streams_asked{0};

struct PretendedStream : se::Stream {
  std::string name = "pretended";

  PlatformSpecificHandle platform_specific_handle() const override {
    ++streams_asked;
    return {reinterpret_cast<void*>(1)};
  }
  bool ok() const override { return true; }
  absl::Status BlockHostUntilDone() override { return absl::OkStatus(); }

  // What nobody asks of it.
  static absl::Status no() { return absl::UnimplementedError("pretended_gpu"); }
  absl::StatusOr<se::Stream*> GetOrCreateSubStream() override { return no(); }
  void ReturnSubStream(se::Stream*) override {}
  absl::Status WaitFor(se::Stream*) override { return no(); }
  absl::Status WaitFor(se::Event*) override { return no(); }
  absl::Status RecordEvent(se::Event*) override { return no(); }
  absl::Status Memcpy(void*, const se::DeviceAddressBase&, uint64_t) override { return no(); }
  absl::Status Memcpy(se::DeviceAddressBase*, const void*, uint64_t) override { return no(); }
  absl::Status DoHostCallbackWithStatus(absl::AnyInvocable<absl::Status() &&>) override { return no(); }
  se::StreamExecutor* parent() const override { return nullptr; }
  se::CudaComputeCapability GetCudaComputeCapability() const override { return {}; }
  se::RocmComputeCapability GetRocmComputeCapability() const override { std::abort(); }
  se::OneAPIComputeCapability GetOneAPIComputeCapability() const override { std::abort(); }
  std::variant<se::StreamPriority, int> priority() const override { return 0; }
  const std::string& GetName() const override { return name; }
  void SetName(std::string name_) override { name = name_; }
};

struct PretendedContext : DeviceContext {
  mutable PretendedStream pretended;

  static void copy(const Tensor* from, Tensor* to, const StatusCallback& done) {
    if (from->TotalBytes() > 0) std::memcpy(to->data(), from->data(), from->TotalBytes());
    done(absl::OkStatus());
  }
  se::Stream* stream() const override { return &pretended; }
  void CopyCPUTensorToDevice(const Tensor* from, Device*, Tensor* to, StatusCallback done, bool) const override {
    copy(from, to, done);
  }
  void CopyTensorInSameDevice(const Tensor* from, Device*, Tensor* to, StatusCallback done) const override {
    copy(from, to, done);
  }
  void CopyDeviceTensorToCPU(const Tensor* from, absl::string_view, Device*, Tensor* to, StatusCallback done) override {
    ++copies_to_host;
    copy(from, to, done);
  }
};

struct PretendedGpu : LocalDevice {
  core::RefCountPtr<PretendedContext> context{new PretendedContext};
  AcceleratorDeviceInfo info;

  PretendedGpu(const SessionOptions& options, const std::string& name)
      : LocalDevice(options, Device::BuildDeviceAttributes(name, DEVICE_GPU, Bytes(1 << 30), DeviceLocality())) {
    info.stream = context->stream();
    info.default_context = context.get();
    info.gpu_id = 3;
    set_tensorflow_accelerator_device_info(&info);
  }
  Allocator* GetAllocator(AllocatorAttributes) override { return cpu_allocator(); }
  absl::Status MakeTensorFromProto(const TensorProto& proto, const AllocatorAttributes, Tensor* tensor) override {
    return tensor->FromProto(cpu_allocator(), proto) ? absl::OkStatus() : absl::InternalError("a tensor of nothing");
  }
  absl::Status Sync() override { return absl::OkStatus(); }
  absl::Status TryGetDeviceContext(DeviceContext** out) override {
    context->Ref();
    *out = context.get();
    return absl::OkStatus();
  }
};

struct Factory : DeviceFactory {
  absl::Status ListPhysicalDevices(std::vector<std::string>* devices) override {
    devices->push_back("/physical_device:GPU:0");
    return absl::OkStatus();
  }
  absl::Status CreateDevices(const SessionOptions& options, const std::string& prefix,
                             std::vector<std::unique_ptr<Device>>* devices) override {
    devices->push_back(std::make_unique<PretendedGpu>(options, prefix + "/device:GPU:0"));
    return absl::OkStatus();
  }
};

const bool registered = (DeviceFactory::Register("GPU", std::make_unique<Factory>(), 210, false), true);

}  // namespace

extern "C" int take_copies_to_host() { return copies_to_host.exchange(0); }
extern "C" int take_streams_asked() { return streams_asked.exchange(0); }
