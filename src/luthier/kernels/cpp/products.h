// Small matrix products in registers: c[i][j] (+)= sum over k of a(i, k) * b[k][j].
//
// A number of `a` and of `b` is one float, or (Halves) two bfloat16 of neighbouring k in 32 bits, multiplied in one
// instruction where the processor has it.
#pragma once

#include "vectors.h"

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

namespace luthier {

#if defined(CPU_CAPABILITY_AVX512)
constexpr int kTileVectors = 4;
#else
constexpr int kTileVectors = 2;
#endif
constexpr int kTileRows = 6;
constexpr int64_t kDepth = 128;  // of one pass over b, so that what is read again stays in the first-level cache

struct Floats {
  using Number = float;
  static constexpr int64_t kPack = 1;
  using Wide = Vec;
  static Wide all(const Number* x) { return Vec(*x); }
  static Wide load(const Number* x) { return Vec::loadu(x); }
  static Vec multiply_add(const Wide& a, const Wide& b, const Vec& sum) { return at::vec::fmadd(a, b, sum); }
  // First parameter: the number of even k; of one float there is no other.
  static Number make(float even, float) { return even; }
};

#if defined(__AVX512BF16__)
struct Halves {
  using Number = uint32_t;
  static constexpr int64_t kPack = 2;
  using Wide = __m512i;
  static Wide all(const Number* x) { return _mm512_set1_epi32(static_cast<int32_t>(*x)); }
  static Wide load(const Number* x) { return _mm512_loadu_si512(x); }
  static Vec multiply_add(const Wide& a, const Wide& b, const Vec& sum) {
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
  }
  static Number make(float even, float odd) {
    return static_cast<Number>(BFloat16(even).x) | static_cast<Number>(BFloat16(odd).x) << 16;
  }
  static void interleave(const float* even, const float* odd, void* to) {
    const __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(even)));
    const __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(odd)));
    _mm512_storeu_si512(to, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
  }
};
#endif

// Where a(i, k) stands: first + i * row + k * step.
template <class M>
struct Left {
  const typename M::Number* first;
  int64_t row, step;
};

template <class M, int ROWS, int VECTORS>
inline void tile_product(const Left<M>& a, const typename M::Number* b, int64_t b_step, int64_t depth, float* c,
                         int64_t c_step, bool add) {
  Vec sums[ROWS][VECTORS];
#pragma GCC unroll 6
  for (int i = 0; i < ROWS; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < VECTORS; ++j) sums[i][j] = add ? Vec::loadu(c + i * c_step + j * kWidth) : Vec(0.0f);
  }
  const typename M::Number* left = a.first;
  for (int64_t k = 0; k < depth; ++k, b += b_step, left += a.step) {
    typename M::Wide right[VECTORS];
#pragma GCC unroll 4
    for (int j = 0; j < VECTORS; ++j) right[j] = M::load(b + j * kWidth);
#pragma GCC unroll 6
    for (int i = 0; i < ROWS; ++i) {
      const typename M::Wide each = M::all(left + i * a.row);
#pragma GCC unroll 4
      for (int j = 0; j < VECTORS; ++j) sums[i][j] = M::multiply_add(each, right[j], sums[i][j]);
    }
  }
#pragma GCC unroll 6
  for (int i = 0; i < ROWS; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < VECTORS; ++j) sums[i][j].store(c + i * c_step + j * kWidth);
  }
}

template <class M, int ROWS, int VECTORS>
inline void row_products(int64_t rows, Left<M> a, const typename M::Number* b, int64_t b_step, int64_t depth, float* c,
                         int64_t c_step, bool add) {
  for (; rows >= ROWS; rows -= ROWS, a.first += ROWS * a.row, c += ROWS * c_step) {
    tile_product<M, ROWS, VECTORS>(a, b, b_step, depth, c, c_step, add);
  }
  if constexpr (ROWS > 1) {
    if (rows > 0) row_products<M, ROWS - 1, VECTORS>(rows, a, b, b_step, depth, c, c_step, add);
  }
}

// Writes (or adds) `rows` rows of `columns` numbers; columns are rounded up to a whole number of vectors, which b and c
// must have room for.
template <class M>
inline void product(int64_t rows, int64_t columns, const Left<M>& a, const typename M::Number* b, int64_t b_step,
                    int64_t depth, float* c, int64_t c_step, bool add) {
  for (int64_t k = 0; k < depth || k == 0; k += kDepth) {
    const Left<M> left{a.first + k * a.step, a.row, a.step};
    const typename M::Number* right = b + k * b_step;
    const int64_t here = std::min(kDepth, depth - k);
    const bool adds = add || k > 0;
    int64_t j = 0;
    for (; columns - j > (kTileVectors - 1) * kWidth; j += kTileVectors * kWidth) {
      row_products<M, kTileRows, kTileVectors>(rows, left, right + j, b_step, here, c + j, c_step, adds);
    }
    if constexpr (kTileVectors > 2) {
      for (; columns - j > kWidth; j += 2 * kWidth) {
        row_products<M, kTileRows, 2>(rows, left, right + j, b_step, here, c + j, c_step, adds);
      }
    }
    for (; j < columns; j += kWidth) row_products<M, kTileRows, 1>(rows, left, right + j, b_step, here, c + j, c_step, adds);
  }
}

inline int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

}  // namespace luthier
