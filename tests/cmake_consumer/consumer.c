/* Draw all cells that have weight; over them every unbiased estimate is exact. */
#include <ats/ats.h>
#include <math.h>
#include <stdio.h>

static ats_tensor view(void* data, ats_dtype dtype, int64_t columns) { /* one row, or `columns` numbers a row */
  ats_tensor tensor = {data, {1, columns}, {columns ? columns : 1, 1}, columns ? 2 : 1, dtype, ATS_CPU, 0};
  return tensor;
}

int main(void) {
  double weights[5] = {3, 0, 1, 2, 2}, probabilities[4], threshold[1], log_mass[1], features[4], expected[1];
  double scratch[4096], exact = 0, seen = 0;
  int64_t seed[2] = {7, 0}, cells[4];
  ats_tensor attention = view(weights, ATS_FLOAT64, 5), rng = view(seed, ATS_INT64, 0), t[6];
  ats_sample_options options = {4, 0, 0};
  size_t bytes = 0;
  rng.shape[0] = 2;
  t[0] = view(cells, ATS_INT64, 4), t[1] = view(probabilities, ATS_FLOAT64, 4), t[2] = view(threshold, ATS_FLOAT64, 0);
  t[3] = view(log_mass, ATS_FLOAT64, 0), t[4] = view(features, ATS_FLOAT64, 4), t[5] = view(expected, ATS_FLOAT64, 0);

  if (ats_sample_workspace(&attention, &options, &bytes) || bytes > sizeof scratch) return 1;
  if (ats_sample(&attention, &rng, &options, &t[0], &t[1], &t[2], &t[3], scratch, ats_thread_pool())) return 2;
  for (int i = 0; i < 4; ++i) {
    features[i] = sqrt((double)cells[i]);
    exact += weights[cells[i]] / 8 * features[i];
    seen += weights[cells[i]];
  }
  if (seen != 8 || fabs(log_mass[0] - log(8)) > 1e-12 || !isinf(threshold[0])) return 3;

  if (ats_expectation_workspace(&t[1], &bytes) || bytes > sizeof scratch) return 4;
  if (ats_expectation(&t[4], &t[1], NULL, NULL, ATS_MURTHY, &t[5], scratch, NULL)) return 5;
  if (fabs(expected[0] - exact) > 1e-12) return 6;

  weights[2] = -1;
  if (ats_sample(&attention, &rng, &options, &t[0], &t[1], &t[2], &t[3], scratch, NULL) != ATS_INVALID_ARGUMENT)
    return 7;
  printf("libats %s: %s\n", ats_version(), ats_last_error());
  return 0;
}
