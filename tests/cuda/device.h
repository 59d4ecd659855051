// Memory that both a kernel and the test can reach, on a GPU or in the emulation, where it is exactly as large as asked
// for, so that AddressSanitizer finds whatever reads or writes beyond it.
#pragma once

#include <cuda_runtime.h>

#include <ats/ats.hpp>
#include <cstring>
#include <initializer_list>
#include <stdexcept>
#include <vector>

template <typename T>
class OnDevice {
 public:
  explicit OnDevice(size_t size) : size_(size) {
    void* data = nullptr;
    if (cudaMallocManaged(&data, size * sizeof(T) + (size == 0)) != cudaSuccess) throw std::bad_alloc();
    data_ = static_cast<T*>(data);
    std::memset(data, 0xcd, size * sizeof(T));
  }
  OnDevice(const std::vector<T>& values) : OnDevice(values.size()) {
    if (size_) std::memcpy(data_, values.data(), size_ * sizeof(T));
  }
  ~OnDevice() { cudaFree(data_); }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

  T* data() const { return data_; }
  // Waits for what was queued.
  std::vector<T> get() const {
    if (const cudaError_t error = cudaDeviceSynchronize(); error != cudaSuccess)
      throw std::runtime_error(cudaGetErrorString(error));
    return std::vector<T>(data_, data_ + size_);
  }

 private:
  T* data_ = nullptr;
  size_t size_;
};

// The same view of memory on GPU 0.
inline ats_tensor on_gpu(ats_tensor view) {
  view.device = ATS_CUDA;
  return view;
}
template <typename T>
ats_tensor gpu_view(const OnDevice<T>& memory, std::initializer_list<int64_t> shape) {
  return on_gpu(ats::view(memory.data(), shape));
}

// body() once on a GPU; in the emulation once for every order of the threads, of which none may matter.
template <typename Body>
void in_every_order(const Body& body) {
#if defined(ATS_EMULATION)
  for (int order = 0; order < 3; ++order) {
    ats_emulation_order(order);
    body();
  }
  ats_emulation_order(0);
#else
  body();
#endif
}
