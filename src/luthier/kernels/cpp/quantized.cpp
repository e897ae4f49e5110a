// Frozen weights in 8 and 4 bits: rows made dense again, and products that never make them.

#include "bindings.h"
#include "packed_linear.h"
#include "vectors.h"

#include <array>
#include <memory>
#include <numeric>

namespace luthier {
namespace {

Tensor empty_rows(int64_t rows, int64_t size, bool half) {
  return at::empty({rows, size}, at::TensorOptions().dtype(half ? at::kBFloat16 : at::kFloat));
}

std::shared_ptr<PackedLinear> packed_int8(const Tensor& codes, const Tensor& scale, int64_t inputs) {
  return std::make_shared<PackedLinear>(codes, scale, inputs);
}

// Rows [first, last) of the weight.
Tensor int8_rows(const PackedLinear& linear, int64_t first, int64_t last, bool half) {
  TORCH_CHECK(linear.kind == Kind::kInt8 && 0 <= first && first <= last && last <= linear.outputs, "int8 rows: out of range");
  Tensor rows = empty_rows(last - first, linear.inputs, half);
  const int64_t groups = linear.groups(), inputs = linear.inputs;
  by_type(rows, [&](auto* kind) {
    using T = std::remove_pointer_t<decltype(kind)>;
    T* to = rows.data_ptr<T>();
    parallel_rows(last - first, inputs, [&](int64_t r) {
      const int64_t panel = (first + r) / kPanel, lane = (first + r) % kPanel;
      for (int64_t g = 0; g < groups; ++g) {
        const uint8_t* from = linear.weight.const_data_ptr<uint8_t>() + (panel * groups + g) * kGroup * kPanel + lane * 4;
        const float step = linear.scale.const_data_ptr<float>()[(panel * groups + g) * kPanel + lane];
        alignas(64) uint8_t bytes[kGroup];
        for (int64_t i = 0; i < kGroup; i += 4) std::memcpy(bytes + i, from + i * kPanel, 4);
        alignas(64) float wide[kGroup];
        for (int64_t i = 0; i < kGroup; ++i) {
          const int value = kBias ? static_cast<int>(bytes[i]) - kBias : static_cast<int>(static_cast<int8_t>(bytes[i]));
          wide[i] = static_cast<float>(value) * step;
        }
        const int64_t size = std::min(kGroup, inputs - g * kGroup);
        each(size, [&](int64_t i, int64_t n) { store(to + r * inputs + g * kGroup + i, load(wide + i, n), n); });
      }
    });
  });
  return rows;
}

// The sixteen levels in registers, and kLanes of them picked by codes that lie side by side in kLanes / 2 bytes.
class Levels {
 public:
  explicit Levels(const Tensor& levels) {
    TORCH_CHECK(levels.numel() == 16 && levels.scalar_type() == at::kFloat, "nf4: expected 16 float levels");
    const float* from = levels.const_data_ptr<float>();
    std::copy(from, from + 16, plain_.begin());
    low_ = f_load(from);
#if !defined(__AVX512VNNI__)
    high_ = f_load(from + kLanes);
#endif
  }

  float one(const uint8_t* codes, int64_t i) const { return plain_[i % 2 == 0 ? codes[i / 2] >> 4 : codes[i / 2] & 15]; }

  F lanes(const uint8_t* codes) const {
    // The high half of a byte comes first.
    const __m128i twice = _mm_setr_epi8(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
#if defined(__AVX512VNNI__)
    const __m128i bytes = _mm_shuffle_epi8(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes)), twice);
    const I shift = _mm512_set1_epi64(4);
    return _mm512_permutexvar_ps(_mm512_srlv_epi32(_mm512_cvtepu8_epi32(bytes), shift), low_);
#else
    int32_t four;
    std::memcpy(&four, codes, 4);
    const __m128i bytes = _mm_shuffle_epi8(_mm_cvtsi32_si128(four), twice);
    const I index = _mm256_srlv_epi32(_mm256_cvtepu8_epi32(bytes), _mm256_set1_epi64x(4));
    const F low = _mm256_permutevar8x32_ps(low_, index), high = _mm256_permutevar8x32_ps(high_, index);
    return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(index, 28)));
#endif
  }

 private:
  std::array<float, 16> plain_;
  F low_;
#if !defined(__AVX512VNNI__)
  F high_;
#endif
};

