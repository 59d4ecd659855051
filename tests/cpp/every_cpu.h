// A loop of simd.h on every instruction set that this machine has: same(run) is called with each, and with what is
// chosen.
#pragma once

#include "simd.h"

template <typename Loop, typename Same, typename... Args>
void on_every_cpu(const Same& same, Args... args) {
  same([&] { return Loop::run(args...); });
#if defined(__x86_64__)
  if (ats::this_cpu() >= ats::Cpu::avx2) same([&] { return ats::run_avx2<Loop>(args...); });
  if (ats::this_cpu() >= ats::Cpu::avx512) same([&] { return ats::run_avx512<Loop>(args...); });
#endif
  same([&] { return ats::on_this_cpu<Loop>(args...); });
}
