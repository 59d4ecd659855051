// Functions marked ATS_HD compile for the host and, under nvcc, for the GPU: the maths that both share.
#pragma once

#if defined(__CUDACC__)
#define ATS_HD __host__ __device__
#else
#define ATS_HD
#endif

// What a loop that is compiled for several instruction sets calls (simd.h) must become part of it.
#define ATS_INLINE inline __attribute__((always_inline))
// What is rarely called from such a loop stays out of it.
#define ATS_NOINLINE __attribute__((noinline))
