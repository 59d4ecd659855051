// extract_patches and its backward on random shapes, strides, scales and origins, beside the plainest loops there are.
// Under the sanitizers this is also the test that nothing outside the tensors is touched.
#include <cmath>
#include <random>
#include <vector>

#include "check.h"
#include "ats/ats.hpp"

namespace {

std::mt19937_64 engine(17);
int64_t pick(int64_t low, int64_t high) { return low + int64_t(engine() % uint64_t(high - low + 1)); }

// Padding by walking: one step at a time, as a person would with a finger on the pixels.
int64_t walk(int64_t position, int64_t size, int padding) {
  if (padding == ATS_PAD_CONSTANT) return position < 0 || position >= size ? -1 : position;
  if (padding == ATS_PAD_EDGE) return position < 0 ? 0 : position >= size ? size - 1 : position;
  if (size == 1) return 0;
  int64_t at = 0, step = 1;
  if (position < 0) position = -position;  // mirrored at 0
  for (; position > 0; --position) {
    if (at + step < 0 || at + step >= size) step = -step;
    at += step;
  }
  return at;
}

struct Case {
  int spatial;
  int64_t batch, samples, channels, image[3] = {1, 1, 1}, patch[3] = {1, 1, 1};
  ats_patches_options options{};
  std::vector<double> mean, std;
  ats_tensor image_view{}, origin_view{}, patch_view{};
  std::vector<int64_t> origins;
};

// A view of random axis order: any of its axes may vary fastest, or run backwards.
ats_tensor random_view(std::vector<double>& memory, const ats_tensor& shape) {
  ats_tensor view = shape;
  std::vector<int> order;
  for (int axis = 0; axis < view.ndim; ++axis) order.insert(order.begin() + pick(0, axis), axis);
  int64_t stride = 1;
  for (const int axis : order) {
    view.strides[axis] = stride;
    stride *= view.shape[axis];
  }
  memory.resize(size_t(stride));
  double* data = memory.data();
  for (int axis = 0; axis < view.ndim; ++axis) {
    if (view.shape[axis] == 0 || pick(0, 3)) continue;
    data += (view.shape[axis] - 1) * view.strides[axis];
    view.strides[axis] = -view.strides[axis];
  }
  view.data = data;
  return view;
}

// value(b, n, s, z, y, x, c) of patches with all axes.
double& patch_at(const Case& c, const ats_tensor& t, int64_t b, int64_t n, int64_t s, const int64_t* p,
                 int64_t channel) {
  double* data = static_cast<double*>(t.data) + b * t.strides[0] + n * t.strides[1];
  int axis = 2;
  if (c.options.n_scales) data += s * t.strides[axis++];
  for (int a = 3 - c.spatial; a < 3; ++a) data += p[a] * t.strides[axis++];
  return data[channel * t.strides[axis]];
}

void test_random_case(int number) {
  Case c;
  c.spatial = int(pick(1, 3));
  c.batch = pick(0, 2);
  c.samples = pick(0, 3);
  c.channels = pick(1, 3);
  c.options.spatial = c.spatial;
  c.options.padding = int(pick(0, 2));
  c.options.fill = 0.25;
  c.options.dtype = ATS_FLOAT64;
  c.options.n_scales = int(pick(0, 3));
  for (int s = 0; s < c.options.n_scales; ++s) c.options.scales[s] = pick(1, 3);
  if (pick(0, 1)) {
    for (int64_t k = 0; k < c.channels; ++k) c.mean.push_back(0.5 * double(k)), c.std.push_back(2.0 + double(k));
    c.options.mean = c.mean.data();
    c.options.std = c.std.data();
    c.options.n_mean = c.options.n_std = c.channels;
  }
  ats_tensor shape{};
  shape.dtype = ATS_FLOAT64;
  shape.shape[shape.ndim++] = c.batch;
  for (int a = 0; a < c.spatial; ++a) {
    const bool wide = a == c.spatial - 1 && number % 4 == 0;  // rows longer than a vector
    c.options.patch[a] = c.patch[3 - c.spatial + a] = pick(1, wide ? 24 : 6);
    shape.shape[shape.ndim++] = c.image[3 - c.spatial + a] = pick(1, wide ? 50 : 7);
  }
  shape.shape[shape.ndim++] = c.channels;
  for (int64_t i = 0; i < c.batch * c.samples * c.spatial; ++i) {
    const int64_t ends[] = {INT64_MIN, INT64_MAX, INT64_MIN + 3, INT64_MAX - 5};
    c.origins.push_back(c.options.padding != ATS_PAD_REFLECT && pick(0, 9) == 0 ? ends[pick(0, 3)] : pick(-25, 25));
  }
  std::vector<double> image_memory, patch_memory, gradient_memory;
  const ats_tensor image = random_view(image_memory, shape);
  for (double& x : image_memory) x = double(engine() % 1000) * 1e-3;
  const ats_tensor origins = ats::view(c.origins.data(), {c.batch, c.samples, int64_t(c.spatial)});
  ats_tensor described{};
  CHECK_OK(ats_extract_patches_shape(&image, &origins, &c.options, &described));
  const ats_tensor patches = random_view(patch_memory, described);
  CHECK_OK(ats_extract_patches(&image, &origins, &c.options, &patches, number % 2 ? ats_thread_pool() : nullptr));

  // The plain loops, forward and backward at once: <patches, grad> is linear in the image.
  std::vector<double> grad_memory;
  const ats_tensor grad = random_view(grad_memory, described);
  for (double& x : grad_memory) x = double(engine() % 1000) * 1e-3 - 0.5;
  const ats_tensor d_image = random_view(gradient_memory, shape);
  for (double& x : gradient_memory) x = 1e9;  // must be overwritten
  CHECK_OK(ats_extract_patches_backward(&grad, &origins, &c.options, &d_image, nullptr,
                                        number % 2 ? nullptr : ats_thread_pool()));
  std::vector<double> expected_gradient(size_t(c.batch * c.image[0] * c.image[1] * c.image[2] * c.channels), 0.0);

  const auto offset = [&](const ats_tensor& t, int64_t b, const int64_t* pixel, int64_t channel) {
    double* p = static_cast<double*>(t.data) + b * t.strides[0] + channel * t.strides[t.ndim - 1];
    for (int a = 0; a < c.spatial; ++a) p += pixel[3 - c.spatial + a] * t.strides[1 + a];
    return p;
  };
  double worst = 0.0;
  for (int64_t b = 0; b < c.batch; ++b)
    for (int64_t n = 0; n < c.samples; ++n)
      for (int64_t s = 0; s < std::max(1, int(c.options.n_scales)); ++s)
        for (int64_t z = 0; z < c.patch[0]; ++z)
          for (int64_t y = 0; y < c.patch[1]; ++y)
            for (int64_t x = 0; x < c.patch[2]; ++x)
              for (int64_t k = 0; k < c.channels; ++k) {
                const int64_t p[3] = {z, y, x};
                const int64_t scale = c.options.n_scales ? c.options.scales[s] : 1;
                const double spread = c.std.empty() ? 1.0 : c.std[size_t(k)],
                             centre = c.mean.empty() ? 0.0 : c.mean[size_t(k)];
                const double count = std::pow(double(scale), c.spatial);
                double sum = 0.0;
                for (int64_t i = 0; i < int64_t(count); ++i) {
                  int64_t rest = i, pixel[3] = {0, 0, 0};
                  bool outside = false;
                  for (int a = 2; a >= 3 - c.spatial; --a) {
                    const int64_t origin = c.origins[size_t((b * c.samples + n) * c.spatial + a - (3 - c.spatial))];
                    // Far origins are moved nearer by hand; beyond 1000 pixels nothing changes with these two paddings.
                    const int64_t near = std::max<int64_t>(-1000, std::min<int64_t>(1000, origin));
                    const int64_t position = near - (scale - 1) * c.patch[a] / 2 + p[a] * scale + rest % scale;
                    rest /= scale;
                    pixel[a] = walk(position, c.image[a], c.options.padding);
                    outside |= pixel[a] < 0;
                  }
                  sum += outside ? c.options.fill : *offset(image, b, pixel, k);
                  if (!outside) {
                    const int64_t flat = ((b * c.image[0] + pixel[0]) * c.image[1] + pixel[1]) * c.image[2] + pixel[2];
                    expected_gradient[size_t(flat * c.channels + k)] +=
                        patch_at(c, grad, b, n, s, p, k) / count / spread;
                  }
                }
                worst =
                    std::fmax(worst, std::fabs(patch_at(c, patches, b, n, s, p, k) - (sum / count - centre) / spread));
              }
  CHECK(worst < 1e-12);
  for (int64_t flat = 0; flat < int64_t(expected_gradient.size()); ++flat) {
    int64_t rest = flat;
    const int64_t channel = rest % c.channels;
    rest /= c.channels;
    int64_t pixel[3];
    for (int a = 2; a >= 0; --a) pixel[a] = rest % c.image[a], rest /= c.image[a];
    worst = std::fmax(worst, std::fabs(*offset(d_image, rest, pixel, channel) - expected_gradient[size_t(flat)]));
  }
  CHECK(worst < 1e-12);
  if (worst >= 1e-12)
    std::printf("case %d: D=%d padding=%d scales=%d worst %g\n", number, c.spatial, c.options.padding,
                c.options.n_scales, worst);
}

// Mirroring far away is a matter of the period.
void test_far_reflection() {
  const std::vector<double> image{10, 11, 12, 13};  // period 6
  const ats_tensor view = ats::view(image.data(), {1, 4, 1});
  const int64_t far[] = {INT64_MAX, INT64_MIN, INT64_MAX - 1};  // 1, 4 and 0 modulo 6
  const ats_tensor origins = ats::view(far, {1, 3, 1});
  ats_patches_options options{};
  options.spatial = 1;
  options.patch[0] = 3;
  options.padding = ATS_PAD_REFLECT;
  options.dtype = ATS_FLOAT64;
  std::vector<double> out(9);
  const ats_tensor patches = ats::view(out.data(), {1, 3, 3, 1});
  CHECK_OK(ats_extract_patches(&view, &origins, &options, &patches, nullptr));
  const std::vector<double> expected{11, 12, 13, 12, 11, 10, 10, 11, 12};
  CHECK(out == expected);
}

// An image without a pixel needs no data, whatever its strides are: its patches are padding.
void test_no_pixels() {
  ats_tensor image = ats::view(static_cast<const double*>(nullptr), {2, 0, 4, 3});
  for (int axis = 0; axis < image.ndim; ++axis) image.strides[axis] = axis - 12;
  const std::vector<int64_t> origins{0, 0, -5, 2, 1, -1, 7, 7};
  const ats_tensor places = ats::view(origins.data(), {2, 2, 2});
  for (const int64_t scale : {0, 1, 2}) {
    ats_patches_options options{};
    options.spatial = 2;
    options.patch[0] = options.patch[1] = 2;
    options.n_scales = scale != 0;
    options.scales[0] = scale;
    options.dtype = ATS_FLOAT64;
    options.fill = 5.0;
    std::vector<double> out(48);
    const ats_tensor patches =
        scale ? ats::view(out.data(), {2, 2, 1, 2, 2, 3}) : ats::view(out.data(), {2, 2, 2, 2, 3});
    CHECK_OK(ats_extract_patches(&image, &places, &options, &patches, nullptr));
    CHECK(out == std::vector<double>(48, 5.0));
    size_t bytes = 0;
    CHECK_OK(ats_extract_patches_backward_workspace(&image, &bytes));
    std::vector<double> workspace(bytes / sizeof(double) + 1);
    CHECK_OK(ats_extract_patches_backward(&patches, &places, &options, &image, workspace.data(), nullptr));
  }
}

// Options that point at less memory than they say, or at sizes that would overflow, are refused before they are used.
void test_refusals() {
  const std::vector<double> image(8);
  ats_tensor view = ats::view(image.data(), {1, 2, 4});
  const int64_t origin = 0;
  const ats_tensor origins = ats::view(&origin, {1, 1, 1});
  ats_patches_options options{};
  options.spatial = 1;
  options.patch[0] = 1;
  options.dtype = ATS_FLOAT64;
  ats_tensor patches{};
  const double one = 1.0, tiny = 1e-50;
  const auto refused = [&] {
    return ats_extract_patches_shape(&view, &origins, &options, &patches) == ATS_INVALID_ARGUMENT;
  };
  CHECK(!refused());
  options.mean = &one;
  for (const int64_t length : {-1, 0, 1, 5}) {
    options.n_mean = length;
    CHECK(refused());
  }
  options.mean = nullptr;
  options.n_mean = 0;
  const double stds[] = {1.0, 1.0, tiny, 1.0};
  options.std = stds;
  options.n_std = 4;
  CHECK(refused());
  options.std = nullptr;
  options.n_std = 0;
  options.n_scales = 1;
  for (const int64_t scale : {int64_t{0}, int64_t{-3}, (int64_t{1} << 20) + 1, INT64_MAX}) {
    options.scales[0] = scale;
    CHECK(refused());
  }
  options.scales[0] = 1 << 20;
  CHECK(!refused());
  options.n_scales = 0;
  view.shape[1] = INT64_MAX / 64;  // an expanded axis
  view.strides[1] = 0;
  CHECK(refused());
}

}  // namespace

int main() {
  for (int number = 0; number < 1500; ++number) test_random_case(number);
  test_far_reflection();
  test_no_pixels();
  test_refusals();
  return finish();
}
