// CUDA on the CPU, for tests: what the kernels of libats use of CUDA, run one thread of a block after the other.
//
// A kernel compiled as C++ against this header does what it does on a GPU, with the same bits (no fused multiply-add on
// either side), so that its logic is tested on machines without one, under AddressSanitizer too: a read past the end of
// device memory is found. A thread runs until it waits for the others of its warp or block; `ats_emulation_order` turns
// the order around, so that a barrier that is missing shows itself. What is not seen: real concurrency, and time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>

#define ATS_EMULATION 1

#define __host__
#define __device__
#define __global__
#define __launch_bounds__(...)
#define __grid_constant__
#define __shared__ static thread_local  // blocks run one after the other

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

// ---- the host's side ----------------------------------------------------------------------------------------------
typedef struct ats_emulated_stream* cudaStream_t;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };

namespace emulation {
constexpr int kMostShared = 64 * 1024;  // of the smallest GPUs
// Dynamic shared memory of a kernel: 48 KB unless more was asked for.
void allow_shared(void (*function)(), int bytes);
int allowed_shared(void (*function)());
}  // namespace emulation

inline const char* cudaGetErrorString(cudaError_t error) { return error ? "invalid argument" : "no error"; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaSetDevice(int device) { return device ? cudaErrorInvalidValue : cudaSuccess; }
template <typename Function>
cudaError_t cudaFuncSetAttribute(Function* function, cudaFuncAttribute, int bytes) {
  if (bytes > emulation::kMostShared) return cudaErrorInvalidValue;
  emulation::allow_shared(reinterpret_cast<void (*)()>(function), bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMallocManaged(void** data, size_t bytes) {
  *data = std::malloc(bytes);
  return *data ? cudaSuccess : cudaErrorInvalidValue;
}
inline cudaError_t cudaFree(void* data) { return std::free(data), cudaSuccess; }
inline cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
inline cudaError_t cudaMemsetAsync(void* data, int value, size_t bytes, cudaStream_t) {
  return std::memset(data, value, bytes), cudaSuccess;
}

// ---- the engine (emulation.cc) ------------------------------------------------------------------------------------
extern "C" {
// 0: threads and blocks take turns in order; 1: in reverse; 2: by turns in a scrambled order.
__attribute__((visibility("default"))) void ats_emulation_order(int order);
// How many kernels have been launched so far.
__attribute__((visibility("default"))) int64_t ats_emulation_launches(void);
}

namespace emulation {

struct Thread {
  dim3 index;
  int lane;
};
extern thread_local Thread* thread;
extern thread_local dim3 block, block_size, grid_size;
extern thread_local void* dynamic_shared;

void run_grid(dim3 grid, dim3 block, size_t shared, void (*body)(void*), void* data);
void wait_for_block();
// Gives `value` (at most 8 bytes) to the threads of the warp in `mask`, waits for theirs, and returns all 32.
const uint64_t* exchange(unsigned mask, uint64_t value);
[[noreturn]] void misuse(const char* what);

template <typename T>
uint64_t pack(T value) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>, "shuffles move up to 8 bytes");
  uint64_t word = 0;
  std::memcpy(&word, &value, sizeof(T));
  return word;
}
template <typename T>
T unpack(uint64_t word) {
  T value;
  std::memcpy(&value, &word, sizeof(T));
  return value;
}
template <typename T>
T shuffle(unsigned mask, T value, int source, bool inside) {
  const uint64_t* words = exchange(mask, pack(value));
  if (!inside) return value;
  if (!(mask >> source & 1u)) misuse("a shuffle reads a thread that is not in its mask");
  return unpack<T>(words[source]);
}

}  // namespace emulation

template <typename Kernel>
cudaError_t cudaLaunchKernel(void (*function)(Kernel), dim3 grid, dim3 block, void** arguments, size_t shared,
                             cudaStream_t) {
  if (!grid.x || !grid.y || !grid.z || grid.y > 65535 || grid.z > 65535 || grid.x > 0x7fffffffu || !block.x ||
      size_t(block.x) * block.y * block.z > 1024 ||
      shared > size_t(emulation::allowed_shared(reinterpret_cast<void (*)()>(function))))
    return cudaErrorInvalidValue;
  struct Call {
    void (*function)(Kernel);
    const Kernel* kernel;
  } call{function, static_cast<const Kernel*>(arguments[0])};
  emulation::run_grid(
      grid, block, shared, [](void* data) { static_cast<Call*>(data)->function(*static_cast<Call*>(data)->kernel); },
      &call);
  return cudaSuccess;
}

// ---- the device's side --------------------------------------------------------------------------------------------
#define threadIdx (::emulation::thread->index)
#define blockIdx (::emulation::block)
#define blockDim (::emulation::block_size)
#define gridDim (::emulation::grid_size)

inline void __syncthreads() { emulation::wait_for_block(); }
inline void __syncwarp(unsigned mask = 0xffffffffu) { emulation::exchange(mask, 0); }

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  const int first = emulation::thread->lane / width * width;
  return emulation::shuffle(mask, value, first + (source & (width - 1)), true);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
  const int lane = emulation::thread->lane, source = lane ^ bits;
  return emulation::shuffle(mask, value, source, source / width <= lane / width);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const int source = emulation::thread->lane - int(delta);
  return emulation::shuffle(mask, value, source, source >= emulation::thread->lane / width * width);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  const uint64_t* words = emulation::exchange(mask, predicate != 0);
  unsigned ballot = 0;
  for (int lane = 0; lane < 32; ++lane)
    if (mask >> lane & 1u) ballot |= unsigned(words[lane]) << lane;
  return ballot;
}

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return unsigned(((uint64_t(high) << 32) | low) >> (shift & 31));
}
template <typename T>
void __stcs(T* address, T value) {
  *address = value;
}
template <typename T>
T atomicAdd(T* address, std::common_type_t<T> value) {
  const T old = *address;
  *address = old + value;
  return old;
}
template <typename T>
T atomicMax(T* address, std::common_type_t<T> value) {
  const T old = *address;
  *address = old > value ? old : value;
  return old;
}
