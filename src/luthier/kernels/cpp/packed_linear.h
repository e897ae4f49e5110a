// y = x W' for frozen W, re-laid once so that one column of a panel of outputs is one load.
//
// Layouts, for P outputs a panel (two vectors of float) and I inputs:
//   float32   [panels, I, P]
//   bfloat16  [panels, I / 2, P, 2]
//   int8      [panels, groups, 16, P, 4] with a float scale for each [panel, group, output]; a group is 64 inputs,
//             as in the Q8_0 format of GGUF but with 64 instead of 32. Rows of x are quantized in the same groups
//             at each call (dynamic activations).
#pragma once

#include "vectors.h"

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

namespace luthier {

enum class Kind : int64_t { kFloat32 = 0, kBFloat16 = 1, kInt8 = 2 };
constexpr int64_t kGroup = 64;

#if defined(__AVX512VNNI__)
constexpr int64_t kLanes = 16;
constexpr int kRows = 12, kRowsInt8 = 6;
constexpr int kBias = 128;  // weights are stored unsigned; vpdpbusd multiplies unsigned by signed
using F = __m512;
using I = __m512i;
inline F f_zero() { return _mm512_setzero_ps(); }
inline F f_load(const float* p) { return _mm512_loadu_ps(p); }
inline F f_all(float x) { return _mm512_set1_ps(x); }
inline F f_fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
inline F f_add(F a, F b) { return _mm512_add_ps(a, b); }
inline F f_mul(F a, F b) { return _mm512_mul_ps(a, b); }
inline void f_store(float* p, F x) { _mm512_storeu_ps(p, x); }
inline F f_of(I x) { return _mm512_cvtepi32_ps(x); }
inline F f_bits(I x) { return _mm512_castsi512_ps(x); }
inline I i_load(const void* p) { return _mm512_loadu_si512(p); }
inline I i_all(int32_t x) { return _mm512_set1_epi32(x); }
inline I i_high(I x) { return _mm512_and_si512(x, _mm512_set1_epi32(static_cast<int32_t>(0xffff0000u))); }
inline I i_low(I x) { return _mm512_slli_epi32(x, 16); }
inline I i_dot(I sum, I w, I x) { return _mm512_dpbusd_epi32(sum, w, x); }
inline I i_round(F x) { return _mm512_cvtps_epi32(x); }
inline int32_t i_sum(I x) { return _mm512_reduce_add_epi32(x); }
inline void store_bytes(int8_t* p, I x) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(x)); }
inline I i_add(I a, I b) { return _mm512_add_epi32(a, b); }
#else
constexpr int64_t kLanes = 8;
constexpr int kRows = 6, kRowsInt8 = 3;
constexpr int kBias = 0;
using F = __m256;
using I = __m256i;
inline F f_zero() { return _mm256_setzero_ps(); }
inline F f_load(const float* p) { return _mm256_loadu_ps(p); }
inline F f_all(float x) { return _mm256_set1_ps(x); }
inline F f_fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
inline F f_add(F a, F b) { return _mm256_add_ps(a, b); }
inline F f_mul(F a, F b) { return _mm256_mul_ps(a, b); }
inline void f_store(float* p, F x) { _mm256_storeu_ps(p, x); }
inline F f_of(I x) { return _mm256_cvtepi32_ps(x); }
inline F f_bits(I x) { return _mm256_castsi256_ps(x); }
inline I i_load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline I i_all(int32_t x) { return _mm256_set1_epi32(x); }
inline I i_high(I x) { return _mm256_and_si256(x, _mm256_set1_epi32(static_cast<int32_t>(0xffff0000u))); }
inline I i_low(I x) { return _mm256_slli_epi32(x, 16); }
// |x| <= 127 and |w| <= 127, so that the sum of two products fits 16 bits.
inline I i_dot(I sum, I w, I x) {
  const I pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(x), _mm256_sign_epi8(w, x));
  return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
inline I i_round(F x) { return _mm256_cvtps_epi32(x); }
inline int32_t i_sum(I x) {
  alignas(32) int32_t parts[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(parts), x);
  return parts[0] + parts[1] + parts[2] + parts[3] + parts[4] + parts[5] + parts[6] + parts[7];
}
inline void store_bytes(int8_t* p, I x) {
  alignas(32) int32_t parts[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(parts), x);
  for (int i = 0; i < 8; ++i) p[i] = static_cast<int8_t>(parts[i]);
}
inline I i_add(I a, I b) { return _mm256_add_epi32(a, b); }
#endif
constexpr int64_t kPanel = 2 * kLanes;

