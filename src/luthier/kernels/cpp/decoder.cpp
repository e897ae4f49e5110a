// One forward pass of a decoder over new tokens of several sequences, their keys and values in pages.
//
// A page holds kPage positions of one sequence for every layer: keys [layers, kv heads, head size, kPage] (positions
// side by side, so that one vector holds the same feature of kPage keys) and values [layers, kv heads, kPage, head size].
// Pages may belong to several sequences that begin alike.

#include "bindings.h"
#include "low_rank.h"
#include "packed_linear.h"
#include "vectors.h"

#include <memory>
#include <string>

namespace luthier {
namespace {

constexpr int64_t kPage = 16;

Tensor as_float(const Tensor& x) { return x.to(at::kFloat).contiguous(); }

void norm_row(const float* x, const float* gain, float* y, int64_t size, float eps) {
  Vec squares(0.0f);
  each(size, [&](int64_t i, int64_t n) {
    const Vec v = load(x + i, n);
    squares = squares + v * v;
  });
  const Vec factor(1.0f / std::sqrt(sum_of(squares) / size + eps));
  each(size, [&](int64_t i, int64_t n) { store(y + i, load(x + i, n) * factor * load(gain + i, n), n); });
}

// Calls body(first, count) for runs of four queries, and for what is left, with the count as a type.
template <class Body>
void by_fours(int64_t size, const Body& body) {
  int64_t i = 0;
  for (; i + 4 <= size; i += 4) body(i, std::integral_constant<int, 4>());
  switch (size - i) {
    case 3: return body(i, std::integral_constant<int, 3>());
    case 2: return body(i, std::integral_constant<int, 2>());
    case 1: return body(i, std::integral_constant<int, 1>());
  }
}

struct Layer {
  std::shared_ptr<PackedLinear> qkv, out, gate_up, down;
  Tensor qkv_bias, out_bias;                                // float or undefined
  Tensor before_attention, after_attention, before_mlp, after_mlp, query_norm, key_norm;  // gains, float or undefined
  int64_t window = 0, angles = 0;
};

struct Call {
  int64_t tokens;
  const int64_t *position, *sequence;  // [tokens]
  const int32_t* table;                // [sequences, width] page numbers
  int64_t width;
  const Turns& turns;
};

class Decoder {
 public:
  int64_t hidden, heads, kv_heads, head_size, layers_expected;
  double eps, scale, softcap, final_softcap, logit_scale, embedding_scale;
  bool is_silu, half_cache;

  Decoder(const py::dict& facts) {
    const auto whole = [&](const char* name) { return facts[name].cast<int64_t>(); };
    const auto real = [&](const char* name) { return facts[name].cast<double>(); };
    hidden = whole("hidden"), heads = whole("heads"), kv_heads = whole("kv_heads"), head_size = whole("head_size");
    layers_expected = whole("layers");
    eps = real("eps"), scale = real("scale"), softcap = real("softcap"), final_softcap = real("final_softcap");
    logit_scale = real("logit_scale"), embedding_scale = real("embedding_scale");
    is_silu = facts["is_silu"].cast<bool>(), half_cache = facts["half_cache"].cast<bool>();
  }

  void add_layer(const py::dict& parts) {
    const auto linear = [&](const char* name) { return parts[name].cast<std::shared_ptr<PackedLinear>>(); };
    const auto gain = [&](const char* name) {
      return parts.contains(name) ? as_float(parts[name].cast<Tensor>()) : Tensor();
    };
    layers_.push_back({linear("qkv"), linear("out"), linear("gate_up"), linear("down"), gain("qkv_bias"),
                       gain("out_bias"), gain("before_attention"), gain("after_attention"), gain("before_mlp"),
                       gain("after_mlp"), gain("query_norm"), gain("key_norm"), parts["window"].cast<int64_t>(),
                       parts["angles"].cast<int64_t>()});
  }

  void finish(const Tensor& embedding, const Tensor& norm, std::shared_ptr<PackedLinear> head,
              const std::optional<Tensor>& head_bias) {
    embedding_ = embedding, norm_ = as_float(norm), head_ = std::move(head);
    if (head_bias.has_value()) head_bias_ = as_float(*head_bias);
    TORCH_CHECK(static_cast<int64_t>(layers_.size()) == layers_expected, "decoder: layers are missing");
  }

