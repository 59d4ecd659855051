// extract_patches and its gradient. The floor copies the rows of the same patches, one memcpy each; with scales it sums
// the rows that the largest scale covers, which hold those of the others; backward it zeroes the gradient first.
#include <cstring>
#include <list>

#include "bench.h"

namespace bench {
namespace {

constexpr int64_t kBatch = 32, kSamples = 10, kChannels = 3, kSize = 1500;
// The operation takes places in turn and its floor others, which together are more than a cache holds.
constexpr int64_t kPlaces = 16;

struct Case {
  int from, to;  // dtypes
  bool channels_first;
  int64_t patch;
  std::vector<int64_t> scales;  // none: plain patches
  bool normalise;
  int64_t batch;

  std::string name(const char* operation) const {
    std::string result = std::string(operation) + "/" + name_of(from);
    if (to != from) result += "_to_" + name_of(to);
    result += channels_first ? "/NCHW/" : "/NHWC/";
    result += std::to_string(batch) + "x" + std::to_string(kSamples) + "x" + std::to_string(patch);
    for (const int64_t scale : scales) result += (scale == scales[0] ? "/scales:" : ",") + std::to_string(scale);
    return result;
  }

  ats_patches_options options(const double* mean, const double* std) const {
    ats_patches_options result{};
    result.spatial = 2;
    result.patch[0] = result.patch[1] = patch;
    for (const int64_t scale : scales) result.scales[result.n_scales++] = scale;
    result.padding = ATS_PAD_CONSTANT;
    result.dtype = to;
    if (normalise) {
      result.mean = mean;
      result.std = std;
      result.n_mean = result.n_std = kChannels;
    }
    return result;
  }

  Tensor images(int dtype) const {
    return channels_first ? uniform(dtype, {batch, kChannels, kSize, kSize})
                          : uniform(dtype, {batch, kSize, kSize, kChannels});
  }
  ats_tensor image_view(ats_tensor image) const {
    if (channels_first) ats::move_axis(image, 1, 3);
    return image;
  }

  Tensor patches() const {
    const int64_t s = scales.empty() ? 1 : int64_t(scales.size());
    return channels_first ? uniform(to, {batch, kSamples, s, kChannels, patch, patch})
                          : uniform(to, {batch, kSamples, s, patch, patch, kChannels});
  }
  ats_tensor patches_view(ats_tensor patches) const {
    if (channels_first) ats::move_axis(patches, 3, 5);
    if (scales.empty()) {  // no axis of scales
      ats::move_axis(patches, 2, 5);
      patches.ndim = 5;
    }
    return patches;
  }

