#include "bench.h"

int main(int argc, char** argv) {
  benchmark::AddCustomContext("ats_version", ats_version());
  benchmark::AddCustomContext("compiler", BENCH_COMPILER);
  benchmark::AddCustomContext("libats_build_type", BENCH_BUILD_TYPE);
  bench::add_sample();
  bench::add_patches();
  bench::add_expectation();
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
}
