// Row-wise operations of a decoder layer, one pass over memory each: RMSNorm, gated activations, rotary embedding,
// and the softmax of one attention tile. float32 or bfloat16 in memory, float32 in registers.
//
// Compiled for the processor it runs on by kernels/native.py; torch's own vector classes choose the instructions.

#include "bindings.h"
#include "vectors.h"

#include <tuple>

namespace {

using namespace luthier;

// ---- RMSNorm: y = x * rstd * (weight + offset), rstd = 1 / sqrt(mean(x^2) + eps)

std::tuple<Tensor, Tensor> rms_norm(const Tensor& x, const Tensor& weight, double eps, double offset) {
  const int64_t size = x.size(-1), rows = size ? x.numel() / size : 0;
  Tensor y = at::empty_like(x), rstd = at::empty({rows}, x.options().dtype(at::kFloat));
  const Tensor scale = weight.to(at::kFloat).add(offset).contiguous();
  const float* gain = scale.const_data_ptr<float>();
  float* kept = rstd.data_ptr<float>();
  by_type(x, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const T* from = x.const_data_ptr<T>();
    T* to = y.data_ptr<T>();
    parallel_rows(rows, size, [&](int64_t row) {
      const T* in = from + row * size;
      T* out = to + row * size;
      Vec squares(0.0f);
      each(size, [&](int64_t i, int64_t n) {
        const Vec v = load(in + i, n);
        squares = squares + v * v;
      });
      const float factor = 1.0f / std::sqrt(sum_of(squares) / size + static_cast<float>(eps));
      kept[row] = factor;
      each(size, [&](int64_t i, int64_t n) { store(out + i, load(in + i, n) * Vec(factor) * load(gain + i, n), n); });
    });
  });
  return {y, rstd};
}

// Returns d_x; adds grad * x * rstd into d_weight [size], float32, when it is defined.
Tensor rms_norm_backward(const Tensor& grad, const Tensor& x, const Tensor& weight, const Tensor& rstd, double offset,
                         const std::optional<Tensor>& d_weight) {
  const int64_t size = x.size(-1), rows = size ? x.numel() / size : 0;
  Tensor d_x = at::empty_like(x);
  const Tensor scale = weight.to(at::kFloat).add(offset).contiguous();
  const float* gain = scale.const_data_ptr<float>();
  const float* kept = rstd.const_data_ptr<float>();
  by_type(x, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const T *dy = grad.const_data_ptr<T>(), *from = x.const_data_ptr<T>();
    T* to = d_x.data_ptr<T>();
    parallel_rows(rows, size, [&](int64_t row) {
      const int64_t at = row * size;
      Vec dot(0.0f);
      each(size, [&](int64_t i, int64_t n) {
        dot = dot + load(dy + at + i, n) * load(gain + i, n) * load(from + at + i, n);
      });
      const float factor = kept[row], mean = sum_of(dot) * factor * factor / size;
      each(size, [&](int64_t i, int64_t n) {
        const Vec d = load(dy + at + i, n) * load(gain + i, n) - load(from + at + i, n) * Vec(mean);
        store(to + at + i, d * Vec(factor), n);
      });
    });
    if (d_weight.has_value()) {
      float* sums = d_weight->data_ptr<float>();
      at::parallel_for(0, size, 64, [&](int64_t begin, int64_t end) {
        for (int64_t row = 0; row < rows; ++row) {
          for (int64_t i = begin; i < end; i += kWidth) {
            const int64_t n = std::min(kWidth, end - i), here = row * size + i;
            store(sums + i, load(sums + i, n) + load(dy + here, n) * load(from + here, n) * Vec(kept[row]), n);
          }
        }
      });
    }
  });
  return d_x;
}

// ---- gates: activation(gate) * up

constexpr float kRootTwoOverPi = 0.7978845608028654f, kCubic = 0.044715f;

struct Silu {
  static void both(const Vec& x, Vec& value, Vec& slope) {
    const Vec sigmoid = Vec(1.0f) / (Vec(1.0f) + (x.neg()).exp_u20());
    value = x * sigmoid;
    slope = sigmoid * (Vec(1.0f) + x * (Vec(1.0f) - sigmoid));
  }
};

struct GeluTanh {
  static void both(const Vec& x, Vec& value, Vec& slope) {
    const Vec square = x * x, inner = Vec(kRootTwoOverPi) * x * (Vec(1.0f) + Vec(kCubic) * square);
    const Vec bent = inner.tanh(), half = Vec(0.5f) * (Vec(1.0f) + bent);
    value = x * half;
    slope = half + Vec(0.5f * kRootTwoOverPi) * x * (Vec(1.0f) - bent * bent) * (Vec(1.0f) + Vec(3.0f * kCubic) * square);
  }
};