  int64_t add_adapter(const std::vector<std::vector<std::pair<std::optional<Tensor>, std::optional<Tensor>>>>& layers) {
    return adapters_.add(layers);
  }

  // angles [kinds, 2, positions, turned], float; pages [pages, 2, layers, kv heads, head size * kPage].
  // Returns what the last norm makes of the wanted rows, float [wanted, hidden].
  Tensor hidden_of(const Tensor& ids, const Tensor& positions, const Tensor& sequences, const Tensor& tables, Tensor pages,
                   const Tensor& angles, const Tensor& wanted, const Turns& turns) {
    const py::gil_scoped_release release;
    const int64_t tokens = ids.numel();
    const Call call{tokens, positions.const_data_ptr<int64_t>(), sequences.const_data_ptr<int64_t>(),
                    tables.const_data_ptr<int32_t>(), tables.size(1), turns};
    Tensor x = embedding_.index_select(0, ids).to(at::kFloat).contiguous();
    if (embedding_scale != 1.0) x.mul_(embedding_scale);
    const int64_t width = (heads + 2 * kv_heads) * head_size;
    Tensor normed = at::empty_like(x), qkv = at::empty({tokens, width}), mixed = at::empty({tokens, heads * head_size});
    for (size_t index = 0; index < layers_.size(); ++index) {
      const Layer& layer = layers_[index];
      norm(x, layer.before_attention, normed);
      layer.qkv->run(normed.const_data_ptr<float>(), tokens, qkv.data_ptr<float>(), false);
      if (layer.qkv_bias.defined()) qkv.add_(layer.qkv_bias);
      adapters_.apply(turns, index, kQkv, normed, qkv);
      if (half_cache) {
        attention<BFloat16>(layer, index, call, qkv, angles, pages, mixed);
      } else {
        attention<float>(layer, index, call, qkv, angles, pages, mixed);
      }
      add(call, index, kOut, *layer.out, layer.out_bias, layer.after_attention, mixed, x);
      norm(x, layer.before_mlp, normed);
      mlp(call, index, layer, normed, x);
    }
    Tensor last = x.index_select(0, wanted);
    norm(last, norm_, last);
    return last;
  }

  // Float logits [rows, vocabulary] of what hidden_of returned.
  Tensor logits_of(const Tensor& last) const {
    const py::gil_scoped_release release;
    Tensor logits = at::empty({last.size(0), head_->outputs});
    head_->run(last.const_data_ptr<float>(), last.size(0), logits.data_ptr<float>(), false);
    if (head_bias_.defined()) logits.add_(head_bias_);
    if (logit_scale != 1.0) logits.mul_(logit_scale);
    if (final_softcap > 0) logits.div_(final_softcap).tanh_().mul_(final_softcap);
    return logits;
  }

 private:
  std::vector<Layer> layers_;
  Tensor embedding_, norm_, head_bias_;
  std::shared_ptr<PackedLinear> head_;
  Adapters adapters_;

  void norm(const Tensor& x, const Tensor& gain, Tensor& y) const {
    const float *from = x.const_data_ptr<float>(), *g = gain.const_data_ptr<float>();
    float* to = y.data_ptr<float>();
    parallel_rows(x.size(0), hidden, [&](int64_t r) { norm_row(from + r * hidden, g, to + r * hidden, hidden, eps); });
  }

  // x += after(linear(from) + bias + what adapters add)
  void add(const Call& call, size_t index, Product product, const PackedLinear& linear, const Tensor& bias,
           const Tensor& after, const Tensor& from, Tensor& x) const {
    if (!after.defined()) {
      linear.run(from.const_data_ptr<float>(), from.size(0), x.data_ptr<float>(), true);
      if (bias.defined()) x.add_(bias);
      adapters_.apply(call.turns, index, product, from, x);
      return;
    }
    Tensor y = at::empty_like(x);
    linear.run(from.const_data_ptr<float>(), from.size(0), y.data_ptr<float>(), false);
    if (bias.defined()) y.add_(bias);
    adapters_.apply(call.turns, index, product, from, y);
    norm(y, after, y);
    x.add_(y);
  }

