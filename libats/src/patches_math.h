// Where the pixels of a patch come from: origins, scales and padding, along one axis at a time.
#pragma once

#include <ats/ats.h>

#include <cstdint>

#include "host_device.h"

namespace ats {

constexpr int64_t kOutside = -1;

// One spatial axis of a patch at one scale.
struct Axis {
  int64_t size;   // pixels of the image
  int64_t patch;  // pixels of the patch
  int64_t scale;  // image pixels a patch pixel averages
};

// Where mirroring without repeating the border comes round again.
ATS_HD inline int64_t reflect_period(int64_t size) { return size > 1 ? 2 * (size - 1) : 1; }

ATS_HD inline int64_t modulo(int64_t value, int64_t period) {
  const int64_t rest = value % period;
  return rest < 0 ? rest + period : rest;
}

// The first image pixel that the patch covers: origin - floor((scale - 1) * patch / 2), moved to an equivalent place
// near the image, so that no origin, however far, can overflow.
ATS_HD inline int64_t patch_start(const Axis& axis, int64_t origin, int padding) {
  const int64_t shift = (axis.scale - 1) * axis.patch / 2;
  const int64_t span = axis.scale * axis.patch;
  if (padding == ATS_PAD_REFLECT) {
    const int64_t period = reflect_period(axis.size);
    const int64_t start = modulo(modulo(origin, period) - modulo(shift, period), period);
    return start >= axis.size ? start - period : start;
  }
  // Beyond one span before the image or right behind it nothing changes any more.
  if (origin < shift - span) return -span;
  if (origin > axis.size && origin - axis.size > shift) return axis.size;
  return origin - shift;
}

// The image pixel that stands at `position`, or kOutside where the fill stands.
ATS_HD inline int64_t source_pixel(const Axis& axis, int64_t position, int padding) {
  if (position >= 0 && position < axis.size) return position;
  if (padding == ATS_PAD_CONSTANT) return kOutside;
  if (padding == ATS_PAD_EDGE) return position < 0 ? 0 : axis.size - 1;
  const int64_t period = reflect_period(axis.size);
  // Mirrored once: no division.
  if (position < 0 && -position < axis.size) return -position;
  if (position >= axis.size && position < period) return period - position;
  const int64_t rest = modulo(position, period);
  return rest < axis.size ? rest : period - rest;
}

// The image pixels [first, last) that hold all that the patch takes from the image, from patch_start on.
struct Span {
  int64_t first, last;
};
ATS_HD inline Span touched_pixels(const Axis& axis, int64_t start, int padding) {
  const int64_t stop = start + axis.scale * axis.patch;
  Span span{start < 0 ? 0 : start, stop > axis.size ? axis.size : stop};
  if (padding == ATS_PAD_CONSTANT) return span;
  if (padding == ATS_PAD_EDGE) {
    if (span.first >= axis.size) span.first = axis.size - 1;
    if (span.last <= 0) span.last = 1;
    return span;
  }
  // Mirrored: pixel i stands at -i, and pixel size - 1 - i at size - 1 + i.
  if (-start >= axis.size || stop - axis.size >= axis.size) return {0, axis.size};
  if (start < 0 && span.last <= -start) span.last = 1 - start;
  if (stop > axis.size && span.first > 2 * axis.size - 1 - stop) span.first = 2 * axis.size - 1 - stop;
  if (span.first < 0) span.first = 0;
  if (span.last > axis.size) span.last = axis.size;
  return span;
}

// Where along a patch one pixel of the image stands: at first, first + gap[0], first + gap[0] + gap[1], first + 2 gap[0]
// + gap[1] and so on, below stop.
struct Positions {
  int64_t first, stop, gap[2];
};
// Of a patch at `start`, for which patch_start was asked.
ATS_HD inline Positions positions_of(const Axis& axis, int64_t start, int64_t pixel, int padding) {
  const int64_t span = axis.scale * axis.patch, place = pixel - start;
  const bool there = place >= 0 && place < span;
  if (padding == ATS_PAD_CONSTANT || (start >= 0 && start + span <= axis.size))
    return {there ? place : 0, there ? place + 1 : 0, {1, 1}};
  if (padding == ATS_PAD_EDGE) {
    // The first pixel stands at all that lies before it, the last at all behind it.
    const int64_t first = pixel == 0 ? 0 : place, stop = pixel == axis.size - 1 ? span : place + 1;
    return {first < 0 ? 0 : first, stop > span ? span : stop, {1, 1}};
  }
  // At place + k period, and mirrored at mirror + k period. start lies less than a period before the image, or in it.
  const int64_t period = reflect_period(axis.size);
  int64_t direct = place, mirror = -pixel - start;
  if (direct >= period) direct -= period;
  while (direct < 0) direct += period;
  if (mirror >= period) mirror -= period;
  while (mirror < 0) mirror += period;
  if (direct == mirror) return {direct, span, {period, period}};
  const int64_t first = direct < mirror ? direct : mirror, second = direct < mirror ? mirror : direct;
  return {first, span, {second - first, period - (second - first)}};
}

}  // namespace ats
