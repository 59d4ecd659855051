// The gradient of extract_patches with respect to the image on a GPU, the same bits as the CPU's: a block owns a stretch
// of one image, in the order in which it lies, finds the patches that may touch it, and every thread adds up what falls
// on its elements in the order of the patches and, within a patch, of its slices, rows and columns. Nothing is added
// by two threads, so there are no atomics, no workspace, and sums stay in registers, in float32 for halves.
//
// Patches are tested 256 at a time, one a thread; a ballot a warp puts those found into a list in order. All of d_image
// is written once: zeros of 16 bytes a thread where no patch is.
//
// Bytes: d_image, and grad once from memory (a pixel's positions are looked for, grad is read where they are). 128 images
// of 4096 x 4096 x 3 bfloat16 are 12.9 GB, 3.9 ms at 3.35 TB/s. Instructions: a stretch of 8192 elements that nothing
// touches takes about 900 of a warp, 0.8 million such stretches 0.8 ms of an H100 (132 SMs, 4 a clock, 1.7 GHz); an
// element that one patch touches about 200, the 308 million of 16 patches of 224 x 224 a further 2 ms.
#include "cuda_divide.cuh"
#include "cuda_launch.cuh"
#include "cuda_ops.h"

namespace ats::cuda {
namespace {

template <typename G, typename D>
struct GatherPatches {
  using Sum = std::conditional_t<std::is_same_v<D, double>, double, float>;
  static constexpr int kThreads = 256;
  static constexpr int kMostStretch = 32 * kThreads;
  static constexpr int kMostStd = 256;

  PatchesPlan plan;  // of some channels
  const G* grad;
  D* image;
  bool planar, dense;       // channels are the slowest axis; an image lies without gaps
  Digit digit[3];           // the three fastest axes of the image
  Digit scales, stretches;  // of a patch, of an image
  int stretch;              // elements a block
  int64_t patches, items, blocks;
  bool with_std;
  double std[kMostStd];

  GatherPatches(const PatchesPlan& part, const G* grad_, D* image_) : plan(part), grad(grad_), image(image_) {
    planar = std::abs(plan.image_channel) > std::abs(plan.image_axis[2]);
    const int64_t size[] = {plan.channels, plan.image[2], plan.image[1], plan.image[0], plan.channels};
    const int64_t stride[] = {plan.image_channel, plan.image_axis[2], plan.image_axis[1], plan.image_axis[0],
                              plan.image_channel};
    dense = true;
    items = 1;
    for (int a = planar; a < 4 + planar; ++a) {
      if (size[a] != 1 && stride[a] != items) dense = false;
      items *= size[a];
    }
    for (int a = 0; a < 3; ++a) digit[a] = Digit(size[a + planar]);
    patches = plan.samples * plan.n_scales;
    scales = Digit(plan.n_scales);
    // As long as there are blocks for every SM, the longer the less there is to find and to divide.
    for (stretch = kMostStretch;; stretch /= 2) {
      stretches = Digit((items + stretch - 1) / stretch);
      blocks = plan.batch * stretches.size;
      if (stretch == kThreads || blocks >= 1024) break;
    }
    with_std = plan.std != nullptr;
    for (int64_t c = 0; with_std && c < plan.channels; ++c) std[c] = plan.std[c];
  }

  // Where an element of an image is.
  struct Pixel {
    int64_t c, at[3];
  };
  struct Found {
    int64_t n, start[3];
    int s;
  };
  struct Work {
    int64_t b, digits[4];
    D* image;
    int64_t first;    // of the stretch, in the image
    Pixel low, high;  // its first and last element
    int count;
    int found[kThreads / kWarp];
    Found list[kThreads];
  };

  __device__ void operator()() const {
    __shared__ Work work;
    for (int64_t block = blockIdx.x; block < blocks; block += gridDim.x) {
      __syncthreads();
      if (threadIdx.x == 0) prepare(block, work);
      if (threadIdx.x == kWarp) work.high = last_pixel(block);
      __syncthreads();
      int found = 0;
      bool touched = false;
      for (int group = 0; group < work.count; group += kThreads) {
        const int i = group + int(threadIdx.x);
        Sum sum = 0;
        for (int64_t round = 0; round < patches; round += kThreads) {
          // One list serves the whole stretch, unless there are more patches than it holds.
          if (group == 0 || patches > kThreads) found = find(work, round);
          touched |= found > 0;
          if (found > 0 && i < work.count) sum = add(work, found, i, sum);
        }
        if (!touched) break;
        if (i < work.count) work.image[place_of(work, i)] = store<D>(sum);
      }
      if (!touched) clear(work);
    }
  }

