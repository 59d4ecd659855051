// Random calls of extract_patches and its backward: shapes, strides, dtypes, origins and options, and memory for them.
#pragma once

#include <algorithm>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "device.h"

constexpr int kCases = 400;

struct Random {
  std::mt19937_64 engine;
  explicit Random(uint64_t seed) : engine(seed) {}
  int64_t pick(int64_t low, int64_t high) { return low + int64_t(engine() % uint64_t(high - low + 1)); }
  bool one_in(int64_t n) { return pick(1, n) == 1; }
};

enum class Layout { interleaved, planar, any };

inline int64_t size_of(int dtype) {
  const int64_t sizes[] = {1, 2, 2, 2, 2, 4, 8, 8};
  return sizes[dtype];
}

// A view of memory of `elements` elements, whose first element lies `offset` elements behind its begin.
struct LaidOut {
  ats_tensor tensor{};
  int64_t offset = 0, elements = 0;

  size_t bytes() const { return size_t(elements * size_of(tensor.dtype)); }
  ats_tensor at(void* memory) const {
    ats_tensor view = tensor;
    view.data = memory ? static_cast<unsigned char*>(memory) + offset * size_of(tensor.dtype) : nullptr;
    return view;
  }
  // Axes from the slowest to the fastest, with gaps and turned around now and then.
  void lay_out(Random& random, const std::vector<int>& order, bool input, bool odd) {
    int64_t stride = 1, first = 0;
    offset = odd ? random.pick(0, 9) : 0;
    for (auto axis = order.rbegin(); axis != order.rend(); ++axis) {
      const int64_t size = tensor.shape[*axis];
      tensor.strides[*axis] = stride;
      if (odd && input && random.one_in(12)) {
        tensor.strides[*axis] = 0;
        continue;
      }
      if (odd && random.one_in(8)) {
        tensor.strides[*axis] = -stride;
        if (size) first += (size - 1) * stride;
      }
      stride *= std::max<int64_t>(size, 1);
      if (odd && random.one_in(5)) stride += random.pick(1, 5);
    }
    elements = offset;
    offset += first;
    int64_t count = 1, last = 0;
    for (const int axis : order) {
      count *= tensor.shape[axis];
      last += std::max<int64_t>(tensor.strides[axis], 0) * (tensor.shape[axis] - 1);
    }
    elements = count ? offset + last + 1 : 0;  // the memory ends with the last element
    if (!count) offset = 0;
  }
};

struct Memory {
  std::vector<unsigned char> values;
  size_t bytes = 0;
  ats_tensor view(const LaidOut& layout) const { return layout.at(const_cast<unsigned char*>(values.data())); }
};

// Any finite bits of the dtype now and then, else numbers that are nothing special.
inline Memory random_memory(const LaidOut& layout, uint64_t seed) {
  Random random{seed};
  Memory memory;
  memory.bytes = layout.bytes();
  memory.values.resize(std::max<size_t>(memory.bytes, 1));  // no NULL, which no pointer may leave
  const int dtype = layout.tensor.dtype;
  const int64_t size = size_of(dtype);
  for (int64_t i = 0; i < layout.elements; ++i) {
    uint64_t bits = random.engine();
    if (dtype >= ATS_FLOAT16) {
      // Exponents near 1, or, rarely, small ones down to subnormal; nothing whose sum leaves the range.
      const int mantissa = dtype == ATS_FLOAT16 ? 10 : dtype == ATS_BFLOAT16 ? 7 : dtype == ATS_FLOAT32 ? 23 : 52;
      const int bias = dtype == ATS_FLOAT16 ? 15 : dtype == ATS_FLOAT64 ? 1023 : 127;
      const uint64_t exponent =
          random.one_in(40) ? uint64_t(random.pick(0, bias)) : uint64_t(bias + random.pick(-4, 3));
      bits = (bits & ((uint64_t(1) << mantissa) - 1)) | exponent << mantissa | (bits >> 63) << (size * 8 - 1);
    }
    std::memcpy(memory.values.data() + i * size, &bits, size_t(size));
  }
  return memory;
}

struct PatchesCase {
  int64_t batch = 1, samples = 1, channels = 1;
  int64_t size[3] = {1, 1, 1};  // of the image; spatial axes are the last
  int dtype = ATS_FLOAT32;      // of the image; of the patches: options.dtype
  ats_patches_options options{};
  std::vector<int64_t> origins;
  std::vector<double> mean, std;
  LaidOut image, patches;
  uint64_t seed = 0;

  PatchesCase() = default;
  PatchesCase(const PatchesCase&) = delete;  // options point into it
  PatchesCase(PatchesCase&&) = default;
  PatchesCase& operator=(PatchesCase&&) = default;

  Memory image_memory() const { return random_memory(image, seed); }
  Memory patches_memory() const { return random_memory(patches, seed + 1); }

