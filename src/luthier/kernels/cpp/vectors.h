// Vectors of float over rows of float32 or bfloat16, for the processor that compiles this.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>
#include <torch/extension.h>

#include <cmath>
#include <limits>

namespace luthier {

using at::BFloat16;
using at::Tensor;
using Vec = at::vec::Vectorized<float>;
constexpr int64_t kWidth = Vec::size();
constexpr int64_t kGrain = 16384;  // elements that are worth a second thread

inline Vec load(const float* from, int64_t count) { return count == kWidth ? Vec::loadu(from) : Vec::loadu(from, count); }

inline Vec load(const BFloat16* from, int64_t count) {
  Vec wide;
  if (count == kWidth) {
    at::vec::load_fp32_from_bf16(from, wide);
    return wide;
  }
  BFloat16 padded[kWidth] = {};
  std::copy(from, from + count, padded);
  at::vec::load_fp32_from_bf16(padded, wide);
  return wide;
}

inline void store(float* to, const Vec& value, int64_t count) { value.store(to, count); }

inline void store(BFloat16* to, const Vec& value, int64_t count) {
  const auto narrow = at::vec::convert_from_float<BFloat16>(value, value);
  narrow.store(to, count);
}

inline float sum_of(const Vec& value) { return at::vec::vec_reduce_all<float>([](Vec& a, Vec& b) { return a + b; }, value); }

// The first `count` numbers of `value`, and `elsewhere` behind them.
inline Vec inside(const Vec& value, int64_t count, float elsewhere) {
  return count >= kWidth ? value : Vec::set(Vec(elsewhere), value, count);
}

template <class Body>
inline void each(int64_t size, const Body& body) {
  for (int64_t i = 0; i < size; i += kWidth) body(i, std::min(kWidth, size - i));
}

template <class Body>
inline void parallel_rows(int64_t rows, int64_t size, const Body& body) {
  at::parallel_for(0, rows, std::max<int64_t>(1, kGrain / std::max<int64_t>(1, size)), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) body(row);
  });
}

// Calls `body` with a null pointer of the element type of `x`.
template <class Body>
inline void by_type(const Tensor& x, const Body& body) {
  if (x.scalar_type() == at::kFloat) {
    body(static_cast<float*>(nullptr));
  } else {
    TORCH_CHECK(x.scalar_type() == at::kBFloat16, "expected float32 or bfloat16, got ", x.scalar_type());
    body(static_cast<BFloat16*>(nullptr));
  }
}

}  // namespace luthier
