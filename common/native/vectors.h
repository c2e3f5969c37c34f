// Sixteen floats at a time, for the kernels of one CPU process. Compilers that know GNU vectors (gcc, clang) turn them into what
// the processor has: one AVX-512 register, two of AVX2, four of NEON.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

constexpr int64_t kLanes = 16;

typedef float Floats __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t Ints __attribute__((vector_size(64), aligned(4), may_alias));

static inline int64_t padded(int64_t count) { return (count + kLanes - 1) / kLanes * kLanes; }
static inline Floats splat(float x) { return x - Floats{}; }
static inline Floats load(const float *from) { return *reinterpret_cast<const Floats *>(from); }
static inline void store(float *to, Floats x) { *reinterpret_cast<Floats *>(to) = x; }
static inline Floats where(Ints mask, Floats yes, Floats no) {
  return reinterpret_cast<Floats>((reinterpret_cast<Ints>(yes) & mask) | (reinterpret_cast<Ints>(no) & ~mask));
}
static inline Floats max(Floats x, Floats y) { return where(x > y, x, y); }

// Folds halves onto each other until one lane holds all: x + x', or max(x, x').
template <class Fold>
static inline float folded(Floats x, Fold fold) {
  const Ints lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  for (int step : {8, 4, 2, 1}) x = fold(x, __builtin_shuffle(x, lanes ^ step));
  return x[0];
}
static inline float sum(Floats x) {
  return folded(x, [](Floats a, Floats b) { return a + b; });
}
static inline float highest(Floats x) {
  return folded(x, [](Floats a, Floats b) { return max(a, b); });
}

static inline float dot(const float *x, const float *y, int64_t count) {
  Floats total = splat(0);
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) total += load(x + i) * load(y + i);
  float rest = 0;
  for (; i < count; i++) rest += x[i] * y[i];
  return sum(total) + rest;
}

// e^x to about one unit in the last place, zero from e^-87 down, NaN for NaN. For x <= 88.
// Range reduction and polynomial as in Cephes' expf: x = n ln 2 + r with |r| <= ln 2 / 2.
static inline Floats exp(Floats x) {
  const float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves a whole number in the lowest bits
  Floats shifted = x * 1.44269504f + kRound, n = shifted - kRound;
  Floats r = x - n * 0.693359375f + n * 2.12194440e-4f;
  Floats y = splat(1.9875691500e-4f);
  y = y * r + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * r * r + r + 1.0f;
  Floats scaled = reinterpret_cast<Floats>(reinterpret_cast<Ints>(y) + (reinterpret_cast<Ints>(shifted) << 23));
  return where(x != x, x, where(x < -87.0f, splat(0), scaled));
}

template <int step>
static inline void swap_lanes(Floats *rows) {
  Ints low, high;
  for (int lane = 0; lane < kLanes; lane++) {
    low[lane] = lane & step ? kLanes + lane - step : lane;
    high[lane] = lane & step ? kLanes + lane : lane + step;
  }
  for (int i = 0; i < kLanes; i++) {
    if (i & step) continue;
    Floats x = rows[i], y = rows[i + step];
    rows[i] = __builtin_shuffle(x, y, low);
    rows[i + step] = __builtin_shuffle(x, y, high);
  }
}

// The transpose of `num_rows` x `num_cols` floats, the latter a multiple of kLanes; `to` has as many columns as `num_rows`
// rounded up to kLanes, the last ones zero. Bits are moved as they are: pairs of bfloat16 may be passed as floats.
static inline void transpose(int64_t num_rows, int64_t num_cols, const float *from, int64_t from_row, float *to, int64_t to_row) {
  for (int64_t row = 0; row < num_rows; row += kLanes)
    for (int64_t col = 0; col < num_cols; col += kLanes) {
      Floats block[kLanes];
      for (int64_t i = 0; i < kLanes; i++)
        block[i] = row + i < num_rows ? load(from + (row + i) * from_row + col) : splat(0);
      swap_lanes<8>(block);
      swap_lanes<4>(block);
      swap_lanes<2>(block);
      swap_lanes<1>(block);
      for (int64_t i = 0; i < kLanes; i++) store(to + (col + i) * to_row + row, block[i]);
    }
}