  void choose_dtypes(Random& random) {
    dtype = int(random.pick(ATS_UINT8, ATS_FLOAT64));
    options.dtype = random.one_in(3) ? dtype : int(random.pick(ATS_FLOAT16, ATS_FLOAT64));
  }
  void choose_values(Random& random, bool normal) {
    options.padding = int(random.pick(ATS_PAD_CONSTANT, ATS_PAD_REFLECT));
    options.fill = double(random.pick(-100, 300)) / 7;
    mean.clear(), std.clear();
    for (int64_t c = 0; normal && c < channels; ++c) {
      mean.push_back(random.one_in(9) ? 0.0 : double(random.pick(-3000, 3000)) / 13);
      std.push_back((random.one_in(2) ? 1 : -1) * double(random.pick(1, 3000)) / 17);
      if (random.one_in(200)) std.back() *= 1e-20;
    }
    options.n_mean = options.n_std = int64_t(mean.size());
    options.mean = normal ? mean.data() : nullptr;
    options.std = normal ? std.data() : nullptr;
    if (normal && random.one_in(6)) options.mean = nullptr, options.n_mean = 0;
    if (normal && random.one_in(6)) options.std = nullptr, options.n_std = 0;
  }
  // Expanded axes, which an output may not have.
  bool image_overlaps() const {
    for (int a = 0; a < image.tensor.ndim; ++a)
      if (image.tensor.strides[a] == 0) return true;
    return false;
  }
  int64_t largest_scale() const {
    return options.n_scales ? *std::max_element(options.scales, options.scales + options.n_scales) : 1;
  }
  void choose_origins(Random& random) {
    origins.clear();
    for (int64_t i = 0; i < batch * samples; ++i) {
      const bool within = random.one_in(3);
      for (int a = 0; a < options.spatial; ++a) {
        const int64_t image_size = size[3 - options.spatial + a], patch = options.patch[a];
        int64_t origin = random.pick(-patch * largest_scale() - 3, image_size + patch * largest_scale() + 3);
        if (within) origin = random.pick(0, std::max<int64_t>(0, image_size - patch));
        if (random.one_in(25)) {
          const int64_t far[] = {INT64_MIN, INT64_MAX, INT64_MIN + 5, INT64_MAX - 3, int64_t(1) << 40};
          origin = far[random.pick(0, 4)];
        }
        origins.push_back(origin);
      }
    }
  }
  void lay_out(Random& random, Layout layout, bool odd = true) {
    const int spatial = options.spatial;
    image.tensor = patches.tensor = {};
    ats_tensor& i = image.tensor;
    ats_tensor& p = patches.tensor;
    i.dtype = dtype, p.dtype = options.dtype;
    i.shape[i.ndim++] = batch;
    p.shape[p.ndim++] = batch, p.shape[p.ndim++] = samples;
    if (options.n_scales) p.shape[p.ndim++] = options.n_scales;
    for (int a = 0; a < spatial; ++a) {
      i.shape[i.ndim++] = size[3 - spatial + a];
      p.shape[p.ndim++] = options.patch[a];
    }
    i.shape[i.ndim++] = p.shape[p.ndim++] = channels;
    for (LaidOut* t : {&image, &patches}) {
      std::vector<int> order;
      for (int axis = 0; axis < t->tensor.ndim; ++axis) order.push_back(axis);
      if (layout == Layout::planar) std::rotate(order.end() - 1 - spatial, order.end() - 1, order.end());
      if (layout == Layout::any) std::shuffle(order.begin(), order.end(), random.engine);
      t->lay_out(random, order, t == &image, odd);
    }
    seed = random.engine();
  }
  void print() const {
    std::printf("  D=%d B=%ld N=%ld C=%ld S=%d padding=%d dtype %d -> %d normal %d%d", options.spatial, long(batch),
                long(samples), long(channels), options.n_scales, options.padding, dtype, options.dtype,
                options.mean != nullptr, options.std != nullptr);
    for (int a = 0; a < options.spatial; ++a)
      std::printf(" %ld/%ld", long(options.patch[a]), long(size[3 - options.spatial + a]));
    std::printf(" strides:");
    for (const LaidOut* t : {&image, &patches}) {
      for (int a = 0; a < t->tensor.ndim; ++a) std::printf(" %ld", long(t->tensor.strides[a]));
      std::printf(";");
    }
    std::printf(" origins");
    for (size_t o = 0; o < origins.size() && o < 6; ++o) std::printf(" %ld", long(origins[o]));
    std::printf("\n");
  }
};

inline PatchesCase plain_case(int spatial, int64_t batch, int64_t samples, int64_t channels) {
  PatchesCase c;
  c.batch = batch, c.samples = samples, c.channels = channels;
  c.options.spatial = spatial;
  c.options.dtype = ATS_FLOAT32;
  for (int64_t& patch : c.options.patch) patch = 1;
  c.origins.assign(size_t(batch * samples * spatial), 0);
  return c;
}

inline PatchesCase random_case(Random& random, int number) {
  PatchesCase c = plain_case(1 + number % 3, random.pick(number % 20 ? 1 : 0, 2), random.pick(number % 17 ? 1 : 0, 3),
                             random.one_in(4) ? 3 : random.pick(1, 5));
  const int spatial = c.options.spatial;
  for (int a = 0; a < spatial; ++a) {
    const bool wide = a == spatial - 1;
    c.size[3 - spatial + a] = random.pick(1, wide ? 70 : 8);
    c.options.patch[a] = random.pick(1, wide ? 40 : 6);
  }
  if (random.one_in(3)) {
    c.options.n_scales = int(random.pick(1, 3));
    for (int s = 0; s < c.options.n_scales; ++s) c.options.scales[s] = random.pick(1, 4);
  }
  c.choose_dtypes(random);
  c.choose_values(random, random.one_in(2));
  if (random.one_in(20)) {
    c.options.padding = ATS_PAD_CONSTANT;
    c.size[3 - random.pick(1, spatial)] = 0;
  }
  c.choose_origins(random);
  c.lay_out(random, Layout(random.pick(0, 2)), !random.one_in(3));
  return c;
}
