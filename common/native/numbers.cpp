// Continuous features as a layer takes them: what `number_kernel.py` in common/modules calls.

#include <vector>

#include "vectors.h"

namespace {

// log(1 + x) to about two units in the last place, for x >= 0. Polynomial as in Cephes' logf; what 1 + x loses by rounding is given back.
Floats log1p(Floats x) {
  const Floats whole = 1.0f + x;
  // whole = 2^n m with m in [sqrt(1/2), sqrt(2)): the bits below those of sqrt(1/2) carry into the exponent.
  const Ints bits = reinterpret_cast<Ints>(whole) - 0x3f3504f3;
  const Ints power = bits >> 23;
  const Floats m = reinterpret_cast<Floats>((bits & 0x007fffff) + 0x3f3504f3), r = m - 1.0f;
  const Floats n = __builtin_convertvector(power, Floats);
  Floats y = splat(7.0376836292e-2f);
  for (float coefficient : {-1.1514610310e-1f, 1.1676998740e-1f, -1.2420140846e-1f, 1.4249322787e-1f, -1.6668057665e-1f,
                            2.0000714765e-1f, -2.4999993993e-1f, 3.3333331174e-1f})
    y = y * r + coefficient;
  y = y * r * r * r - 0.5f * r * r + n * -2.12194440e-4f + r + n * 0.693359375f;
  return y + (x - (whole - 1.0f)) / whole;
}

}  // namespace

extern "C" {

// out [B, 2 F] = values, 0 where they are missing (NaN), then 1 where they are missing and else 0. A value is
// (x - shift) scale, cut to [-limit, limit], of the value or where `is_log` [F] says so of sign(x) log(1 + |x|).
void tml_scale_and_mark(const float *values, int64_t num_rows, int64_t row, int64_t num_features, const float *shift, const float *scale,
                        const float *limit, const bool *is_log, float *out) {
  const int64_t width = padded(num_features);
  std::vector<float> parameters(3 * width), line(2 * width);
  std::vector<int32_t> logs(width);
  std::copy_n(shift, num_features, parameters.data());
  std::copy_n(scale, num_features, parameters.data() + width);
  std::copy_n(limit, num_features, parameters.data() + 2 * width);
  for (int64_t i = 0; i < num_features; i++) logs[i] = is_log[i] ? -1 : 0;
  for (int64_t r = 0; r < num_rows; r++) {
    std::copy_n(values + r * row, num_features, line.data());
    for (int64_t i = 0; i < width; i += kLanes) {
      const Floats given = load(line.data() + i), size = max(given, -given), top = load(parameters.data() + 2 * width + i);
      const Ints sign = reinterpret_cast<Ints>(given) & INT32_MIN, missing = given != given;
      const Floats log = reinterpret_cast<Floats>(reinterpret_cast<Ints>(log1p(size)) | sign);
      Floats x = where(*reinterpret_cast<const Ints *>(logs.data() + i), log, given);
      x = (x - load(parameters.data() + i)) * load(parameters.data() + width + i);
      x = where(x > top, top, where(x < -top, -top, x));
      store(line.data() + i, where(missing, splat(0), x));
      store(line.data() + width + i, where(missing, splat(1), splat(0)));
    }
    std::copy_n(line.data(), num_features, out + 2 * r * num_features);
    std::copy_n(line.data() + width, num_features, out + (2 * r + 1) * num_features);
  }
}

}
