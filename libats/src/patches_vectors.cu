// extract_patches on a GPU at scale 1, where the elements of a row lie side by side in image and patches (rows of
// pixels with all their channels, or of one channel): a thread writes 16 aligned bytes of a row at a time.
//
// Vector j of a row is the one that lies j * 16 bytes behind the aligned address at or before the row's begin, so that
// the first and the last may be partly the row's only. Blocks number the vectors of a patch row after row; threads walk
// through the numbers of their block, so that short rows keep them as busy as long ones. Of a long row a thread takes
// four, a quarter of the row apart, so that where the row is is found once. A vector that the image covers is read as
// aligned words, shifted into place; others (borders, ends of rows) go element by element.
//
// Instructions, counted in the PTX of uint8 to bfloat16 with mean and std of three channels: at most 200 a vector of 8
// elements for where it lies, its words and its means, of which the assembler folds a quarter, and 14 an element
// (unpacking 2, subtracting 2, dividing 5, rounding and packing 5): at most 33 an element in all. 308 million elements
// (128 x 16 patches of 224 x 224 x 3, 0.92 GB) take 0.35 ms of instructions on an H100 (28.7e12 a second), and 0.28 ms
// of memory (3.35 TB/s). Float32 (4 elements a vector, 50 an element of 8 bytes) takes 1.7 ps of instructions and 2.4 ps
// of memory an element: memory binds, but where many rows begin or end within a vector.
#include "exact_divide.h"
#include "patches_convert.cuh"
#include "patches_cut.cuh"

namespace ats::cuda {
namespace {

template <typename In, typename Out>
struct CutVectors {
  static constexpr int kThreads = 256;
  static constexpr int kMost = 1024;  // items a block
  static constexpr int kElements = kVector<Out>;
  static constexpr int kWords = kElements * int(sizeof(In)) / 4;
  static constexpr bool kSame = std::is_same_v<In, Out>;

  PatchesPlan plan;
  int s;
  const In* image;
  Out* patches;
  int strip, columns;  // channels that lie side by side; elements of a patch row
  int64_t row_bytes;   // of a row of the image
  int vectors, step;   // of a row; an item has vectors i, i + step and so on
  Digit digit[3];      // items of a row, rows, slices; what is left are channels
  Divider by_strip;
  bool exact;  // divide_exactly gives the quotients
  int64_t items, blocks;
  Pieces pieces;
  ChannelValues<float> channels;

  CutVectors(const PatchesPart& part, int strip_, bool aligned)
      : plan(part.plan),
        s(part.s),
        image(static_cast<const In*>(part.image)),
        patches(static_cast<Out*>(part.patches)),
        strip(strip_),
        columns(int(plan.patch[2] * strip)),
        row_bytes(plan.image[2] * strip * int64_t(sizeof(In))),
        by_strip(strip),
        exact(std::is_integral_v<In>),
        channels(part.plan) {
    vectors = (columns + kElements - 1) / kElements + !aligned;
    step = vectors < kWarp ? vectors : (vectors + 3) / 4;
    digit[0] = Digit(step), digit[1] = Digit(plan.patch[1]), digit[2] = Digit(plan.patch[0]);
    items = step * plan.patch[1] * plan.patch[0] * (plan.channels / strip);
    pieces = Pieces(plan, items, kMost, kThreads);
    blocks = pieces.blocks(plan);
    for (int c = 0; channels.active && c < channels.channels; ++c)
      exact = exact && divides_exactly(channels.mean[c], channels.std[c]);
  }
  void launch(const Queue& queue) const { queue.launch(*this, std::min(blocks, kMostBlocks), pieces.threads); }

  struct Work {
    Place place;
    uint32_t digits[4];
    const In* image;
    Out* patch;
    int64_t shift;    // elements from an image row's begin to the patch's
    int left, right;  // columns [left, right) lie in the image
    int count;
  };
  struct Means {
    float mean[ChannelValues<float>::kMost], std[ChannelValues<float>::kMost], inverse[ChannelValues<float>::kMost];
  };

  __device__ void operator()() const {
    __shared__ Work work;
    __shared__ Means means;
    if (channels.active) {
      for (int c = int(threadIdx.x); c < channels.channels; c += int(blockDim.x)) {
        means.mean[c] = channels.mean[c];
        means.std[c] = channels.std[c];
        means.inverse[c] = 1.0f / channels.std[c];
      }
    }
    for (int64_t block = blockIdx.x; block < blocks; block += gridDim.x) {
      __syncthreads();
      if (threadIdx.x == 0) prepare(block, work);
      __syncthreads();
      for (int i = int(threadIdx.x); i < work.count; i += int(blockDim.x)) item(work, means, i);
    }
  }

  __device__ void prepare(int64_t block, Work& work) const {
    Place& place = work.place;
    place.find(plan, s, pieces, block);
    work.image = image + place.b * plan.image_batch;
    work.patch = patches + place.b * plan.patch_batch + place.n * plan.patch_sample;
    work.shift = place.start[2] * strip;
    work.left = place.inside[2] * strip;
    work.right = place.end[2] * strip;
    int64_t rest = place.first;
    work.count = int(items - rest < pieces.per_block ? items - rest : pieces.per_block);
    for (int a = 0; a < 3; ++a) {
      int64_t stays = rest;
      rest = digit[a].split(stays);
      work.digits[a] = uint32_t(stays);
    }
    work.digits[3] = uint32_t(rest);
  }

