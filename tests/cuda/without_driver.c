/* What libats with CUDA kernels does on a machine without a CUDA driver, or without a GPU: an operation on a tensor that
 * claims to be on a GPU is an error in words, which touches nothing, and the CPU's operations work. */
#include <ats/ats.h>
#include <stdio.h>
#include <string.h>

#define CHECK(condition)                                                            \
  do {                                                                              \
    if (!(condition)) {                                                             \
      fprintf(stderr, "line %d: %s\n%s\n", __LINE__, #condition, ats_last_error()); \
      return 1;                                                                     \
    }                                                                               \
  } while (0)

static ats_tensor view(void* data, int32_t dtype, int32_t device, int32_t ndim, int64_t rows, int64_t columns) {
  ats_tensor t = {data, {rows, columns}, {ndim == 2 ? columns : 1, 1}, ndim, dtype, device, 0};
  return t;
}

int main(void) {
  float weights[2 * 5] = {1, 2, 3, 4, 5, 5, 4, 3, 2, 1}, probabilities[2 * 3], threshold[2];
  int64_t rng[2] = {1, 2}, indices[2 * 3];
  double log_mass[2];
  static double workspace[1 << 16];
  for (int device = ATS_CUDA; device >= ATS_CPU; --device) {
    memset(probabilities, 0x5a, sizeof probabilities);
    memset(threshold, 0x5a, sizeof threshold);
    memset(indices, 0x5a, sizeof indices);
    memset(log_mass, 0x5a, sizeof log_mass);
    memset(workspace, 0x5a, sizeof workspace);
    const ats_tensor attention = view(weights, ATS_FLOAT32, device, 2, 2, 5), seed = view(rng, ATS_INT64, 0, 1, 2, 1),
                     cells = view(indices, ATS_INT64, device, 2, 2, 3),
                     drawn = view(probabilities, ATS_FLOAT32, device, 2, 2, 3),
                     times = view(threshold, ATS_FLOAT32, device, 1, 2, 1),
                     masses = view(log_mass, ATS_FLOAT64, device, 1, 2, 1);
    const ats_sample_options options = {3, 0, 0};
    const int status =
        ats_sample(&attention, &seed, &options, &cells, &drawn, &times, &masses, workspace, ats_thread_pool());
    if (device == ATS_CPU) {
      CHECK(status == ATS_OK);
      for (int i = 0; i < 6; ++i) CHECK(indices[i] >= 0 && indices[i] < 5);
      continue;
    }
    const char* message = ats_last_error();
    printf("%s\n", message);
    CHECK(status == ATS_INTERNAL);
    CHECK(strncmp(message, "sample: CUDA: ", 14) == 0 && strlen(message) > 20);
    const void* memory[] = {probabilities, threshold, indices, log_mass, workspace};
    const size_t sizes[] = {sizeof probabilities, sizeof threshold, sizeof indices, sizeof log_mass, sizeof workspace};
    for (int m = 0; m < 5; ++m)
      for (size_t i = 0; i < sizes[m]; ++i) CHECK(((const unsigned char*)memory[m])[i] == 0x5a);
  }
  return 0;
}
