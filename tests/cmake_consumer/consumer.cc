// Cut two patches out of an image, one of them across its border.
#include <ats/ats.hpp>

#include <array>
#include <iostream>
#include <numeric>

int main() {
  std::array<std::uint8_t, 16> image;
  std::iota(image.begin(), image.end(), std::uint8_t{0});
  const std::array<std::int64_t, 4> origins = {1, 2, 3, -1};
  std::array<float, 8> patches{};

  ats_patches_options options{};
  options.spatial = 2;
  options.patch[0] = options.patch[1] = 2;
  options.dtype = ATS_FLOAT32;
  options.fill = -1;
  const ats_tensor pixels = ats::view(image.data(), {1, 4, 4, 1}), where = ats::view(origins.data(), {1, 2, 2});
  ats_tensor shape{};
  ats::check(ats_extract_patches_shape(&pixels, &where, &options, &shape));
  const ats_tensor out = ats::view(patches.data(), {1, 2, 2, 2, 1});
  if (shape.ndim != 5 || shape.shape[1] != 2 || shape.dtype != ATS_FLOAT32) return 1;
  ats::check(ats_extract_patches(&pixels, &where, &options, &out, ats_thread_pool()));
  if (patches != std::array<float, 8>{6, 7, 10, 11, -1, 12, -1, -1}) return 2;

  try {
    options.patch[0] = -2;
    ats::check(ats_extract_patches(&pixels, &where, &options, &out, nullptr));
  } catch (const std::invalid_argument& error) {
    std::cout << "libats " << ats_version() << ": " << error.what() << "\n";
    return 0;
  }
  return 3;
}
