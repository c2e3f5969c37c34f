// Sixteen floats at a time, for the kernels of one CPU process. Compilers that know GNU vectors (gcc, clang) turn them into what
// the processor has: one AVX-512 register, two of AVX2, four of NEON.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

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

// Products of matrices, of float32 numbers or of pairs of bfloat16 ones (half the work where the processor has them). A pair is two
// neighbours along the depth, the first in the lower half of the word. Sums are float32 either way.
// Matrices are row-major with a step between rows; columns of `b` and `c` come in multiples of kLanes.

struct Float32 {
  using Number = float;
  using Vector = Floats;
  static Vector load(const float *from) {
    Vector x = ::load(from);
#ifdef __AVX512F__
    asm("" : "+v"(x));  // keep it in a register: gcc 12 would load it again for every product
#endif
    return x;
  }
  static Vector splat(float x) { return ::splat(x); }
  static Floats multiply_add(Floats total, Vector left, Vector right) { return total + left * right; }
};

#ifdef __AVX512BF16__
constexpr bool kHasBfloat16 = true;
struct Bfloat16Pair {
  using Number = int32_t;
  using Vector = __m512i;
  static Vector load(const int32_t *from) { return _mm512_loadu_si512(from); }
  static Vector splat(int32_t x) { return _mm512_set1_epi32(x); }
  static Floats multiply_add(Floats total, Vector left, Vector right) {
    // The instruction itself: for its intrinsic gcc 12 copies every sum and runs out of registers.
    asm("vdpbf16ps %2, %1, %0" : "+v"(total) : "v"(left), "v"(right));
    return total;
  }
};

// Pairs of neighbouring columns: to [num_rows, padded(num_cols / 2)], zeros at its end. `num_cols` is rounded up to kLanes, and read
// so far.
static inline void pair_columns(int64_t num_rows, int64_t num_cols, const float *from, int64_t from_row, int32_t *to, int64_t to_row) {
  for (int64_t row = 0; row < num_rows; row++)
    for (int64_t col = 0; col < num_cols; col += 2 * kLanes) {
      const float *place = from + row * from_row + col;
      __m512 second = col + kLanes < num_cols ? _mm512_loadu_ps(place + kLanes) : _mm512_setzero_ps();
      __m512bh pairs = _mm512_cvtne2ps_pbh(second, _mm512_loadu_ps(place));
      _mm512_storeu_si512(to + row * to_row + col / 2, reinterpret_cast<__m512i>(pairs));
    }
}

// Pairs of neighbouring rows: to [(num_rows + 1) / 2, num_cols]; an odd last row is paired with zeros.
static inline void pair_rows(int64_t num_rows, int64_t num_cols, const float *from, int64_t from_row, int32_t *to, int64_t to_row) {
  for (int64_t row = 0; row < num_rows; row += 2)
    for (int64_t col = 0; col < num_cols; col += kLanes) {
      const float *place = from + row * from_row + col;
      __m512 second = row + 1 < num_rows ? _mm512_loadu_ps(place + from_row) : _mm512_setzero_ps();
      __m256i low = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(_mm512_loadu_ps(place)));
      __m256i high = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(second));
      __m512i pairs = _mm512_or_si512(_mm512_cvtepu16_epi32(low), _mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16));
      _mm512_storeu_si512(to + row / 2 * to_row + col, pairs);
    }
}
#else
constexpr bool kHasBfloat16 = false;
#endif

constexpr int kTileRows = 12;  // 12 x 2 vectors of sums, 2 of b and a few for a: 32 registers

// c = a . b, or c += a . b, for `rows` x `vectors * kLanes` places, all sums in registers.
template <class Kind, int rows, int vectors, class Number = typename Kind::Number>
static inline void multiply_tile(int64_t depth, const Number *a, int64_t a_row, int64_t a_depth, const Number *b, int64_t b_row,
                                 float *c, int64_t c_row, bool add) {
  Floats total[rows][vectors];
#pragma GCC unroll 16
  for (int m = 0; m < rows; m++)
#pragma GCC unroll 4
    for (int n = 0; n < vectors; n++) total[m][n] = splat(0);
  for (int64_t k = 0; k < depth; k++) {
    typename Kind::Vector right[vectors];
#pragma GCC unroll 4
    for (int n = 0; n < vectors; n++) right[n] = Kind::load(b + k * b_row + n * kLanes);
#pragma GCC unroll 16
    for (int m = 0; m < rows; m++) {
      typename Kind::Vector left = Kind::splat(a[m * a_row + k * a_depth]);
#pragma GCC unroll 4
      for (int n = 0; n < vectors; n++) total[m][n] = Kind::multiply_add(total[m][n], left, right[n]);
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < rows; m++)
#pragma GCC unroll 4
    for (int n = 0; n < vectors; n++) {
      float *place = c + m * c_row + n * kLanes;
      if (add) total[m][n] += load(place);
      store(place, total[m][n]);
    }
}

template <class Kind, int rows, class Number = typename Kind::Number>
static void multiply_rows(int64_t num_rows, int64_t num_cols, int64_t depth, const Number *a, int64_t a_row, int64_t a_depth,
                          const Number *b, int64_t b_row, float *c, int64_t c_row, bool add) {
  if constexpr (rows > 1)
    if (num_rows < rows)
      return multiply_rows<Kind, rows - 1>(num_rows, num_cols, depth, a, a_row, a_depth, b, b_row, c, c_row, add);
  int64_t col = 0;
  for (; col + 2 * kLanes <= num_cols; col += 2 * kLanes)
    multiply_tile<Kind, rows, 2>(depth, a, a_row, a_depth, b + col, b_row, c + col, c_row, add);
  if (col < num_cols) multiply_tile<Kind, rows, 1>(depth, a, a_row, a_depth, b + col, b_row, c + col, c_row, add);
}

// c = a . b, or c += a . b. `a` has any two steps, so its transpose is as good.
template <class Kind, class Number = typename Kind::Number>
static void multiply(int64_t num_rows, int64_t num_cols, int64_t depth, const Number *a, int64_t a_row, int64_t a_depth,
                     const Number *b, int64_t b_row, float *c, int64_t c_row, bool add) {
  // Tiles of nearly equal height: 50 rows are 5 tiles of 10 rather than 4 of 12 and one of 2.
  int64_t tiles = (num_rows + kTileRows - 1) / kTileRows;
  for (int64_t tile = 0; tile < tiles; tile++) {
    int64_t first = num_rows * tile / tiles, last = num_rows * (tile + 1) / tiles;
    multiply_rows<Kind, kTileRows>(last - first, num_cols, depth, a + first * a_row, a_row, a_depth, b, b_row, c + first * c_row,
                                   c_row, add);
  }
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