inline int64_t ceil_to(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// One call's rows in the form that a kind multiplies.
struct Rows {
  const float* wide = nullptr;
  std::vector<int16_t> halves;   // bfloat16 bits [rows, inputs rounded up to 2]
  std::vector<int8_t> bytes;     // [rows, groups * 64]
  std::vector<float> scales;     // [rows, groups]
  std::vector<int32_t> sums;     // [rows, groups], times -kBias
};

// Largest magnitude; NaN when a number is not finite, so that it stays visible.
inline float peak_of(const float* x, int64_t size) {
  float peak = 0.0f;
  bool finite = true;
  for (int64_t i = 0; i < size; ++i) {
    const float magnitude = std::abs(x[i]);
    peak = std::max(peak, magnitude);
    finite &= magnitude <= std::numeric_limits<float>::max();
  }
  return finite ? peak : std::numeric_limits<float>::quiet_NaN();
}

inline int16_t to_half(float x) {
  const BFloat16 narrow(x);
  int16_t bits;
  std::memcpy(&bits, &narrow, 2);
  return bits;
}

struct PackedLinear {
  Kind kind;
  int64_t inputs, outputs;
  Tensor weight, scale;

  int64_t panels() const { return (outputs + kPanel - 1) / kPanel; }
  int64_t groups() const { return (inputs + kGroup - 1) / kGroup; }

  PackedLinear(const Tensor& from, int64_t as) : kind(static_cast<Kind>(as)), inputs(from.size(1)), outputs(from.size(0)) {
    TORCH_CHECK(from.dim() == 2 && from.device().is_cpu(), "packed linear: expected a [outputs, inputs] matrix on the CPU");
    const auto options = at::TensorOptions();
    if (kind == Kind::kFloat32) {
      weight = at::zeros({panels(), inputs, kPanel}, options.dtype(at::kFloat));
    } else if (kind == Kind::kBFloat16) {
      weight = at::zeros({panels(), (inputs + 1) / 2, kPanel, 2}, options.dtype(at::kBFloat16));
    } else {
      weight = at::full({panels(), groups(), kGroup / 4, kPanel, 4}, kBias, options.dtype(at::kByte));
      scale = at::zeros({panels(), groups(), kPanel}, options.dtype(at::kFloat));
    }
    at::parallel_for(0, outputs, 16, [&](int64_t begin, int64_t end) {
      for (int64_t o = begin; o < end; ++o) fill(from.select(0, o).to(at::kFloat).contiguous().const_data_ptr<float>(), o);
    });
  }

  // From codes [outputs, groups * 64] in -127..127 and scales [outputs, groups].
  PackedLinear(const Tensor& codes, const Tensor& steps, int64_t width)
      : kind(Kind::kInt8), inputs(width), outputs(codes.size(0)) {
    TORCH_CHECK(codes.scalar_type() == at::kChar && codes.is_contiguous() && codes.size(1) == groups() * kGroup &&
                    steps.scalar_type() == at::kFloat && steps.is_contiguous() && steps.numel() == outputs * groups(),
                "packed linear: expected int8 codes in groups of 64 and a float scale for each group");
    weight = at::full({panels(), groups(), kGroup / 4, kPanel, 4}, kBias, at::TensorOptions().dtype(at::kByte));
    scale = at::zeros({panels(), groups(), kPanel}, at::TensorOptions().dtype(at::kFloat));
    const int8_t* from = codes.const_data_ptr<int8_t>();
    parallel_rows(outputs * groups(), kGroup, [&](int64_t at) {
      const int64_t o = at / groups(), g = at % groups(), block = o / kPanel * groups() + g, lane = o % kPanel;
      scale.data_ptr<float>()[block * kPanel + lane] = steps.const_data_ptr<float>()[at];
      uint8_t* to = weight.data_ptr<uint8_t>() + block * kGroup * kPanel + lane * 4;
      for (int64_t i = 0; i < kGroup; ++i) to[i / 4 * kPanel * 4 + i % 4] = static_cast<uint8_t>(from[at * kGroup + i] + kBias);
    });
  }

  void fill(const float* row, int64_t o) {
    const int64_t panel = o / kPanel, lane = o % kPanel;
    if (kind == Kind::kFloat32) {
      float* to = weight.data_ptr<float>() + panel * inputs * kPanel + lane;
      for (int64_t i = 0; i < inputs; ++i) to[i * kPanel] = row[i];
    } else if (kind == Kind::kBFloat16) {
      BFloat16* to = weight.data_ptr<BFloat16>() + panel * ((inputs + 1) / 2) * kPanel * 2 + lane * 2;
      for (int64_t i = 0; i < inputs; ++i) to[(i / 2) * kPanel * 2 + i % 2] = BFloat16(row[i]);
    } else {
      for (int64_t g = 0; g < groups(); ++g) {
        const int64_t first = g * kGroup, last = std::min(first + kGroup, inputs);
        const float peak = peak_of(row + first, last - first);
        const float step = peak / 127.0f, inverse = step > 0 ? 1.0f / step : 0.0f;
        scale.data_ptr<float>()[(panel * groups() + g) * kPanel + lane] = step;
        uint8_t* to = weight.data_ptr<uint8_t>() + (panel * groups() + g) * kGroup * kPanel;
        for (int64_t i = first; i < last; ++i) {
          const int value = static_cast<int>(std::lrint(row[i] * inverse)) + kBias;
          to[((i - first) / 4) * kPanel * 4 + lane * 4 + (i - first) % 4] = static_cast<uint8_t>(value);
        }
      }
    }
  }

  void prepare(const float* x, int64_t rows, Rows& form) const {
    form.wide = x;
#if defined(__AVX512BF16__)
    if (kind == Kind::kBFloat16) {
      const int64_t width = ceil_to(inputs, 2);
      form.halves.assign(rows * width, 0);
      parallel_rows(rows, inputs, [&](int64_t r) {
        const int64_t whole = inputs / 16 * 16;
        for (int64_t i = 0; i < whole; i += 16) {
          const __m256bh halves = _mm512_cvtneps_pbh(_mm512_loadu_ps(x + r * inputs + i));
          std::memcpy(form.halves.data() + r * width + i, &halves, 32);
        }
        for (int64_t i = whole; i < inputs; ++i) form.halves[r * width + i] = to_half(x[r * inputs + i]);
      });
    }
#endif
    if (kind != Kind::kInt8) return;
    const int64_t count = groups();
    form.bytes.assign(rows * count * kGroup, 0);
    form.scales.resize(rows * count);
    form.sums.resize(rows * count);
    parallel_rows(rows * count, kGroup * 4, [&](int64_t at) {
      const int64_t row = at / count, first = at % count * kGroup, size = std::min(kGroup, inputs - first);
      const float* from = x + row * inputs + first;
      const float peak = peak_of(from, size), inverse = peak > 0 ? 127.0f / peak : 0.0f;
      int8_t* to = form.bytes.data() + at * kGroup;
      const int64_t whole = size / kLanes * kLanes;
      I sums = i_all(0);
      for (int64_t i = 0; i < whole; i += kLanes) {
        const I value = i_round(f_mul(f_load(from + i), f_all(inverse)));
        sums = i_add(sums, value);
        store_bytes(to + i, value);
      }
      int32_t sum = i_sum(sums);
      for (int64_t i = whole; i < size; ++i) {
        to[i] = static_cast<int8_t>(std::lrint(from[i] * inverse));
        sum += to[i];
      }
      form.scales[at] = peak / 127.0f;
      form.sums[at] = -kBias * sum;
    });
  }

  template <int R>
  void tile_float(const Rows& form, int64_t row, int64_t panel, F (&sum)[R][2]) const {
    const float* w = weight.const_data_ptr<float>() + panel * inputs * kPanel;
    const float* x = form.wide + row * inputs;
    for (int64_t i = 0; i < inputs; ++i, w += kPanel) {
      const F low = f_load(w), high = f_load(w + kLanes);
#pragma GCC unroll 12
      for (int r = 0; r < R; ++r) {
        const F each = f_all(x[r * inputs + i]);
        sum[r][0] = f_fma(low, each, sum[r][0]);
        sum[r][1] = f_fma(high, each, sum[r][1]);
      }
    }
  }

  template <int R>
  void tile_half(const Rows& form, int64_t row, int64_t panel, F (&sum)[R][2]) const {
    const int64_t pairs = (inputs + 1) / 2;
    const BFloat16* w = weight.const_data_ptr<BFloat16>() + panel * pairs * kPanel * 2;
#if defined(__AVX512BF16__)
    const int16_t* x = form.halves.data() + row * pairs * 2;
    for (int64_t i = 0; i < pairs; ++i, w += kPanel * 2) {
      const I low = i_load(w), high = i_load(w + kPanel);
#pragma GCC unroll 12
      for (int r = 0; r < R; ++r) {
        int32_t pair;
        std::memcpy(&pair, x + (r * pairs + i) * 2, 4);
        const I each = i_all(pair);
        sum[r][0] = _mm512_dpbf16_ps(sum[r][0], (__m512bh)low, (__m512bh)each);
        sum[r][1] = _mm512_dpbf16_ps(sum[r][1], (__m512bh)high, (__m512bh)each);
      }
    }
#else
    const float* x = form.wide + row * inputs;
    for (int64_t i = 0; i < pairs; ++i, w += kPanel * 2) {
      const I low = i_load(w), high = i_load(w + kPanel);
      const F low0 = f_bits(i_low(low)), low1 = f_bits(i_high(low)), high0 = f_bits(i_low(high)), high1 = f_bits(i_high(high));
      const bool both = 2 * i + 1 < inputs;
#pragma GCC unroll 12
      for (int r = 0; r < R; ++r) {
        const F even = f_all(x[r * inputs + 2 * i]), odd = f_all(both ? x[r * inputs + 2 * i + 1] : 0.0f);
        sum[r][0] = f_fma(low1, odd, f_fma(low0, even, sum[r][0]));
        sum[r][1] = f_fma(high1, odd, f_fma(high0, even, sum[r][1]));
      }
    }
#endif
  }

  template <int R>
  void tile_int8(const Rows& form, int64_t row, int64_t panel, F (&sum)[R][2]) const {
    const int64_t count = groups();
    const uint8_t* w = weight.const_data_ptr<uint8_t>() + panel * count * kGroup * kPanel;
    const float* steps = scale.const_data_ptr<float>() + panel * count * kPanel;
    const int8_t* x = form.bytes.data() + row * count * kGroup;
    for (int64_t g = 0; g < count; ++g, steps += kPanel) {
      I dots[R][2];
#pragma GCC unroll 12
      for (int r = 0; r < R; ++r) dots[r][0] = dots[r][1] = i_all(form.sums[(row + r) * count + g]);
      for (int64_t i = 0; i < kGroup; i += 4, w += kPanel * 4) {
        const I low = i_load(w), high = i_load(w + kPanel * 2);
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r) {
          int32_t four;
          std::memcpy(&four, x + (r * count + g) * kGroup + i, 4);
          const I each = i_all(four);
          dots[r][0] = i_dot(dots[r][0], low, each);
          dots[r][1] = i_dot(dots[r][1], high, each);
        }
      }
      const F low = f_load(steps), high = f_load(steps + kLanes);
#pragma GCC unroll 12
      for (int r = 0; r < R; ++r) {
        const F each = f_all(form.scales[(row + r) * count + g]);
        sum[r][0] = f_fma(f_of(dots[r][0]), f_mul(low, each), sum[r][0]);
        sum[r][1] = f_fma(f_of(dots[r][1]), f_mul(high, each), sum[r][1]);
      }
    }
  }

  template <int R>
  void tile(const Rows& form, int64_t row, int64_t panel, float* y, bool add) const {
    F sum[R][2];
    for (int r = 0; r < R; ++r) sum[r][0] = sum[r][1] = f_zero();
    if (kind == Kind::kFloat32) {
      tile_float<R>(form, row, panel, sum);
    } else if (kind == Kind::kBFloat16) {
      tile_half<R>(form, row, panel, sum);
    } else {
      tile_int8<R>(form, row, panel, sum);
    }
    const int64_t first = panel * kPanel, width = std::min(kPanel, outputs - first);
    for (int r = 0; r < R; ++r) {
      float* to = y + (row + r) * outputs + first;
      if (width == kPanel) {
        f_store(to, add ? f_add(f_load(to), sum[r][0]) : sum[r][0]);
        f_store(to + kLanes, add ? f_add(f_load(to + kLanes), sum[r][1]) : sum[r][1]);
        continue;
      }
      float part[kPanel];
      f_store(part, sum[r][0]);
      f_store(part + kLanes, sum[r][1]);
      for (int64_t i = 0; i < width; ++i) to[i] = add ? to[i] + part[i] : part[i];
    }
  }

  template <int R>
  void tiles(const Rows& form, int64_t row, int64_t rows, int64_t panel, float* y, bool add) const {
    for (; rows - row >= R; row += R) tile<R>(form, row, panel, y, add);
    if constexpr (R > 1) {
      if (row < rows) tiles<R - 1>(form, row, rows, panel, y, add);
    }
  }

  // Writes (or adds) [rows, outputs] from contiguous float rows.
  void run(const float* x, int64_t rows, float* y, bool add) const {
    Rows form;
    prepare(x, rows, form);
    // Several rows of x stay in the second-level cache while the panels pass.
    const int64_t block = std::max<int64_t>(kRows, (1 << 18) / std::max<int64_t>(1, inputs) / kRows * kRows);
    for (int64_t first = 0; first < rows; first += block) {
      const int64_t last = std::min(rows, first + block);
      at::parallel_for(0, panels(), 1, [&](int64_t begin, int64_t end) {
        for (int64_t panel = begin; panel < end; ++panel) {
          if (kind == Kind::kInt8) {
            tiles<kRowsInt8>(form, first, last, panel, y, add);
          } else {
            tiles<kRows>(form, first, last, panel, y, add);
          }
        }
      });
    }
  }
};

}  // namespace luthier