  // Where the stretch begins: in image b, and in that.
  __device__ int64_t begin(int64_t block, int64_t& b) const {
    b = stretches.split(block);
    return block * stretch;
  }
  __device__ int count(int64_t first) const { return int(items - first < stretch ? items - first : stretch); }
  __device__ void prepare(int64_t block, Work& work) const {
    work.first = begin(block, work.b);
    work.count = count(work.first);
    work.image = image + work.b * plan.image_batch;
    split(work.first, work.digits);
    work.low = pixel_at(work.digits);
  }
  __device__ Pixel last_pixel(int64_t block) const {
    int64_t b, d[4];
    const int64_t first = begin(block, b);
    split(first + count(first) - 1, d);
    return pixel_at(d);
  }
  __device__ void split(int64_t item, int64_t* d) const {
    for (int a = 0; a < 3; ++a) {
      d[a] = item;
      item = digit[a].split(d[a]);
    }
    d[3] = item;
  }
  __device__ Pixel pixel_at(const int64_t* d) const {
    return planar ? Pixel{d[3], {d[2], d[1], d[0]}} : Pixel{d[0], {d[3], d[2], d[1]}};
  }

  // Element i of the stretch.
  __device__ Pixel pixel_of(const Work& work, int i) const {
    int64_t d[4];
    int64_t carry = i;
    for (int a = 0; a < 4; ++a) {
      d[a] = work.digits[a] + carry;
      carry = a < 3 ? digit[a].carry(d[a]) : 0;
    }
    return pixel_at(d);
  }
  __device__ int64_t place_of(const Work& work, int i) const {
    if (dense) return work.first + i;
    const Pixel pixel = pixel_of(work, i);
    return pixel.c * plan.image_channel + pixel.at[0] * plan.image_axis[0] + pixel.at[1] * plan.image_axis[1] +
           pixel.at[2] * plan.image_axis[2];
  }

  // Lists the patches of this round that may touch the stretch, in order.
  __device__ int find(Work& work, int64_t round) const {
    const int64_t index = round + threadIdx.x;
    Found patch{};
    bool touches = index < patches;
    if (touches) {
      int64_t scale = index;
      patch.n = scales.split(scale);
      patch.s = int(scale);
      // Axes are narrowed down as long as the stretch has one place on all slower ones.
      bool narrow = !planar || work.low.c == work.high.c;
      for (int a = 0; a < 3; ++a) {
        patch.start[a] = plan.start(a, work.b, patch.n, patch.s);
        const Span span = touched_pixels(plan.axis(a, patch.s), patch.start[a], plan.padding);
        touches = touches && span.first < span.last;
        if (!narrow) continue;
        touches = touches && span.first <= work.high.at[a] && span.last > work.low.at[a];
        narrow = work.low.at[a] == work.high.at[a];
      }
    }
    const unsigned ballot = __ballot_sync(kWholeWarp, touches);
    const int warp = int(threadIdx.x) / kWarp;
    if (lane_of_warp() == 0) work.found[warp] = __popc(ballot);
    __syncthreads();
    int before = __popc(ballot & ((1u << lane_of_warp()) - 1u)), total = 0;
    for (int w = 0; w < kThreads / kWarp; ++w) {
      if (w < warp) before += work.found[w];
      total += work.found[w];
    }
    if (touches) work.list[before] = patch;
    __syncthreads();
    return total;
  }

  // What the patches of the list add to element i.
  __device__ Sum add(const Work& work, int found, int i, Sum sum) const {
    const Pixel pixel = pixel_of(work, i);
    for (int f = 0; f < found; ++f) sum = add_patch(work, work.list[f], pixel, sum);
    return sum;
  }

