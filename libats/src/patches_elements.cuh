// A kernel that cuts patches element by element, in any layout: thread t of a block has elements t, t + threads, ... of
// the block's piece of a patch, numbered in the order in which they lie (channels first or last).
#pragma once

#include "patches_cut.cuh"

namespace ats::cuda {

template <typename In, typename Out, typename Value>
struct CutElements {
  using A = typename Value::A;
  static constexpr int kThreads = 256;
  static constexpr int kMost = 2048 / Value::kCost;  // elements a block

  PatchesPlan plan;
  int s;
  bool planar;  // channels are the slowest axis
  const In* image;
  Out* patches;
  Digit digit[3];  // the three fastest axes
  int64_t items, blocks;
  Pieces pieces;
  ChannelValues<A> channels;

  explicit CutElements(const PatchesPart& part)
      : plan(part.plan),
        s(part.s),
        planar(plan.patch_channel != 1),
        image(static_cast<const In*>(part.image)),
        patches(static_cast<Out*>(part.patches)),
        channels(part.plan) {
    const int64_t axes[] = {plan.channels, plan.patch[2], plan.patch[1], plan.patch[0]};
    for (int a = 0; a < 3; ++a) digit[a] = Digit(axes[a + planar]);
    items = plan.channels * plan.patch[2] * plan.patch[1] * plan.patch[0];
    pieces = Pieces(plan, items, kMost, kThreads);
    blocks = pieces.blocks(plan);
  }
  void launch(const Queue& queue) const { queue.launch(*this, std::min(blocks, kMostBlocks), pieces.threads); }

  struct Work {
    Place place;
    uint32_t digits[4];
    const In* image;
    Out* patch;
    int count;
  };

  __device__ void operator()() const {
    __shared__ Work work;
    __shared__ A mean[ChannelValues<A>::kMost], std[ChannelValues<A>::kMost];
    if (channels.active) {
      for (int c = int(threadIdx.x); c < channels.channels; c += int(blockDim.x)) {
        mean[c] = channels.mean[c];
        std[c] = channels.std[c];
      }
    }
    for (int64_t block = blockIdx.x; block < blocks; block += gridDim.x) {
      __syncthreads();
      if (threadIdx.x == 0) prepare(block, work);
      __syncthreads();
      for (int i = int(threadIdx.x); i < work.count; i += int(blockDim.x)) {
        uint32_t d[4], carry = uint32_t(i);
        for (int a = 0; a < 4; ++a) {
          d[a] = work.digits[a] + carry;
          carry = a < 3 ? digit[a].carry(d[a]) : 0;
        }
        const int64_t c = planar ? d[3] : d[0];
        const int p[3] = {int(planar ? d[2] : d[3]), int(planar ? d[1] : d[2]), int(planar ? d[0] : d[1])};
        A value = Value::value(plan, s, work.place, work.image + c * plan.image_channel, p);
        if (channels.active) value = (value - mean[c]) / std[c];
        work.patch[c * plan.patch_channel + p[0] * plan.patch_axis[0] + p[1] * plan.patch_axis[1] +
                   p[2] * plan.patch_axis[2]] = store<Out>(value);
      }
    }
  }

  __device__ void prepare(int64_t block, Work& work) const {
    work.place.find(plan, s, pieces, block);
    work.image = image + work.place.b * plan.image_batch;
    work.patch = patches + work.place.b * plan.patch_batch + work.place.n * plan.patch_sample;
    int64_t rest = work.place.first;
    work.count = int(items - rest < pieces.per_block ? items - rest : pieces.per_block);
    for (int a = 0; a < 3; ++a) {
      int64_t stays = rest;
      rest = digit[a].split(stays);
      work.digits[a] = uint32_t(stays);
    }
    work.digits[3] = uint32_t(rest);
  }
};

}  // namespace ats::cuda