  void mlp(const Call& call, size_t index, const Layer& layer, const Tensor& normed, Tensor& x) const {
    const int64_t tokens = x.size(0), size = layer.gate_up->outputs / 2;
    Tensor both = at::empty({tokens, 2 * size}), gated = at::empty({tokens, size});
    layer.gate_up->run(normed.const_data_ptr<float>(), tokens, both.data_ptr<float>(), false);
    adapters_.apply(call.turns, index, kGateUp, normed, both);
    const float* from = both.const_data_ptr<float>();
    float* to = gated.data_ptr<float>();
    parallel_rows(tokens, 2 * size, [&](int64_t r) {
      const float *g = from + r * 2 * size, *u = g + size;
      each(size, [&](int64_t i, int64_t n) {
        const Vec x = load(g + i, n);
        Vec value;
        if (is_silu) {
          value = x / (Vec(1.0f) + x.neg().exp_u20());
        } else {
          const Vec inner = Vec(0.7978845608028654f) * x * (Vec(1.0f) + Vec(0.044715f) * x * x);
          value = Vec(0.5f) * x * (Vec(1.0f) + inner.tanh());
        }
        store(to + r * size + i, value * load(u + i, n), n);
      });
    });
    add(call, index, kDown, *layer.down, Tensor(), layer.after_mlp, gated, x);
  }

  void turn(float* x, const float* cos, const float* sin, int64_t turned) const {
    const int64_t half = turned / 2;
    for (int64_t i = 0; i < half; ++i) {
      const float low = x[i], high = x[half + i];
      x[i] = low * cos[i] - high * sin[i];
      x[half + i] = high * cos[half + i] + low * sin[half + i];
    }
  }

  template <class T>
  void attention(const Layer& layer, int64_t index, const Call& call, Tensor& qkv, const Tensor& angles, Tensor& pages,
                 Tensor& mixed) const {
    float* all = qkv.data_ptr<float>();
    const int64_t width = qkv.size(1), each_head = head_size * kPage, group = heads / kv_heads;
    const int64_t part = layers_expected * kv_heads * each_head;  // keys, then values, of one page
    T* base = pages.data_ptr<T>();
    const auto place = [&](int64_t page, int64_t kv) { return base + page * 2 * part + (index * kv_heads + kv) * each_head; };
    const int64_t turned = angles.size(3), reach = angles.size(2);
    const float* cos = angles.const_data_ptr<float>() + layer.angles * 2 * reach * turned;
    const float* sin = cos + reach * turned;
    parallel_rows(call.tokens, width, [&](int64_t t) {
      const int64_t position = call.position[t], page = call.table[call.sequence[t] * call.width + position / kPage];
      float* row = all + t * width;
      for (int64_t h = 0; h < heads + kv_heads; ++h) {
        const Tensor& gain = h < heads ? layer.query_norm : layer.key_norm;
        float* x = row + h * head_size;
        if (gain.defined()) norm_row(x, gain.const_data_ptr<float>(), x, head_size, eps);
        turn(x, cos + position * turned, sin + position * turned, turned);
      }
      for (int64_t kv = 0; kv < kv_heads; ++kv) {
        const float *k = row + (heads + kv) * head_size, *v = k + kv_heads * head_size;
        T *keys = place(page, kv) + position % kPage, *values = place(page, kv) + part + position % kPage * head_size;
        for (int64_t i = 0; i < head_size; ++i) keys[i * kPage] = T(k[i]), values[i] = T(v[i]);
      }
    });
    // Tokens of one sequence that follow each other share their reads of keys and values.
    std::vector<int64_t> starts;
    const int64_t most = std::max<int64_t>(1, 12 / group);
    for (int64_t t = 0; t < call.tokens; ++t) {
      const bool joins = t > 0 && call.sequence[t] == call.sequence[t - 1] && t - starts.back() < most;
      if (!joins) starts.push_back(t);
    }
    starts.push_back(call.tokens);
    float* to = mixed.data_ptr<float>();
    at::parallel_for(0, (static_cast<int64_t>(starts.size()) - 1) * kv_heads, 1, [&](int64_t begin, int64_t end) {
      std::vector<float> scores;
      for (int64_t item = begin; item < end; ++item) {
        const int64_t block = item / kv_heads, kv = item % kv_heads;
        attend<T>(layer, call, starts[block], starts[block + 1], kv, all, width, part,
                  [&](int64_t page) { return place(page, kv); }, to, scores);
      }
    });
  }

