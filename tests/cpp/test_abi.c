/* The header is plain C11, and the library answers to C: one call of each kind, and errors as status and message. */
#include <ats/ats.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int failures = 0;
#define CHECK(condition) \
  ((condition) ? (void)0 : (void)(++failures, printf("%s:%d: failed: %s\n", __FILE__, __LINE__, #condition)))

static ats_tensor vector_of(void* data, int32_t dtype, int64_t rows, int64_t columns) {
  ats_tensor t;
  memset(&t, 0, sizeof t);
  t.data = data;
  t.dtype = dtype;
  t.ndim = columns < 0 ? 1 : 2;
  t.shape[0] = rows;
  t.shape[1] = columns < 0 ? 0 : columns;
  t.strides[0] = columns < 0 ? 1 : columns;
  t.strides[1] = 1;
  return t;
}

int main(void) {
  float weights[2][4] = {{0, 1, 2, 3}, {5, 0, 0, 1}};
  int64_t seed[2] = {7, 0}, cells[2][2];
  float probabilities[2][2], threshold[2];
  double log_mass[2];
  ats_tensor attention = vector_of(weights, ATS_FLOAT32, 2, 4), rng = vector_of(seed, ATS_INT64, 2, -1);
  ats_tensor indices = vector_of(cells, ATS_INT64, 2, 2), probs = vector_of(probabilities, ATS_FLOAT32, 2, 2);
  ats_tensor times = vector_of(threshold, ATS_FLOAT32, 2, -1), mass = vector_of(log_mass, ATS_FLOAT64, 2, -1);
  ats_sample_options options = {2, 0, 0};
  size_t bytes = 0;
  void* workspace;

  CHECK(strlen(ats_version()) >= 5);
  CHECK(ats_sample_workspace(&attention, &options, &bytes) == ATS_OK && bytes > 0);
  workspace = malloc(bytes);
  CHECK(ats_sample(&attention, &rng, &options, &indices, &probs, &times, &mass, workspace, NULL) == ATS_OK);
  CHECK(cells[0][0] > 0 && cells[0][1] > 0 && cells[0][0] != cells[0][1]);
  CHECK((cells[1][0] == 0 && cells[1][1] == 3) || (cells[1][0] == 3 && cells[1][1] == 0));
  CHECK(threshold[0] > 0 && threshold[0] < 1e30f && threshold[1] > 1e38f);

  options.n = 3; /* row 1 has two cells of positive weight */
  {
    int64_t more[2][3];
    float p[2][3];
    ats_tensor i3 = vector_of(more, ATS_INT64, 2, 3), p3 = vector_of(p, ATS_FLOAT32, 2, 3);
    CHECK(ats_sample(&attention, &rng, &options, &i3, &p3, &times, &mass, workspace, NULL) == ATS_INVALID_ARGUMENT);
    CHECK(strstr(ats_last_error(), "row 1") && strstr(ats_last_error(), "2 cells"));
    CHECK(ats_sample(&attention, &rng, &options, &indices, &p3, &times, &mass, workspace, NULL) ==
          ATS_INVALID_ARGUMENT);
    CHECK(strstr(ats_last_error(), "indices"));
  }
  CHECK(ats_sample(NULL, &rng, &options, &indices, &probs, &times, &mass, workspace, NULL) == ATS_INVALID_ARGUMENT);
  CHECK(strstr(ats_last_error(), "attention"));
  attention.device = ATS_CUDA;
  options.n = 2;
  CHECK(ats_sample(&attention, &rng, &options, &indices, &probs, &times, &mass, workspace, NULL) == ATS_UNSUPPORTED);
  CHECK(strstr(ats_last_error(), "CUDA"));
  free(workspace);
  printf("%d failures\n", failures);
  return failures != 0;
}