  // Patch pixel that covers position p of the image pixels under it.
  __device__ static int64_t patch_pixel(int64_t p, int64_t scale) {
    if (scale == 1) return p;
    return p <= int64_t(UINT32_MAX) ? int64_t(uint32_t(p) / uint32_t(scale)) : p / scale;
  }

  template <typename Body>
  __device__ static void each_position(const Positions& at, const Body& body) {
    int64_t gap = at.gap[0], next = at.gap[1];
    for (int64_t p = at.first; p < at.stop;) {
      body(p);
      p += gap;
      const int64_t last = gap;
      gap = next, next = last;
    }
  }

  __device__ Sum add_patch(const Work& work, const Found& patch, const Pixel& pixel, Sum sum) const {
    const Axis depth = plan.axis(0, patch.s), height = plan.axis(1, patch.s), width = plan.axis(2, patch.s);
    const Positions at_z = positions_of(depth, patch.start[0], pixel.at[0], plan.padding);
    if (at_z.first >= at_z.stop) return sum;
    const Positions at_y = positions_of(height, patch.start[1], pixel.at[1], plan.padding);
    if (at_y.first >= at_y.stop) return sum;
    const Positions at_x = positions_of(width, patch.start[2], pixel.at[2], plan.padding);
    if (at_x.first >= at_x.stop) return sum;
    const int64_t averaged = depth.scale * height.scale * width.scale;
    const bool divide = with_std || averaged > 1;
    const Sum divisor = divide ? Sum(with_std ? double(averaged) * std[pixel.c] : double(averaged)) : Sum(1);
    const G* from = grad + work.b * plan.patch_batch + patch.n * plan.patch_sample + patch.s * plan.patch_scale +
                    pixel.c * plan.patch_channel;
    each_position(at_z, [&](int64_t z) {
      const G* slice = from + patch_pixel(z, depth.scale) * plan.patch_axis[0];
      each_position(at_y, [&](int64_t y) {
        const G* row = slice + patch_pixel(y, height.scale) * plan.patch_axis[1];
        each_position(at_x, [&](int64_t x) {
          const Sum value = Sum(load(row[patch_pixel(x, width.scale) * plan.patch_axis[2]]));
          sum += divide ? value / divisor : value;
        });
      });
    });
    return sum;
  }

  __device__ void clear(const Work& work) const {
    constexpr int kVector = 16 / int(sizeof(D));
    int done = 0;
    D* const from = work.image + work.first;
    if (dense && reinterpret_cast<uintptr_t>(from) % 16 == 0) {
      uint4* const vectors = static_cast<uint4*>(static_cast<void*>(from));
      for (int i = int(threadIdx.x); i < work.count / kVector; i += kThreads) vectors[i] = {0, 0, 0, 0};
      done = work.count / kVector * kVector;
    }
    for (int i = done + int(threadIdx.x); i < work.count; i += kThreads) work.image[place_of(work, i)] = store<D>(0.0f);
  }
};

}  // namespace

void extract_patches_backward(const PatchesPlan& plan, const ats_tensor& grad, const ats_tensor& d_image,
                              const ats_executor* executor) {
  const DeviceGuard guard("extract_patches_backward", d_image.device_index);
  const Queue queue{"extract_patches_backward", stream_of(executor)};
  dispatch_floating(d_image.dtype, [&](auto image_type) {
    dispatch_floating(grad.dtype, [&](auto grad_type) {
      using D = typename decltype(image_type)::type;
      using G = typename decltype(grad_type)::type;
      using Kernel = GatherPatches<G, D>;
      // As many channels a launch as its arguments have room for.
      const int64_t most = plan.std ? Kernel::kMostStd : plan.channels;
      for (int64_t c = 0; c < plan.channels; c += most) {
        PatchesPlan part = plan;
        part.channels = std::min(most, plan.channels - c);
        if (plan.std) part.std += c;
        const G* from = data_of<const G>(grad);
        // Nothing is read of no patches, which may have no memory.
        if (plan.samples > 0) from += c * plan.patch_channel;
        const Kernel kernel(part, from, data_of<D>(d_image) + c * plan.image_channel);
        queue.launch(kernel, std::min(kernel.blocks, kMostBlocks));
      }
    });
  });
}

}  // namespace ats::cuda
