// extract_patches on a GPU gives what it gives on the CPU, bit for bit, and writes nothing else.
#include <cstring>
#include <limits>

#include "../cpp/check.h"
#include "patches_cases.h"

namespace {

// The same call on both sides: all of the memory in which the patches lie is compared, gaps and margins too.
void compare(const PatchesCase& c) {
  const Memory image = c.image_memory();
  std::vector<unsigned char> expected(c.patches.bytes(), 0xcd);
  const ats_tensor cpu_image = image.view(c.image), cpu_patches = c.patches.at(expected.data());
  const ats_tensor cpu_origins = ats::view(c.origins.data(), {c.batch, c.samples, int64_t(c.options.spatial)});
  CHECK_OK(ats_extract_patches(&cpu_image, &cpu_origins, &c.options, &cpu_patches, nullptr));

  const OnDevice<unsigned char> device_image(image.values), device_patches(expected.size());
  const OnDevice<int64_t> device_origins(c.origins);
  const ats_tensor gpu_image = on_gpu(c.image.at(device_image.data())),
                   gpu_patches = on_gpu(c.patches.at(device_patches.data())),
                   gpu_origins =
                       on_gpu(ats::view(device_origins.data(), {c.batch, c.samples, int64_t(c.options.spatial)}));
  CHECK_OK(ats_extract_patches(&gpu_image, &gpu_origins, &c.options, &gpu_patches, nullptr));
  const std::vector<unsigned char> got = device_patches.get();
  const bool same = got.empty() || std::memcmp(got.data(), expected.data(), got.size()) == 0;
  CHECK(same);
  if (!same) c.print();
}

void test_random() {
  for (int number = 0; number < kCases; ++number) {
    Random random{uint64_t(number) + 1};
    compare(random_case(random, number));
  }
}

// Rows in every layout that a loop over rows could take, at every alignment.
void test_rows() {
  Random random{99};
  for (const int64_t channels : {1, 2, 3, 4, 5, 17}) {
    for (int64_t width = 1; width <= 70; width += channels == 3 ? 1 : 7) {
      PatchesCase c = plain_case(2, 2, 2, channels);
      c.size[1] = 5, c.size[2] = width + random.pick(-3, 20);
      c.options.patch[0] = 4, c.options.patch[1] = width;
      if (c.size[2] < 1) c.size[2] = 1;
      c.choose_dtypes(random);
      c.choose_values(random, true);
      c.choose_origins(random);
      c.lay_out(random, random.pick(0, 1) ? Layout::interleaved : Layout::planar);
      compare(c);
    }
  }
}

// More channels than the arguments of a kernel have mean and std for.
void test_many_channels() {
  Random random{5};
  for (const Layout layout : {Layout::interleaved, Layout::planar}) {
    for (const int scale : {1, 2}) {
      for (const bool normal : {false, true}) {
        PatchesCase c = plain_case(2, 1, 2, 300);
        c.size[1] = 5, c.size[2] = 6;
        c.options.patch[0] = c.options.patch[1] = 3;
        c.options.n_scales = 1;
        c.options.scales[0] = scale;
        c.choose_dtypes(random);
        c.choose_values(random, normal);
        c.choose_origins(random);
        c.lay_out(random, layout);
        compare(c);
      }
    }
  }
}

// Patches in several pieces, and averages of many pixels.
void test_large() {
  Random random{7};
  for (int number = 0; number < 6; ++number) {
    PatchesCase c = plain_case(2, 1, 2, number % 2 ? 3 : 1);
    c.size[1] = 90, c.size[2] = 100;
    c.options.patch[0] = 60, c.options.patch[1] = 70;
    if (number >= 4) {
      c.options.n_scales = 2;
      c.options.patch[0] = c.options.patch[1] = 3;
      c.options.scales[0] = 37, c.options.scales[1] = 1;
    }
    c.choose_dtypes(random);
    c.choose_values(random, number % 3 == 0);
    c.choose_origins(random);
    c.lay_out(random, number % 4 < 2 ? Layout::interleaved : Layout::planar);
    compare(c);
  }
}

void test_refused() {
  PatchesCase c = plain_case(1, 1, 1, 1);
  Random random{1};
  c.lay_out(random, Layout::interleaved);
  c.options.n_scales = 17;
  ats_tensor shape{};
  const ats_tensor image = on_gpu(c.image.at(nullptr)), origins = on_gpu(ats::view<int64_t>(nullptr, {1, 1, 1}));
  CHECK(ats_extract_patches_shape(&image, &origins, &c.options, &shape) == ATS_INVALID_ARGUMENT);
  c.options.n_scales = 0;
  CHECK_OK(ats_extract_patches_shape(&image, &origins, &c.options, &shape));
  CHECK(shape.device == ATS_CUDA);
}

}  // namespace

int main() {
  in_every_order([] {
    test_rows();
    test_many_channels();
    test_large();
  });
  test_random();
  test_refused();
  return finish();
}