  // All that any scale covers lies inside of the image.
  std::vector<Tensor> places() const {
    const int64_t widest = scales.empty() ? 1 : scales.back(), before = (widest - 1) * patch / 2;
    std::vector<Tensor> result;
    for (int64_t i = 0; i < kPlaces; ++i)
      result.push_back(integers({batch, kSamples, 2}, before, kSize - widest * patch + before, uint64_t(i)));
    return result;
  }
};

// Calls row(patch, place in the image in bytes, row of the patch) for all the rows of patches of `size` pixels.
template <typename Row>
void for_rows(const Case& c, const Tensor& places, int64_t size, int64_t before, int64_t pixel, Row row) {
  const int64_t planes = c.channels_first ? kChannels : 1, step = c.channels_first ? pixel : pixel * kChannels;
  const int64_t* origins = static_cast<const int64_t*>(places.data);
  parallel(c.batch * kSamples, 4, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      for (int64_t plane = 0; plane < planes; ++plane)
        for (int64_t y = 0; y < size; ++y) {
          const int64_t image_row = (i / kSamples * planes + plane) * kSize + origins[2 * i] - before + y;
          row((i * planes + plane) * size + y, (image_row * kSize + origins[2 * i + 1] - before) * step, size * step);
        }
  });
  benchmark::ClobberMemory();
}

// The images last made: to make them takes a second.
std::shared_ptr<const Tensor> images(const Case& c, int dtype) {
  static std::list<std::shared_ptr<const Tensor>> made;
  for (const auto& image : made)
    if (image->dtype == dtype && image->shape[0] == c.batch && (image->shape[1] == kChannels) == c.channels_first)
      return image;
  if (made.size() == 2) made.pop_front();
  made.push_back(std::make_shared<const Tensor>(c.images(dtype)));
  return made.back();
}

void add_forward(const Case& c) {
  add(c.name("extract_patches"), [=](benchmark::State& state) {
    const auto image = images(c, c.from), floor_image = images(c, c.to);
    const Tensor patches = c.patches(), other = c.patches();
    const std::vector<Tensor> places = c.places();
    const std::vector<double> mean(kChannels, 127.5), std(kChannels, 64);
    const ats_patches_options options = c.options(mean.data(), std.data());
    const ats_tensor from = c.image_view(*image), to = c.patches_view(patches);
    const Call operation = [&](int64_t turn) {
      ats::check(ats_extract_patches(&from, &places[size_t(turn % kPlaces)], &options, &to, ats_thread_pool()));
    };
    if (c.scales.empty()) {
      measure(state, patches.bytes(), operation, [&](int64_t turn) {
        const char* pixels = static_cast<const char*>(floor_image->data);
        char* rows = static_cast<char*>(other.data);
        for_rows(c, places[size_t(turn % kPlaces)], c.patch, 0, bytes_of(c.to),
                 [=](int64_t row, int64_t at, int64_t bytes) {
                   std::memcpy(rows + row * bytes, pixels + at, size_t(bytes));
                 });
      });
    } else {
      const int64_t widest = c.scales.back();
      const int64_t bytes = c.batch * kSamples * kChannels * widest * widest * c.patch * c.patch * bytes_of(c.from);
      measure(state, bytes, operation, [&](int64_t turn) {
        const char* pixels = static_cast<const char*>(image->data);
        for_rows(c, places[size_t(turn % kPlaces)], widest * c.patch, (widest - 1) * c.patch / 2, bytes_of(c.from),
                 [=](int64_t, int64_t at, int64_t row) { benchmark::DoNotOptimize(sum_row(pixels + at, row)); });
      });
    }
  });
}

void add_backward(const Case& c) {
  add(c.name("extract_patches_backward"), [=](benchmark::State& state) {
    const Tensor gradient = c.images(c.from), other = c.images(c.from), grad = c.patches();
    const std::vector<Tensor> places = c.places();
    const ats_patches_options options = c.options(nullptr, nullptr);
    const ats_tensor to = c.image_view(gradient), from = c.patches_view(grad);
    size_t bytes;
    ats::check(ats_extract_patches_backward_workspace(&to, &bytes));
    std::vector<double> workspace(bytes / sizeof(double) + 1);
    measure(
        state, gradient.bytes(),
        [&](int64_t turn) {
          ats::check(ats_extract_patches_backward(&from, &places[size_t(turn % kPlaces)], &options, &to,
                                                  workspace.data(), ats_thread_pool()));
        },
        [&](int64_t turn) {
          char* pixels = static_cast<char*>(other.data);
          const char* rows = static_cast<const char*>(grad.data);
          parallel(other.bytes(), 1 << 16,
                   [=](int64_t begin, int64_t end) { std::memset(pixels + begin, 0, size_t(end - begin)); });
          for_rows(c, places[size_t(turn % kPlaces)], c.patch, 0, bytes_of(c.to),
                   [=](int64_t row, int64_t at, int64_t n) { std::memcpy(pixels + at, rows + row * n, size_t(n)); });
        });
  });
}

}  // namespace

void add_patches() {
  const bool first = true, last = false;
  for (const bool layout : {first, last}) {
    for (const int64_t patch : {16, 50, 128}) add_forward({ATS_FLOAT32, ATS_FLOAT32, layout, patch, {}, false, kBatch});
    add_forward({ATS_UINT8, ATS_UINT8, layout, 50, {}, false, kBatch});
    add_forward({ATS_UINT8, ATS_FLOAT32, layout, 50, {}, true, kBatch});
    add_forward({ATS_UINT8, ATS_FLOAT32, layout, 50, {1, 2, 4}, true, kBatch});
    add_forward({ATS_FLOAT32, ATS_FLOAT32, layout, 50, {1, 2, 4}, false, kBatch});
  }
  add_forward({ATS_UINT8, ATS_BFLOAT16, last, 50, {}, true, kBatch});
  for (const int dtype : {ATS_FLOAT64, ATS_FLOAT16, ATS_BFLOAT16})
    add_forward({dtype, dtype, first, 50, {}, false, kBatch});
  for (const int dtype : {ATS_FLOAT32, ATS_FLOAT64, ATS_FLOAT16, ATS_BFLOAT16})
    add_backward({dtype, dtype, first, 50, {}, false, 4});
  add_backward({ATS_FLOAT32, ATS_FLOAT32, last, 50, {}, false, 4});
  add_backward({ATS_FLOAT32, ATS_FLOAT32, first, 50, {1, 2, 4}, false, 4});
}

}  // namespace bench
