// extract_patches on a GPU at scale 1 in any layout, an element a thread.
//
// An element costs about 70 instructions: 308 million of them (128 x 16 patches of 224 x 224 x 3) take 0.8 ms on an H100
// (28.7e12 instructions of a thread a second), where their bytes take 0.3 ms; so layouts that allow it go through
// patches_vectors.cu.
#include "patches_elements.cuh"

namespace ats::cuda {
namespace {

template <typename In, typename Out>
struct Pixel {
  using A = Computes<In, Out>;
  static constexpr int kCost = 1;

  __device__ static A value(const PatchesPlan& plan, int, const Place& place, const In* image, const int* p) {
    int64_t offset = 0;
    for (int a = 0; a < 3; ++a) {
      const int64_t pixel = place.pixel(plan, a, p[a]);
      if (pixel == kOutside) return A(plan.fill);
      offset += pixel * plan.image_axis[a];
    }
    return A(load(image[offset]));
  }
};

}  // namespace

void cut_elements(const Queue& queue, const PatchesPart& part) {
  dispatch_patches(part.in, part.out, [&](auto in, auto out) {
    using In = typename decltype(in)::type;
    using Out = typename decltype(out)::type;
    CutElements<In, Out, Pixel<In, Out>>(part).launch(queue);
  });
}

}  // namespace ats::cuda