  template <class T, class Place>
  void attend(const Layer& layer, const Call& call, int64_t first, int64_t last, int64_t kv, const float* all, int64_t width,
              int64_t part, const Place& place, float* to, std::vector<float>& scores) const {
    const int64_t group = heads / kv_heads, queries = (last - first) * group;
    const int64_t keys = call.position[last - 1] + 1, sequence = call.sequence[first];
    const int64_t low = layer.window > 0 ? std::max<int64_t>(0, call.position[first] - layer.window + 1) / kPage : 0;
    const int64_t page_count = (keys + kPage - 1) / kPage, columns = (page_count - low) * kPage;
    const int32_t* table = call.table + sequence * call.width;
    scores.resize(queries * columns);
    const auto query = [&](int64_t q) { return all + (first + q / group) * width + (kv * group + q % group) * head_size; };
    by_fours(queries, [&](int64_t q, auto count) {
      constexpr int kCount = decltype(count)::value;
      const float* x[kCount];
      for (int c = 0; c < kCount; ++c) x[c] = query(q + c);
      for (int64_t p = low; p < page_count; ++p) {
        products<kCount>(place(table[p]), x, scores.data() + q * columns + (p - low) * kPage, columns);
      }
    });
    for (int64_t q = 0; q < queries; ++q) {
      const int64_t own = call.position[first + q / group];
      const int64_t from = std::max<int64_t>(0, (layer.window > 0 ? own - layer.window + 1 : 0) - low * kPage);
      softmax(scores.data() + q * columns, from, own + 1 - low * kPage, columns);
    }
    by_fours(queries, [&](int64_t q, auto count) {
      constexpr int kCount = decltype(count)::value;
      each(head_size, [&](int64_t i, int64_t n) {
        Vec sum[kCount];
        for (auto& s : sum) s = Vec(0.0f);
        for (int64_t p = low; p < page_count; ++p) {
          const T* v = place(table[p]) + part + i;
          const float* weights = scores.data() + q * columns + (p - low) * kPage;
          const int64_t filled = std::min(kPage, keys - p * kPage);
          for (int64_t j = 0; j < filled; ++j) {
            const Vec value = load(v + j * head_size, n);
            for (int c = 0; c < kCount; ++c) sum[c] = at::vec::fmadd(Vec(weights[c * columns + j]), value, sum[c]);
          }
        }
        for (int c = 0; c < kCount; ++c) {
          const int64_t row = first + (q + c) / group, head = kv * group + (q + c) % group;
          store(to + (row * heads + head) * head_size + i, sum[c], n);
        }
      });
    });
  }

  // Dot products of kCount queries with the keys of one page, to rows of `to` that lie `step` apart.
  template <int kCount, class T>
  void products(const T* keys, const float* const* x, float* to, int64_t step) const {
    constexpr int kParts = kPage / kWidth;
    Vec sum[kCount][kParts];
    for (auto& row : sum)
      for (auto& s : row) s = Vec(0.0f);
    for (int64_t i = 0; i < head_size; ++i) {
      for (int part = 0; part < kParts; ++part) {
        const Vec key = load(keys + i * kPage + part * kWidth, kWidth);
        for (int c = 0; c < kCount; ++c) sum[c][part] = at::vec::fmadd(Vec(x[c][i]), key, sum[c][part]);
      }
    }
    for (int c = 0; c < kCount; ++c)
      for (int part = 0; part < kParts; ++part) sum[c][part].store(to + c * step + part * kWidth);
  }

