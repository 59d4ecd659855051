// What the kernels of extract_patches share: which part of the work a launch has, mean and std in its arguments, and
// where a block's patch lies.
//
// A launch cuts the patches of one scale, of as many channels as fit its arguments (4 KB); a block has a piece of one
// patch, so that 64-bit divisions and the reading of origins are done once a block, by one thread.
#pragma once

#include "cuda_divide.cuh"
#include "cuda_launch.cuh"
#include "patches_plan.h"

namespace ats::cuda {

// Scale s of a call, or some of its channels: plan.channels, plan.mean and plan.std are those of the part, and the
// pointers lie at its first channel and scale.
struct PatchesPart {
  PatchesPlan plan;
  int s;
  int in, out;  // dtypes
  const void* image;
  void* patches;
};

// patches_elements.cu: any layout, an element a thread.
void cut_elements(const Queue& queue, const PatchesPart& part);
// patches_average.cu: scales above 1.
void average_patches(const Queue& queue, const PatchesPart& part);
// patches_vectors.cu: rows of elements that lie side by side in image and patches, 16 bytes a thread. False: cannot.
bool cut_vectors(const Queue& queue, const PatchesPart& part);

constexpr int64_t kChannelBytes = 2048;  // of mean and std together
constexpr int64_t kMostChannels = int64_t(1) << 30;

// What computes: single precision holds every value of the narrow dtypes exactly.
template <typename In, typename Out>
using Computes = std::conditional_t<std::is_same_v<In, double> || std::is_same_v<Out, double>, double, float>;

template <typename A>
struct ChannelValues {
  static constexpr int kMost = int(kChannelBytes / 2 / int64_t(sizeof(A)));
  bool active;
  int channels;
  A mean[kMost], std[kMost];

  explicit ChannelValues(const PatchesPlan& plan) : active(plan.mean || plan.std), channels(int(plan.channels)) {
    if (!active) return;
    for (int c = 0; c < channels; ++c) {
      mean[c] = plan.mean ? A(plan.mean[c]) : A(0);
      std[c] = plan.std ? A(plan.std[c]) : A(1);
    }
  }
};

// How a patch of `items` is cut into pieces, each of which `threads` threads walk through.
struct Pieces {
  Digit count, samples;
  int64_t per_block;
  int threads;

  Pieces() = default;
  Pieces(const PatchesPlan& plan, int64_t items, int64_t most, int most_threads) {
    // Enough blocks for every SM, while there are items for their threads.
    const auto pieces = [&] { return (items + most - 1) / most; };
    while (pieces() * plan.batch * plan.samples < 1024 && most > most_threads) most /= 2;
    per_block = (items + pieces() - 1) / pieces();
    threads = int(std::min<int64_t>(most_threads, (per_block + kWarp - 1) / kWarp * kWarp));
    count = Digit((items + per_block - 1) / per_block);
    samples = Digit(plan.samples);
  }
  int64_t blocks(const PatchesPlan& plan) const { return plan.batch * plan.samples * count.size; }
};

// A block's patch, and the piece of it that is the block's.
struct Place {
  int64_t b, n, first;    // patch, and the first of its items
  int64_t start[3];       // image pixels
  int inside[3], end[3];  // patch pixels [inside, end) of an axis lie in the image, at scale 1

  __device__ void find(const PatchesPlan& plan, int s, const Pieces& pieces, int64_t block) {
    n = pieces.count.split(block);
    first = block * pieces.per_block;
    b = pieces.samples.split(n);
    for (int a = 0; a < 3; ++a) {
      const int64_t from = start[a] = plan.start(a, b, n, s), size = plan.image[a], length = plan.patch[a];
      inside[a] = int(from >= 0 ? 0 : -from < length ? -from : length);
      const int64_t stop = size - from < length ? size - from : length;
      end[a] = stop > inside[a] ? int(stop) : inside[a];
    }
  }
  // The image pixel of patch pixel p, or kOutside.
  __device__ int64_t pixel(const PatchesPlan& plan, int a, int p) const {
    if (p >= inside[a] && p < end[a]) return start[a] + p;
    return source_pixel({plan.image[a], plan.patch[a], 1}, start[a] + p, plan.padding);
  }
};

// Calls body with the types of a part, of the pairs that extract_patches knows.
template <typename Body>
void dispatch_patches(int in, int out, const Body& body) {
  dispatch_image(in, [&](auto from) {
    if (out == in) return body(from, from);
    dispatch_floating(out, [&](auto to) { body(from, to); });
  });
}

}  // namespace ats::cuda