template <class Act>
void gated_all(const Tensor& gate, const Tensor& up, Tensor& y) {
  by_type(gate, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const T *g = gate.const_data_ptr<T>(), *u = up.const_data_ptr<T>();
    T* to = y.data_ptr<T>();
    at::parallel_for(0, gate.numel(), kGrain, [&](int64_t begin, int64_t end) {
      each(end - begin, [&](int64_t i, int64_t n) {
        Vec value, slope;
        Act::both(load(g + begin + i, n), value, slope);
        store(to + begin + i, value * load(u + begin + i, n), n);
      });
    });
  });
}

template <class Act>
void gated_all_backward(const Tensor& grad, const Tensor& gate, const Tensor& up, Tensor& d_gate, Tensor& d_up) {
  by_type(gate, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const T *dy = grad.const_data_ptr<T>(), *g = gate.const_data_ptr<T>(), *u = up.const_data_ptr<T>();
    T *dg = d_gate.data_ptr<T>(), *du = d_up.data_ptr<T>();
    at::parallel_for(0, gate.numel(), kGrain, [&](int64_t begin, int64_t end) {
      each(end - begin, [&](int64_t i, int64_t n) {
        Vec value, slope;
        Act::both(load(g + begin + i, n), value, slope);
        const Vec d = load(dy + begin + i, n);
        store(du + begin + i, d * value, n);
        store(dg + begin + i, d * load(u + begin + i, n) * slope, n);
      });
    });
  });
}

Tensor gated(const Tensor& gate, const Tensor& up, bool is_silu) {
  Tensor y = at::empty_like(gate);
  is_silu ? gated_all<Silu>(gate, up, y) : gated_all<GeluTanh>(gate, up, y);
  return y;
}

std::tuple<Tensor, Tensor> gated_backward(const Tensor& grad, const Tensor& gate, const Tensor& up, bool is_silu) {
  Tensor d_gate = at::empty_like(gate), d_up = at::empty_like(up);
  is_silu ? gated_all_backward<Silu>(grad, gate, up, d_gate, d_up) : gated_all_backward<GeluTanh>(grad, gate, up, d_gate, d_up);
  return {d_gate, d_up};
}

// ---- rotary embedding: [T, H, D] to [H, T, D] or back; the first R features turn in pairs (i, i + R / 2)

// direction 1 rotates, -1 rotates back: the gradient of a rotation is its inverse.
Tensor rope(const Tensor& x, const Tensor& cos, const Tensor& sin, double direction) {
  const int64_t heads = x.size(0), tokens = x.size(1), size = x.size(2), turned = cos.size(1), half = turned / 2;
  TORCH_CHECK(x.stride(2) == 1, "rope: features must lie side by side");
  Tensor y = at::empty({heads, tokens, size}, x.options());
  const Tensor cos32 = cos.to(at::kFloat).contiguous(), sin32 = sin.to(at::kFloat).contiguous();
  const float *c = cos32.const_data_ptr<float>(), *s = sin32.const_data_ptr<float>();
  const Vec sign(static_cast<float>(direction));
  const int64_t head_step = x.stride(0), token_step = x.stride(1);
  by_type(x, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const T* from = x.const_data_ptr<T>();
    T* to = y.data_ptr<T>();
    parallel_rows(heads * tokens, size, [&](int64_t row) {
      const int64_t head = row / tokens, token = row % tokens;
      const T* in = from + head * head_step + token * token_step;
      T* out = to + row * size;
      const float *ct = c + token * turned, *st = s + token * turned;
      each(half, [&](int64_t i, int64_t n) {
        const Vec low = load(in + i, n), high = load(in + half + i, n);
        const Vec low_sin = load(st + i, n) * sign, high_sin = load(st + half + i, n) * sign;
        if (direction > 0) {
          store(out + i, low * load(ct + i, n) - high * low_sin, n);
          store(out + half + i, high * load(ct + half + i, n) + low * high_sin, n);
        } else {
          store(out + i, low * load(ct + i, n) - high * high_sin, n);
          store(out + half + i, high * load(ct + half + i, n) + low * low_sin, n);
        }
      });
      for (int64_t i = turned; i < size; ++i) out[i] = in[i];
    });
  });
  return y;
}

// ---- softmax of one attention tile; row r belongs to query r % queries, which sees keys first[q] .. last[q]

struct Range {
  int64_t first, last;  // keys [first, last)
};

inline Range seen(int64_t row, int64_t queries, int64_t keys, int64_t gap, int64_t window) {
  const int64_t own = gap + row % queries;
  return {window > 0 ? std::max<int64_t>(0, own - window + 1) : 0, std::min(keys, own + 1)};
}