  // Probabilities over [from, end) in place, zero elsewhere; `columns` is a multiple of the vector width.
  void softmax(float* scores, int64_t from, int64_t end, int64_t columns) const {
    const float nothing = -std::numeric_limits<float>::infinity();
    const Vec factor(static_cast<float>(scale)), cap(static_cast<float>(softcap));
    for (int64_t i = 0; i < columns; i += kWidth) {
      const Vec scaled = Vec::loadu(scores + i) * factor;
      (softcap > 0 ? cap * (scaled / cap).tanh() : scaled).store(scores + i);
    }
    std::fill(scores, scores + from, nothing);
    std::fill(scores + end, scores + columns, nothing);
    Vec peaks(nothing), sums(0.0f);
    for (int64_t i = 0; i < columns; i += kWidth) peaks = at::vec::maximum(peaks, Vec::loadu(scores + i));
    const Vec peak(at::vec::vec_reduce_all<float>([](Vec& a, Vec& b) { return at::vec::maximum(a, b); }, peaks));
    for (int64_t i = 0; i < columns; i += kWidth) {
      const Vec power = (Vec::loadu(scores + i) - peak).exp_u20();
      power.store(scores + i);
      sums = sums + power;
    }
    const Vec inverse(1.0f / sum_of(sums));
    for (int64_t i = 0; i < columns; i += kWidth) (Vec::loadu(scores + i) * inverse).store(scores + i);
  }
};

// Index and log-probability of the largest logit of each row; the log-probability is NaN where a logit is.
std::tuple<Tensor, Tensor> most_probable(const Tensor& logits) {
  const int64_t rows = logits.size(0), size = logits.size(1);
  Tensor index = at::empty({rows}, at::kLong), logp = at::empty({rows});
  const float* all = logits.const_data_ptr<float>();
  int64_t* best = index.data_ptr<int64_t>();
  float* log = logp.data_ptr<float>();
  parallel_rows(rows, size, [&](int64_t r) {
    const float* x = all + r * size;
    Vec peaks(-std::numeric_limits<float>::infinity());
    const int64_t whole = size / kWidth * kWidth;
    for (int64_t i = 0; i < whole; i += kWidth) peaks = at::vec::maximum(peaks, Vec::loadu(x + i));
    float peak = at::vec::vec_reduce_all<float>([](Vec& a, Vec& b) { return at::vec::maximum(a, b); }, peaks);
    for (int64_t i = whole; i < size; ++i) peak = std::isnan(x[i]) ? x[i] : std::max(peak, x[i]);
    best[r] = std::max<int64_t>(0, std::find(x, x + size, peak) - x) % size;
    Vec total(0.0f);
    for (int64_t i = 0; i < whole; i += kWidth) total = total + (Vec::loadu(x + i) - Vec(peak)).exp_u20();
    float sum = sum_of(total);
    for (int64_t i = whole; i < size; ++i) sum += std::exp(x[i] - peak);
    log[r] = std::isfinite(peak) ? -std::log(sum) : std::numeric_limits<float>::quiet_NaN();
  });
  return {index, logp};
}

Tensor packed_linear(const PackedLinear& linear, const Tensor& x) {
  TORCH_CHECK(x.size(-1) == linear.inputs, "packed linear: expected ", linear.inputs, " inputs, got ", x.size(-1));
  const Tensor rows = as_float(x).reshape({-1, linear.inputs});
  Tensor y = at::empty({rows.size(0), linear.outputs});
  linear.run(rows.const_data_ptr<float>(), rows.size(0), y.data_ptr<float>(), false);
  auto shape = x.sizes().vec();
  shape.back() = linear.outputs;
  return y.view(shape).to(x.scalar_type());
}

}  // namespace

void bind_decoder(py::module_& m) {
  py::class_<PackedLinear, std::shared_ptr<PackedLinear>>(m, "PackedLinear")
      .def(py::init<const Tensor&, int64_t>())
      .def("__call__", &packed_linear)
      .def_property_readonly("num_bytes", [](const PackedLinear& self) {
        return self.weight.nbytes() + (self.scale.defined() ? self.scale.nbytes() : 0);
      });
  py::class_<Decoder>(m, "Decoder")
      .def(py::init<const py::dict&>())
      .def("add_layer", &Decoder::add_layer)
      .def("finish", &Decoder::finish)
      .def("add_adapter", &Decoder::add_adapter)
      .def("hidden", &Decoder::hidden_of)
      .def("logits", &Decoder::logits_of);
  m.def("most_probable", &most_probable);
  m.attr("PAGE") = kPage;
}

}  // namespace luthier
