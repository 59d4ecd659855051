// extract_patches on a GPU: which kernels cut what.
#include "patches_cut.cuh"

namespace ats::cuda {
namespace {

// Channels whose mean and std fit the arguments of a kernel that computes in the wider of its types.
int64_t channels_a_launch(const PatchesPlan& plan, bool doubles) {
  if (!plan.mean && !plan.std) return kMostChannels;
  return doubles ? ChannelValues<double>::kMost : ChannelValues<float>::kMost;
}

}  // namespace

void extract_patches(const PatchesPlan& plan, const ats_tensor& image, const ats_tensor& patches,
                     const ats_executor* executor) {
  const DeviceGuard guard("extract_patches", image.device_index);
  const Queue queue{"extract_patches", stream_of(executor)};
  const int64_t in_size = item_size(image.dtype), out_size = item_size(patches.dtype);
  for (int s = 0; s < plan.n_scales; ++s) {
    const bool average = plan.averaged(s) > 1;
    const int64_t most = channels_a_launch(plan, average || image.dtype == ATS_FLOAT64 || patches.dtype == ATS_FLOAT64);
    for (int64_t c = 0; c < plan.channels; c += most) {
      PatchesPart part{plan, s, image.dtype, patches.dtype, nullptr, nullptr};
      part.plan.channels = std::min(most, plan.channels - c);
      if (element_count(image) == 0) {  // all padding, and perhaps no memory that a pointer could move in
        part.plan.image_batch = part.plan.image_channel = 0;
        for (int64_t& stride : part.plan.image_axis) stride = 0;
      }
      if (plan.mean) part.plan.mean += c;
      if (plan.std) part.plan.std += c;
      part.image = static_cast<const char*>(image.data) + c * part.plan.image_channel * in_size;
      part.patches = static_cast<char*>(patches.data) + (s * plan.patch_scale + c * plan.patch_channel) * out_size;
      if (average) average_patches(queue, part);
      else if (!cut_vectors(queue, part)) cut_elements(queue, part);
    }
  }
}

}  // namespace ats::cuda
