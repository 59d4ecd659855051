// The gradient of extract_patches on a GPU is what it is on the CPU, bit for bit, and nothing else is written.
#include "../cpp/check.h"
#include "patches_cases.h"

namespace {

// `c` with its image as d_image and its patches as grad.
void compare(const PatchesCase& c) {
  const Memory grad = c.patches_memory();
  std::vector<unsigned char> expected(c.image.bytes(), 0xcd);
  const ats_tensor cpu_image = c.image.at(expected.data()), cpu_grad = grad.view(c.patches);
  const ats_tensor cpu_origins = ats::view(c.origins.data(), {c.batch, c.samples, int64_t(c.options.spatial)});
  size_t bytes = 0;
  CHECK_OK(ats_extract_patches_backward_workspace(&cpu_image, &bytes));
  std::vector<double> workspace(bytes / 8 + 1);
  CHECK_OK(ats_extract_patches_backward(&cpu_grad, &cpu_origins, &c.options, &cpu_image, workspace.data(), nullptr));

  const OnDevice<unsigned char> device_grad(grad.values), device_image(expected.size());
  const OnDevice<int64_t> device_origins(c.origins);
  const ats_tensor gpu_grad = on_gpu(c.patches.at(device_grad.data())),
                   gpu_image = on_gpu(c.image.at(device_image.data())),
                   gpu_origins =
                       on_gpu(ats::view(device_origins.data(), {c.batch, c.samples, int64_t(c.options.spatial)}));
  CHECK_OK(ats_extract_patches_backward_workspace(&gpu_image, &bytes));
  CHECK(bytes == 0);
  CHECK_OK(ats_extract_patches_backward(&gpu_grad, &gpu_origins, &c.options, &gpu_image, nullptr, nullptr));
  const std::vector<unsigned char> got = device_image.get();
  const bool same = got.empty() || std::memcmp(got.data(), expected.data(), got.size()) == 0;
  CHECK(same);
  if (!same) c.print();
}

// Both floating; d_image may not overlap itself, so the image's layout is that of an output.
void make_backward(PatchesCase& c, Random& random, Layout layout, bool odd) {
  c.dtype = int(random.pick(ATS_FLOAT16, ATS_FLOAT64));
  c.options.dtype = int(random.pick(ATS_FLOAT16, ATS_FLOAT64));
  do {
    c.lay_out(random, layout, odd);
  } while (c.image_overlaps());
}

void test_random() {
  for (int number = 0; number < kCases; ++number) {
    Random random{uint64_t(number) + 1001};
    PatchesCase c = random_case(random, number);
    make_backward(c, random, Layout(random.pick(0, 2)), random.one_in(2));
    compare(c);
  }
}

// More patches than the list has room for, in several stretches.
void test_many_patches() {
  Random random{3};
  for (int padding = ATS_PAD_CONSTANT; padding <= ATS_PAD_REFLECT; ++padding) {
    PatchesCase c = plain_case(2, 1, 300, 3);
    c.size[1] = 40, c.size[2] = 50;
    c.options.patch[0] = 2, c.options.patch[1] = 3;
    c.options.n_scales = 2;
    c.options.scales[0] = 1, c.options.scales[1] = 3;
    c.choose_values(random, padding != ATS_PAD_EDGE);
    c.options.padding = padding;
    c.choose_origins(random);
    make_backward(c, random, padding == ATS_PAD_REFLECT ? Layout::planar : Layout::interleaved, padding != 0);
    compare(c);
  }
}

// Stretches that no patch touches, one that does, and more channels than the arguments of a kernel have std for.
void test_sparse_and_wide() {
  Random random{4};
  for (const bool odd : {false, true}) {
    PatchesCase c = plain_case(2, 2, 2, 3);
    c.size[1] = 90, c.size[2] = 100;
    c.options.patch[0] = 5, c.options.patch[1] = 7;
    c.origins = {3, 4, 60, 70, 60, 90, 88, -2};
    make_backward(c, random, odd ? Layout::planar : Layout::interleaved, odd);
    compare(c);
    PatchesCase wide = plain_case(1, 1, 2, 300);
    wide.size[2] = 9;
    wide.options.patch[0] = 4;
    wide.choose_values(random, true);
    wide.choose_origins(random);
    make_backward(wide, random, odd ? Layout::planar : Layout::interleaved, odd);
    compare(wide);
  }
}

}  // namespace

int main() {
  in_every_order([] {
    test_many_patches();
    test_sparse_and_wide();
  });
  test_random();
  return finish();
}
