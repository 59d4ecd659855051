# cmake --build build --target bench        the C++ benchmarks, beside memcpys and sums of the same bytes
# cmake --build build --target bench_peers  the Python functions, beside what one would write without them
# Both write tables and numbers to benchmarks/results. Nothing here costs anything until one of them is built: Google
# Benchmark is looked for, or fetched, only then.
include(ExternalProject)
find_package(Python 3.10 COMPONENTS Interpreter QUIET)
if(NOT Python_FOUND)
  set(Python_EXECUTABLE python3)
endif()
set(ATS_BENCH_DIR ${PROJECT_BINARY_DIR}/bench)

ExternalProject_Add(ats_bench EXCLUDE_FROM_ALL ON DEPENDS ats
  SOURCE_DIR ${PROJECT_SOURCE_DIR}/benchmarks/cpp
  PREFIX ${ATS_BENCH_DIR}
  BINARY_DIR ${ATS_BENCH_DIR}/build
  CMAKE_ARGS -DCMAKE_BUILD_TYPE=Release -DCMAKE_CXX_COMPILER=${CMAKE_CXX_COMPILER} -DATS_LIBRARY=$<TARGET_FILE:ats>
             -DATS_BUILD_TYPE=$<CONFIG> -Dbenchmark_DIR=${benchmark_DIR}
             -DFETCHCONTENT_SOURCE_DIR_BENCHMARK=${FETCHCONTENT_SOURCE_DIR_BENCHMARK}
  BUILD_ALWAYS ON INSTALL_COMMAND "" USES_TERMINAL_CONFIGURE ON USES_TERMINAL_BUILD ON)

add_custom_target(bench
  COMMAND ${ATS_BENCH_DIR}/build/ats_bench --benchmark_counters_tabular=true
          --benchmark_out=${ATS_BENCH_DIR}/bench.json
  COMMAND ${Python_EXECUTABLE} ${PROJECT_SOURCE_DIR}/benchmarks/report.py ${ATS_BENCH_DIR}/bench.json
          --out ${PROJECT_SOURCE_DIR}/benchmarks/results
  DEPENDS ats_bench USES_TERMINAL VERBATIM)

add_custom_target(bench_peers
  COMMAND ${Python_EXECUTABLE} ${PROJECT_SOURCE_DIR}/benchmarks/peers.py --out ${PROJECT_SOURCE_DIR}/benchmarks/results
          --plots ${PROJECT_SOURCE_DIR}/docs/img
  USES_TERMINAL VERBATIM)
