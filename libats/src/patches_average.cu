// extract_patches on a GPU at scales above 1: a thread sums the scale^D pixels of an element, as the CPU does
// (patches_average.h): columns first, down slices and rows, then the columns, in double; integers are exact in any type.
//
// Threads beside each other read pixels `scale` apart, all of which some thread needs: every sector is read once from
// memory, and scale^D times from the first cache. An element costs about 100 instructions, of which the two divisions in
// double are half, and 5 a pixel.
#include "patches_elements.cuh"

namespace ats::cuda {
namespace {

template <typename In>
struct Average {
  using A = double;
  static constexpr int kCost = 4;

  __device__ static double value(const PatchesPlan& plan, int s, const Place& place, const In* image, const int* p) {
    Axis axis[3];
    int64_t first[3];
    bool inside = true;
    for (int a = 0; a < 3; ++a) {
      axis[a] = plan.axis(a, s);
      first[a] = place.start[a] + p[a] * axis[a].scale;
      inside &= first[a] >= 0 && first[a] + axis[a].scale <= axis[a].size;
    }
    const double count = double(plan.averaged(s));
    if (!inside) return padded_sum(plan, axis, first, image) / count;
    image += first[0] * plan.image_axis[0] + first[1] * plan.image_axis[1] + first[2] * plan.image_axis[2];
    const int depth = int(axis[0].scale), height = int(axis[1].scale), width = int(axis[2].scale);
    // 2^20 pixels of 16 bits, of which a column has at most 101^2.
    using Column = std::conditional_t<std::is_integral_v<In>, int32_t, double>;
    using Total = std::conditional_t<std::is_integral_v<In>, int64_t, double>;
    Total total = 0;
    for (int x = 0; x < width; ++x, image += plan.image_axis[2]) {
      Column column = 0;
      const In* slice = image;
      for (int z = 0; z < depth; ++z, slice += plan.image_axis[0]) {
        const In* pixel = slice;
        for (int y = 0; y < height; ++y, pixel += plan.image_axis[1]) column += element<Column>(*pixel);
      }
      total += Total(column);
    }
    return double(total) / count;
  }

  template <typename Column>
  __device__ static Column element(In pixel) {
    if constexpr (std::is_integral_v<In>) {
      return Column(pixel);
    } else {
      return Column(load(pixel));
    }
  }

  __device__ static double padded_sum(const PatchesPlan& plan, const Axis* axis, const int64_t* first,
                                      const In* image) {
    double total = 0.0;
    for (int64_t i = 0; i < axis[2].scale; ++i) {
      const int64_t x = source_pixel(axis[2], first[2] + i, plan.padding);
      double column = 0.0;
      for (int64_t k = 0; k < axis[0].scale; ++k) {
        const int64_t z = source_pixel(axis[0], first[0] + k, plan.padding);
        for (int64_t j = 0; j < axis[1].scale; ++j) {
          const int64_t y = source_pixel(axis[1], first[1] + j, plan.padding);
          column += x == kOutside || y == kOutside || z == kOutside
                        ? plan.fill
                        : double(load(image[z * plan.image_axis[0] + y * plan.image_axis[1] + x * plan.image_axis[2]]));
        }
      }
      total += column;
    }
    return total;
  }
};

}  // namespace

void average_patches(const Queue& queue, const PatchesPart& part) {
  dispatch_patches(part.in, part.out, [&](auto in, auto out) {
    using In = typename decltype(in)::type;
    using Out = typename decltype(out)::type;
    CutElements<In, Out, Average<In>>(part).launch(queue);
  });
}

}  // namespace ats::cuda
