// Several elements of a row at once: read from any alignment, converted, normalised, and packed into 16 bytes.
#pragma once

#include "cuda_launch.cuh"
#include "half.h"

namespace ats::cuda {

// 16 bytes of the patches.
template <typename Out>
constexpr int kVector = 16 / int(sizeof(Out));

// `words` words from any address on: aligned ones, shifted into place. Reads only bytes of words that the data lie in.
template <int words>
__device__ inline void read_words(const unsigned char* from, uint32_t* to) {
  const unsigned shift = unsigned(reinterpret_cast<uintptr_t>(from) % 4);
  const uint32_t* aligned = static_cast<const uint32_t*>(static_cast<const void*>(from - shift));
  uint32_t raw[words + 1];
  for (int w = 0; w < words; ++w) raw[w] = aligned[w];
  raw[words] = shift ? aligned[words] : 0;
  for (int w = 0; w < words; ++w) to[w] = __funnelshift_r(raw[w], raw[w + 1], 8 * shift);
}

// How many bytes read_words takes before `from`, and from `from` on.
__device__ inline int bytes_before(const void* from) { return int(reinterpret_cast<uintptr_t>(from) % 4); }
__device__ inline int bytes_after(const void* from, int words) {
  const int before = bytes_before(from);
  return 4 * (words + (before != 0)) - before;
}

// Element k of words in the type that computes. Integers become the last bits of a float by a logical operation, then
// lose its first: conversions run at a quarter of the speed.
template <typename In>
__device__ inline float element_of(const uint32_t* words, int k) {
  if constexpr (std::is_same_v<In, uint8_t>) {
    return bit_cast<float>(0x4b000000u | ((words[k / 4] >> (k % 4 * 8)) & 0xffu)) - 8388608.0f;
  } else if constexpr (sizeof(In) == 2) {
    const uint32_t bits = (words[k / 2] >> (k % 2 * 16)) & 0xffffu;
    if constexpr (std::is_same_v<In, uint16_t>) {
      return bit_cast<float>(0x4b000000u | bits) - 8388608.0f;
    } else if constexpr (std::is_same_v<In, int16_t>) {
      return bit_cast<float>(0x4b000000u | (bits ^ 0x8000u)) - 8421376.0f;
    } else {
      return load(bit_cast<In>(uint16_t(bits)));
    }
  } else {
    return bit_cast<float>(words[k]);
  }
}

// store of a number that is no NaN: without a branch.
template <typename Out>
__device__ inline Out store_number(float x) {
  if constexpr (std::is_same_v<Out, bfloat16>) {
    const uint32_t bits = bit_cast<uint32_t>(x);
    return {uint16_t((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
  } else {
    return store<Out>(x);
  }
}

template <typename Out>
__device__ inline void put(Out value, int k, uint32_t* words) {
  if constexpr (sizeof(Out) == 4) {
    words[k] = bit_cast<uint32_t>(value);
  } else if constexpr (sizeof(Out) == 2) {
    const uint32_t bits = bit_cast<uint16_t>(value);
    words[k / 2] = k % 2 ? words[k / 2] | bits << 16 : bits;
  } else {
    const uint32_t bits = bit_cast<uint8_t>(value);
    words[k / 4] = k % 4 ? words[k / 4] | bits << (k % 4 * 8) : bits;
  }
}

}  // namespace ats::cuda
