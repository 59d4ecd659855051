// The smallest possible test harness: CHECK counts, and main() returns finish().
#pragma once

#include <ats/ats.h>

#include <cstdio>

inline int failures = 0;
inline int checks = 0;

#define CHECK(condition)                                                  \
  do {                                                                    \
    ++checks;                                                             \
    if (!(condition)) {                                                   \
      ++failures;                                                         \
      std::printf("%s:%d: failed: %s\n", __FILE__, __LINE__, #condition); \
    }                                                                     \
  } while (0)

#define CHECK_OK(call)                                                                           \
  do {                                                                                           \
    ++checks;                                                                                    \
    if (const int status = (call); status != ATS_OK) {                                           \
      ++failures;                                                                                \
      std::printf("%s:%d: %s -> %d: %s\n", __FILE__, __LINE__, #call, status, ats_last_error()); \
    }                                                                                            \
  } while (0)

inline int finish() {
  std::printf("%d checks, %d failures\n", checks, failures);
  return failures != 0 || checks == 0;
}
