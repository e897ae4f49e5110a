// One chunk of logits to log-probability, entropy and their slopes, row by row: what triton/logprobs.py does on GPUs.

#include "bindings.h"
#include "vectors.h"

#include <tuple>

namespace {

using namespace luthier;

struct Shape {
  float scale, softcap;
  Vec of(const Vec& raw) const {
    const Vec z = raw * Vec(scale);
    return softcap > 0 ? Vec(softcap) * (z / Vec(softcap)).tanh() : z;
  }
  Vec slope(const Vec& z) const {
    if (softcap <= 0) return Vec(scale);
    const Vec bent = z / Vec(softcap);
    return Vec(scale) * (Vec(1.0f) - bent * bent);
  }
};

struct Asked {
  bool slopes, entropy;
};

struct Found {
  float logp, entropy;
};

// Overwrites `row` by d logp / d logits, and writes d entropy / d logits to `d_entropy`, where they are asked for.
template <class T>
Found score_row(T* row, T* d_entropy, int64_t size, int64_t target, const Shape& shape, const Asked& asked) {
  thread_local std::vector<float> buffer;
  buffer.resize(size + kWidth);
  float* z = buffer.data();
  Vec peaks(-std::numeric_limits<float>::infinity());
  each(size, [&](int64_t i, int64_t n) {
    const Vec value = shape.of(load(row + i, n));
    value.store(z + i);
    peaks = at::vec::maximum(peaks, inside(value, n, -std::numeric_limits<float>::infinity()));
  });
  const float peak = at::vec::vec_reduce_all<float>([](Vec& a, Vec& b) { return at::vec::maximum(a, b); }, peaks);
  Vec total(0.0f), weighted(0.0f);
  each(size, [&](int64_t i, int64_t n) {
    const Vec value = Vec::loadu(z + i), e = inside((value - Vec(peak)).exp_u20(), n, 0.0f);
    total = total + e;
    if (asked.entropy) weighted = weighted + inside(e * value, n, 0.0f);
  });
  const float sum = sum_of(total), lse = peak + std::log(sum), entropy = asked.entropy ? lse - sum_of(weighted) / sum : 0.0f;
  const Found found{z[target] - lse, entropy};
  if (!asked.slopes) return found;
  const float bent = shape.softcap > 0 ? z[target] / shape.softcap : 0.0f;
  each(size, [&](int64_t i, int64_t n) {
    const Vec value = Vec::loadu(z + i), p = (value - Vec(lse)).exp_u20(), bend = shape.slope(value);
    store(row + i, p.neg() * bend, n);
    if (asked.entropy) store(d_entropy + i, p.neg() * (value - Vec(lse - entropy)) * bend, n);
  });
  row[target] = static_cast<T>(shape.scale * (1.0f - bent * bent) * (1.0f - std::exp(found.logp)));
  return found;
}

// logits [C, V] and targets [C]: logp [C], entropy [C] and d_entropy [C, V]; logits become d logp.
std::tuple<Tensor, Tensor, Tensor> score(Tensor logits, const Tensor& targets, double scale, double softcap, bool slopes,
                                         bool with_entropy) {
  const int64_t rows = logits.size(0), size = logits.size(1);
  Tensor logp = at::empty({rows}, logits.options().dtype(at::kFloat)), entropy = at::empty_like(logp);
  Tensor d_entropy = slopes && with_entropy ? at::empty_like(logits) : logits;
  const Shape shape{static_cast<float>(scale), static_cast<float>(softcap)};
  const int64_t* wanted = targets.const_data_ptr<int64_t>();
  by_type(logits, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    T *all = logits.data_ptr<T>(), *others = d_entropy.data_ptr<T>();
    parallel_rows(rows, size, [&](int64_t r) {
      TORCH_CHECK(wanted[r] >= 0 && wanted[r] < size, "target ", wanted[r], " is not in the vocabulary of ", size);
      const Found found = score_row(all + r * size, others + r * size, size, wanted[r], shape, {slopes, with_entropy});
      logp.data_ptr<float>()[r] = found.logp;
      entropy.data_ptr<float>()[r] = found.entropy;
    });
  });
  return {logp, entropy, d_entropy};
}

}  // namespace

void luthier::bind_scores(pybind11::module_& m) { m.def("score", &score); }