// Rows [first, first + rows) of a weight whose numbers are coded one after the other, blocks crossing rows as they come.
Tensor nf4_rows(const Tensor& codes, const Tensor& absmax, const Tensor& levels, int64_t block, int64_t first, int64_t rows,
                int64_t size, bool half) {
  TORCH_CHECK((first + rows) * size <= codes.numel() * 2 && block % 2 == 0, "nf4 rows: out of range");
  Tensor out = empty_rows(rows, size, half);
  const Levels level(levels);
  const uint8_t* from = codes.const_data_ptr<uint8_t>();
  const float* scales = absmax.const_data_ptr<float>();
  by_type(out, [&](auto* kind) {
    using T = std::remove_pointer_t<decltype(kind)>;
    T* to = out.data_ptr<T>();
    parallel_rows(rows, size, [&](int64_t r) {
      const int64_t begin = (first + r) * size, end = begin + size;
      T* row = to + r * size - begin;
      for (int64_t i = begin; i < end;) {
        const float scale = scales[i / block];
        const int64_t last = std::min(end, (i / block + 1) * block);
        if (i % 2 == 1) row[i] = T(level.one(from, i) * scale), ++i;
        for (; i + kLanes <= last; i += kLanes) store(row + i, Vec(f_mul(level.lanes(from + i / 2), f_all(scale))), kLanes);
        for (; i < last; ++i) row[i] = T(level.one(from, i) * scale);
      }
    });
  });
  return out;
}

constexpr int kOutputs = kLanes == 16 ? 4 : 2;

float f_sum(F x) {
  alignas(64) float parts[kLanes];
  f_store(parts, x);
  return std::accumulate(parts, parts + kLanes, 0.0f);
}

// N outputs of R rows; the dense weight exists in registers only.
template <int R, int N>
void nf4_tile(const float* x, const uint8_t* codes, const float* scales, const Levels& level, int64_t size, int64_t block,
              float* y, int64_t outputs) {
  F sum[N][R];
  for (auto& row : sum)
    for (auto& s : row) s = f_zero();
  for (int64_t b = 0; b < size / block; ++b) {
    F scale[N];
    for (int n = 0; n < N; ++n) scale[n] = f_all(scales[n * (size / block) + b]);
    for (int64_t i = b * block; i < (b + 1) * block; i += kLanes) {
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) {
        const F w = f_mul(level.lanes(codes + (n * size + i) / 2), scale[n]);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) sum[n][r] = f_fma(w, f_load(x + r * size + i), sum[n][r]);
      }
    }
  }
  for (int n = 0; n < N; ++n)
    for (int r = 0; r < R; ++r) y[r * outputs + n] = f_sum(sum[n][r]);
}

template <int R>
void nf4_tiles(const float* x, int64_t rows, const uint8_t* codes, const float* scales, const Levels& level, int64_t size,
               int64_t block, float* y, int64_t outputs, int64_t count) {
  for (; rows >= R; rows -= R, x += R * size, y += R * outputs) {
    if (count == kOutputs) {
      nf4_tile<R, kOutputs>(x, codes, scales, level, size, block, y, outputs);
    } else {
      for (int64_t n = 0; n < count; ++n) {
        nf4_tile<R, 1>(x, codes + n * size / 2, scales + n * (size / block), level, size, block, y + n, outputs);
      }
    }
  }
  if constexpr (R > 1) {
    if (rows > 0) nf4_tiles<R - 1>(x, rows, codes, scales, level, size, block, y, outputs, count);
  }
}

// [rows, outputs] from contiguous float rows; blocks must not cross rows.
Tensor nf4_product(const Tensor& x, const Tensor& codes, const Tensor& absmax, const Tensor& levels, int64_t block,
                   int64_t outputs) {
  const int64_t rows = x.size(0), size = x.size(1);
  TORCH_CHECK(size % block == 0 && block % kLanes == 0 && codes.numel() * 2 == outputs * size, "nf4 product: blocks cross rows");
  TORCH_CHECK(x.scalar_type() == at::kFloat && x.is_contiguous(), "nf4 product: expected contiguous float rows");
  Tensor y = at::empty({rows, outputs}, x.options());
  const Levels level(levels);
  const float *from = x.const_data_ptr<float>(), *scales = absmax.const_data_ptr<float>();
  const uint8_t* all = codes.const_data_ptr<uint8_t>();
  float* to = y.data_ptr<float>();
  parallel_rows((outputs + kOutputs - 1) / kOutputs, kOutputs * size, [&](int64_t tile) {
    const int64_t o = tile * kOutputs;
    nf4_tiles<4>(from, rows, all + o * size / 2, scales + o * (size / block), level, size, block, to + o, outputs,
                 std::min<int64_t>(kOutputs, outputs - o));
  });
  return y;
}

}  // namespace

void bind_quantized(pybind11::module_& m) {
  m.def("packed_int8", &packed_int8);
  m.def("int8_rows", &int8_rows);
  m.def("nf4_rows", &nf4_rows);
  m.def("nf4_product", &nf4_product);
}

}  // namespace luthier
