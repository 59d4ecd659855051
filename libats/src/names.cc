// The names that every language edge gives to the enumerations of ats.h, in one place.
#include <cstring>

#include "core.h"

namespace ats {
namespace {

// Names in the order of the enumeration, from 0.
template <size_t N>
void find_name(const char* what, const char* name, const char* const (&names)[N], int32_t* value) {
  check_pointer({what, "name"}, name);
  check_pointer({what, "value"}, value);
  std::string known;
  for (size_t i = 0; i < N; ++i) {
    if (std::strcmp(name, names[i]) == 0) {
      *value = int32_t(i);
      return;
    }
    known += (i ? ", '" : "'") + std::string(names[i]) + "'";
  }
  fail("%s: must be one of %s, got '%.64s'", what, known.c_str(), name);
}

}  // namespace
}  // namespace ats

int ats_estimator_by_name(const char* name, int32_t* estimator) noexcept {
  return ats::guard([&] {
    ats::find_name("estimator", name, {"iid", "des_raj", "murthy", "horvitz_thompson", "normalized"}, estimator);
  });
}

int ats_padding_by_name(const char* name, int32_t* padding) noexcept {
  return ats::guard([&] { ats::find_name("padding", name, {"constant", "edge", "reflect"}, padding); });
}
