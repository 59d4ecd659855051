// How a kernel is written and launched. A kernel is a struct: its members are the arguments, kThreads is the largest
// block it is launched with, and operator() is what a thread does. A test may compile the same source for the CPU
// (tests/cuda/emulation), so nothing here is CUDA's own syntax, and launches go through cudaLaunchKernel.
//
// Nothing here allocates or waits: work is queued on the caller's stream, and CUDA graphs may record it.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <string>

#include "core.h"

namespace ats::cuda {

constexpr int kWarp = 32;
constexpr unsigned kWholeWarp = 0xffffffffu;
constexpr size_t kMostShared = 64 * 1024;  // that every GPU has
constexpr size_t kArgumentBytes = 4096;    // of a kernel, before CUDA 12.1

inline void check(const char* op, cudaError_t error) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // an error of a launch is not left for others to find
  throw Error(ATS_INTERNAL, std::string(op) + ": CUDA: " + cudaGetErrorString(error));
}

// The GPU that a tensor is on, for as long as this lives.
class DeviceGuard {
 public:
  DeviceGuard(const char* op, int device) : op_(op) {
    check(op, cudaGetDevice(&before_));
    if (device != before_) check(op, cudaSetDevice(device));
    changed_ = device != before_;
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  const char* op_;
  int before_ = 0;
  bool changed_ = false;
};

inline cudaStream_t stream_of(const ats_executor* executor) {
  return executor ? static_cast<cudaStream_t>(executor->stream) : nullptr;
}

template <typename Kernel>
__global__ void __launch_bounds__(Kernel::kThreads) run_kernel(const __grid_constant__ Kernel kernel) {
  kernel();
}

// Where an operation's kernels go: what an error is called by, and the stream.
struct Queue {
  const char* op;
  cudaStream_t stream;

  template <typename Kernel>
  void launch(const Kernel& kernel, int64_t blocks, int threads = Kernel::kThreads, size_t shared_bytes = 0) const {
    if (blocks <= 0) return;
    void (*const function)(Kernel) = run_kernel<Kernel>;
    static_assert(sizeof(Kernel) <= kArgumentBytes, "more than a kernel's arguments");
    if (shared_bytes > kMostShared) throw Error(ATS_INTERNAL, std::string(op) + ": too much shared memory");
    // More than 48 KB has to be asked for; always the same, so that threads that launch at once do not undo each other.
    if (shared_bytes > 48 * 1024)
      check(op, cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, int(kMostShared)));
    void* arguments[] = {const_cast<Kernel*>(&kernel)};
    check(op,
          cudaLaunchKernel(function, dim3(unsigned(blocks)), dim3(unsigned(threads)), arguments, shared_bytes, stream));
  }
};

// Blocks for `items`, `per_block` each; kernels step by grid_stride() over what a grid of this size leaves.
constexpr int64_t kMostBlocks = int64_t(1) << 30;
inline int64_t blocks_for(int64_t items, int64_t per_block) {
  return std::min((items + per_block - 1) / per_block, kMostBlocks);
}

// ---- on the device ------------------------------------------------------------------------------------------------
#if defined(__CUDACC__)
extern __shared__ uint4 dynamic_shared[];
// Asks for a line of memory that will be read, and does not wait for it.
__device__ inline void prefetch(const void* address) { asm volatile("prefetch.global.L2 [%0];" ::"l"(address)); }
#else
using emulation::dynamic_shared;
inline void prefetch(const void*) {}
#endif

// The shared memory that the launch asked for.
template <typename T>
__device__ inline T* shared_memory() {
  return static_cast<T*>(static_cast<void*>(dynamic_shared));
}

// The first item of this thread, and how far it is to its next.
__device__ inline int64_t thread_number() { return int64_t(blockIdx.x) * blockDim.x + threadIdx.x; }
__device__ inline int64_t grid_stride() { return int64_t(gridDim.x) * blockDim.x; }
__device__ inline int lane_of_warp() { return int(threadIdx.x) % kWarp; }

}  // namespace ats::cuda