inline Vec capped(const Vec& score, float scale, float softcap) {
  const Vec scaled = score * Vec(scale);
  return softcap > 0 ? Vec(softcap) * (scaled / Vec(softcap)).tanh() : scaled;
}

// Turns scores [..., queries, keys] into probabilities in place; returns log of the softmax sum for each row, float32.
Tensor softmax_tile(Tensor scores, int64_t gap, int64_t window, double scale, double softcap) {
  const int64_t keys = scores.size(-1), queries = scores.size(-2), rows = scores.numel() / std::max<int64_t>(1, keys);
  Tensor lse = at::empty({rows}, scores.options().dtype(at::kFloat));
  float* sums = lse.data_ptr<float>();
  by_type(scores, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    T* all = scores.data_ptr<T>();
    parallel_rows(rows, keys * 4, [&](int64_t row) {
      T* p = all + row * keys;
      const Range range = seen(row, queries, keys, gap, window);
      thread_local std::vector<float> buffer;
      buffer.resize(keys + kWidth);
      float* e = buffer.data();
      float peak = -std::numeric_limits<float>::infinity();
      Vec peaks(peak);
      each(range.last - range.first, [&](int64_t i, int64_t n) {
        const Vec v = capped(load(p + range.first + i, n), scale, softcap);
        v.store(e + i);
        if (n == kWidth) {
          peaks = at::vec::maximum(peaks, v);
        } else {
          for (int64_t k = 0; k < n; ++k) peak = std::max(peak, e[i + k]);
        }
      });
      peak = std::max(peak, at::vec::vec_reduce_all<float>([](Vec& a, Vec& b) { return at::vec::maximum(a, b); }, peaks));
      Vec total(0.0f);
      float rest = 0.0f;
      each(range.last - range.first, [&](int64_t i, int64_t n) {
        const Vec v = (Vec::loadu(e + i) - Vec(peak)).exp_u20();
        v.store(e + i);
        if (n == kWidth) {
          total = total + v;
        } else {
          for (int64_t k = 0; k < n; ++k) rest += e[i + k];
        }
      });
      const float sum = sum_of(total) + rest;
      sums[row] = peak + std::log(sum);
      for (int64_t i = 0; i < range.first; ++i) p[i] = T(0.0f);
      each(range.last - range.first, [&](int64_t i, int64_t n) {
        store(p + range.first + i, Vec::loadu(e + i) * Vec(1.0f / sum), n);
      });
      for (int64_t i = range.last; i < keys; ++i) p[i] = T(0.0f);
    });
  });
  return lse;
}

// From scores, their lse, d_probs and delta (sum of probs * d_probs for each row): probabilities into `scores`, and
// d_scores into `d_probs`, both in place.
void softmax_tile_backward(Tensor scores, Tensor d_probs, const Tensor& lse, const Tensor& delta, int64_t gap,
                           int64_t window, double scale, double softcap) {
  const int64_t keys = scores.size(-1), queries = scores.size(-2), rows = scores.numel() / std::max<int64_t>(1, keys);
  const float *sums = lse.const_data_ptr<float>(), *deltas = delta.const_data_ptr<float>();
  by_type(scores, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    T *all = scores.data_ptr<T>(), *all_d = d_probs.data_ptr<T>();
    parallel_rows(rows, keys * 4, [&](int64_t row) {
      T *p = all + row * keys, *d = all_d + row * keys;
      const Range range = seen(row, queries, keys, gap, window);
      for (int64_t i = 0; i < range.first; ++i) p[i] = d[i] = T(0.0f);
      each(range.last - range.first, [&](int64_t i, int64_t n) {
        T *here = p + range.first + i, *d_here = d + range.first + i;
        const Vec score = capped(load(here, n), scale, softcap), probs = (score - Vec(sums[row])).exp_u20();
        Vec slope = (load(d_here, n) - Vec(deltas[row])) * probs * Vec(scale);
        if (softcap > 0) {
          const Vec bent = score / Vec(softcap);
          slope = slope * (Vec(1.0f) - bent * bent);
        }
        store(here, probs, n);
        store(d_here, slope, n);
      });
      for (int64_t i = range.last; i < keys; ++i) p[i] = d[i] = T(0.0f);
    });
  });
}

}  // namespace

void luthier::bind_fused(pybind11::module_& m) {
  m.def("rms_norm", &rms_norm);
  m.def("rms_norm_backward", &rms_norm_backward);
  m.def("gated", &gated);
  m.def("gated_backward", &gated_backward);
  m.def("rope", &rope);
  m.def("softmax_tile", &softmax_tile);
  m.def("softmax_tile_backward", &softmax_tile_backward);
}
