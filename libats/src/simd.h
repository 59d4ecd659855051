// One loop, compiled for several instruction sets of a CPU; which of them runs is decided once, on the machine it
// runs on. The results are the same bits: wider registers hold more of the same additions, none is reordered or
// fused.
#pragma once

#include "host_device.h"

namespace ats {

#if defined(__x86_64__) && defined(__GNUC__)

enum class Cpu { baseline, avx2, avx512 };

inline Cpu this_cpu() {
  static const Cpu cpu = [] {
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512bw"))
      return Cpu::avx512;
    return __builtin_cpu_supports("avx2") ? Cpu::avx2 : Cpu::baseline;
  }();
  return cpu;
}

template <typename Loop, typename... Args>
__attribute__((target("avx2"))) auto run_avx2(Args... args) {
  return Loop::run(args...);
}

template <typename Loop, typename... Args>
__attribute__((target("avx512f,avx512dq,avx512vl,avx512bw"))) auto run_avx512(Args... args) {
  return Loop::run(args...);
}

// Loop::run(args...), which must be ATS_INLINE, as must be what it calls in its loops (lambdas would not be compiled
// for the wider registers).
template <typename Loop, typename... Args>
auto on_this_cpu(Args... args) {
  switch (this_cpu()) {
    case Cpu::avx512:
      return run_avx512<Loop>(args...);
    case Cpu::avx2:
      return run_avx2<Loop>(args...);
    default:
      return Loop::run(args...);
  }
}

#else

template <typename Loop, typename... Args>
auto on_this_cpu(Args... args) {
  return Loop::run(args...);
}

#endif

}  // namespace ats
