// Products of matrices: of float32 numbers, or of pairs of bfloat16 ones (half the work where the processor has them). A pair is two
// neighbours along the depth, the first in the lower half of the word. Sums are float32 either way.
// Matrices are row-major with a step between rows; columns of `b` and `c` come in multiples of kLanes.
//
// A kind of number says how floats are laid out as words for `multiply`, and back:
//   kPerWord          numbers of a word
//   pair_columns      words along the columns: of a left factor, or of a right one that is transposed afterwards
//   pair_rows         words along the rows: of a right factor, or of a left one that is taken transposed
//   pair_rows_again   from words along the columns to words along the rows
//   numbers           kLanes numbers of a row whose words lie along the columns

#pragma once

#include "vectors.h"

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

struct Float32 {
  using Number = float;
  using Vector = Floats;
  static constexpr int64_t kPerWord = 1;
  static Vector load(const float *from) {
    Vector x = ::load(from);
#ifdef __AVX512F__
    asm("" : "+v"(x));  // keep it in a register: gcc 12 would load it again for every product
#endif
    return x;
  }
  static Vector splat(float x) { return ::splat(x); }
  static Floats multiply_add(Floats total, Vector left, Vector right) { return total + left * right; }

  static void pair_columns(int64_t num_rows, int64_t num_cols, const float *from, int64_t from_row, float *to, int64_t to_row) {
    for (int64_t row = 0; row < num_rows; row++)
      for (int64_t col = 0; col < num_cols; col += kLanes) store(to + row * to_row + col, ::load(from + row * from_row + col));
  }
  static void pair_rows(int64_t num_rows, int64_t num_cols, const float *from, int64_t from_row, float *to, int64_t to_row) {
    pair_columns(num_rows, num_cols, from, from_row, to, to_row);
  }
  static void pair_rows_again(int64_t num_rows, int64_t num_words, const float *from, int64_t from_row, float *to, int64_t to_row) {
    pair_columns(num_rows, num_words, from, from_row, to, to_row);
  }
  static Floats numbers(const float *row, int64_t col) { return ::load(row + col); }
};

#ifdef __AVX512BF16__
constexpr bool kHasBfloat16 = true;

struct Bfloat16Pair {
  using Number = int32_t;
  using Vector = __m512i;
  static constexpr int64_t kPerWord = 2;
  static Vector load(const int32_t *from) { return _mm512_loadu_si512(from); }
  static Vector splat(int32_t x) { return _mm512_set1_epi32(x); }
  static Floats multiply_add(Floats total, Vector left, Vector right) {
    // The instruction itself: for its intrinsic gcc 12 copies every sum and runs out of registers.
    asm("vdpbf16ps %2, %1, %0" : "+v"(total) : "v"(left), "v"(right));
    return total;
  }

  // To [num_rows, padded(num_cols / 2)], zeros at its end. `num_cols` is rounded up to kLanes, and read so far.
  static void pair_columns(int64_t num_rows, int64_t num_cols, const float *from, int64_t from_row, int32_t *to, int64_t to_row) {
    for (int64_t row = 0; row < num_rows; row++)
      for (int64_t col = 0; col < num_cols; col += 2 * kLanes) {
        const float *place = from + row * from_row + col;
        __m512 second = col + kLanes < num_cols ? _mm512_loadu_ps(place + kLanes) : _mm512_setzero_ps();
        __m512bh pairs = _mm512_cvtne2ps_pbh(second, _mm512_loadu_ps(place));
        _mm512_storeu_si512(to + row * to_row + col / 2, reinterpret_cast<__m512i>(pairs));
      }
  }

  // To [(num_rows + 1) / 2, num_cols]; an odd last row is paired with zeros.
  static void pair_rows(int64_t num_rows, int64_t num_cols, const float *from, int64_t from_row, int32_t *to, int64_t to_row) {
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

  // `num_words` is a multiple of kLanes; to twice as many columns.
  static void pair_rows_again(int64_t num_rows, int64_t num_words, const int32_t *from, int64_t from_row, int32_t *to,
                              int64_t to_row) {
    for (int64_t row = 0; row < num_rows; row += 2)
      for (int64_t word = 0; word < num_words; word += kLanes) {
        const int32_t *place = from + row * from_row + word;
        const __m512i first = load(place), second = row + 1 < num_rows ? load(place + from_row) : _mm512_setzero_si512();
        int32_t *low = to + row / 2 * to_row + 2 * word;
        for (int half : {0, 1}) {
          __m256i x = half ? _mm512_extracti64x4_epi64(first, 1) : _mm512_castsi512_si256(first);
          __m256i y = half ? _mm512_extracti64x4_epi64(second, 1) : _mm512_castsi512_si256(second);
          __m512i pairs = _mm512_or_si512(_mm512_cvtepu16_epi32(x), _mm512_slli_epi32(_mm512_cvtepu16_epi32(y), 16));
          _mm512_storeu_si512(low + half * kLanes, pairs);
        }
      }
  }

  static Floats numbers(const int32_t *row, int64_t col) {
    const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(row + col / 2));
    return reinterpret_cast<Floats>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
  }
};
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