  // Vectors of one row.
  __device__ void item(const Work& work, const Means& means, int i) const {
    uint32_t d[4], carry = uint32_t(i);
    for (int a = 0; a < 4; ++a) {
      d[a] = work.digits[a] + carry;
      carry = a < 3 ? digit[a].carry(d[a]) : 0;
    }
    const int y = int(d[1]), z = int(d[2]), c = int(d[3]);  // c: 0 where channels lie side by side
    Out* to = work.patch + c * plan.patch_channel + z * plan.patch_axis[0] + y * plan.patch_axis[1];
    const int skew = int(reinterpret_cast<uintptr_t>(to) / sizeof(Out) % kElements);
    const int64_t row_z = work.place.pixel(plan, 0, z), row_y = work.place.pixel(plan, 1, y);
    const bool outside = row_z == kOutside || row_y == kOutside;
    const In* row = work.image;
    if (!outside) row += row_z * plan.image_axis[0] + row_y * plan.image_axis[1] + c * plan.image_channel;
    for (int v = int(d[0]); v < vectors; v += step)
      vector(work, means, outside ? nullptr : row, c, v * kElements - skew, to);
  }

  // From `column` of a row on; row is null where all of it is padding.
  __device__ void vector(const Work& work, const Means& means, const In* row, int c, int column, Out* to) const {
    if (row != nullptr && column >= work.left && column + kElements <= work.right) {
      const int64_t begin = (work.shift + column) * int64_t(sizeof(In));
      const In* from = row + work.shift + column;
      if (sizeof(In) == 4 || (begin >= bytes_before(from) && begin + bytes_after(from, kWords) <= row_bytes)) {
        uint32_t words[kWords], result[4];
        if constexpr (sizeof(In) == 4) {
          for (int k = 0; k < kElements; ++k) words[k] = bit_cast<uint32_t>(from[k]);
        } else {
          read_words<kWords>(static_cast<const unsigned char*>(static_cast<const void*>(from)), words);
        }
        convert(words, means, c, column, result);
        *static_cast<uint4*>(static_cast<void*>(to + column)) = {result[0], result[1], result[2], result[3]};
        return;
      }
    }
    const int first = column < 0 ? 0 : column, stop = column + kElements < columns ? column + kElements : columns;
    for (int k = first; k < stop; ++k) to[k] = element(work, means, row, c, k);
  }

  __device__ void convert(const uint32_t* words, const Means& means, int c, int column, uint32_t* result) const {
    if (!channels.active) {
      if constexpr (kSame) {
        for (int w = 0; w < 4; ++w) result[w] = words[w];
      } else {
        for (int k = 0; k < kElements; ++k) put(store<Out>(element_of<In>(words, k)), k, result);
      }
      return;
    }
    int phase = strip == 1 ? c : column - int(by_strip.divide(uint32_t(column))) * strip;
    if (strip == 1 || strip == 3) {
      // Element k has the values of element k + 3.
      float mean[3], std[3], inverse[3];
      for (int k = 0; k < 3; ++k) {
        mean[k] = means.mean[phase];
        std[k] = means.std[phase];
        inverse[k] = means.inverse[phase];
        phase = strip == 1 ? c : phase == 2 ? 0 : phase + 1;
      }
      if (exact) {
        for (int k = 0; k < kElements; ++k)
          put(store<Out>(divide_exactly(element_of<In>(words, k) - mean[k % 3], std[k % 3], inverse[k % 3])), k,
              result);
      } else {
        for (int k = 0; k < kElements; ++k)
          put(store<Out>((element_of<In>(words, k) - mean[k % 3]) / std[k % 3]), k, result);
      }
      return;
    }
    for (int k = 0; k < kElements; ++k) {
      put(store<Out>((element_of<In>(words, k) - means.mean[phase]) / means.std[phase]), k, result);
      phase = phase + 1 == strip ? 0 : phase + 1;
    }
  }

  // Element k of a patch row; row is null where all of it is padding.
  __device__ Out element(const Work& work, const Means& means, const In* row, int c, int k) const {
    float value = float(plan.fill);
    const int x = int(by_strip.divide(uint32_t(k)));
    if (row != nullptr) {
      if (k >= work.left && k < work.right) {
        const In pixel = row[work.shift + k];
        if constexpr (kSame) {
          if (!channels.active) return pixel;
        }
        value = load(pixel);
      } else if (const int64_t pixel = work.place.pixel(plan, 2, x); pixel != kOutside) {
        value = load(row[pixel * strip + (k - x * strip)]);
      }
    }
    if (channels.active) {
      const int channel = strip == 1 ? c : k - x * strip;
      value = (value - means.mean[channel]) / means.std[channel];
    }
    return store<Out>(value);
  }
};

}  // namespace

bool cut_vectors(const Queue& queue, const PatchesPart& part) {
  const PatchesPlan& plan = part.plan;
  const bool together = plan.image_interleaved() && plan.patch_interleaved();
  if (part.in == ATS_FLOAT64 || part.out == ATS_FLOAT64) return false;
  if (!together && (plan.image_axis[2] != 1 || plan.patch_axis[2] != 1)) return false;
  const int64_t strip = together ? plan.channels : 1;
  if (plan.patch[2] > kMostChannels / strip) return false;
  const int64_t size = item_size(part.out);
  // Whether all rows of the patches begin at a multiple of 16 bytes.
  bool aligned = reinterpret_cast<uintptr_t>(part.patches) % 16 == 0;
  for (const int64_t stride :
       {plan.patch_batch, plan.patch_sample, plan.patch_axis[0], plan.patch_axis[1], together ? 0 : plan.patch_channel})
    aligned = aligned && stride * size % 16 == 0;
  dispatch_patches(part.in, part.out, [&](auto in, auto out) {
    using In = typename decltype(in)::type;
    using Out = typename decltype(out)::type;
    if constexpr (sizeof(In) <= 4 && sizeof(Out) <= 4) CutVectors<In, Out>(part, int(strip), aligned).launch(queue);
  });
  return true;
}

}  // namespace ats::cuda
