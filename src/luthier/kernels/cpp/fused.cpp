// Row-wise operations of a decoder layer, one pass over memory each: RMSNorm, gated activations, rotary embedding.
// float32 or bfloat16 in memory, float32 in registers.
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

}  // namespace

void luthier::bind_fused(pybind11::module_& m) {
  m.def("rms_norm", &rms_norm);
  m.def("rms_norm_backward", &rms_norm_backward);
  m.def("gated", &gated);
  m.def("gated_backward", &gated_backward);
  m.def("rope", &rope);
}
