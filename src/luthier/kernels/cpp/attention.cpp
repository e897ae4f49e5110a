// Attention over a packed forest, forward and back: each span sees its ancestors whole and itself causally.
//
// A tile is some queries of one span. Its scores against all keys that any of them sees stand in one row-major block of
// floats; keys and values are re-laid once a call, so that nothing is gathered. Scores are made again on the way back, as
// in FlashAttention (arXiv:2205.14135, section 3.1). Every sum has a fixed order for a given number of threads.

#include "bindings.h"
#include "forest.h"

#include <algorithm>
#include <atomic>
#include <tuple>
#include <vector>

namespace {

using namespace luthier;

constexpr float kNone = -std::numeric_limits<float>::infinity();

struct Rule {
  float scale, softcap;
  int64_t window;
};

inline Vec capped(const Vec& score, const Rule& rule) {
  const Vec scaled = score * Vec(rule.scale);
  return rule.softcap > 0 ? Vec(rule.softcap) * (scaled / Vec(rule.softcap)).tanh() : scaled;
}

// Runs items 0..count-1, each once, whenever a thread is free.
template <class Body>
void whenever_free(int64_t count, const Body& body) {
  std::atomic<int64_t> next{0};
  const int64_t threads = std::min<int64_t>(at::get_num_threads(), count);
  at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) {
      for (int64_t item = next++; item < count; item = next++) body(item);
    }
  });
}

// ---- a row of scores to a row of probabilities

// Calls body(first, last) for the columns of all keys that query `q` sees, in order.
template <class Body>
void each_seen(const Tile& tile, int64_t q, const Body& body) {
  const int64_t first = tile.firsts[q], last = last_column(tile, q);
  for (const Piece& piece : tile.pieces) {
    const int64_t from = std::max(first, piece.column), to = std::min(last, piece.column + piece.end - piece.start);
    if (from < to) body(from, to);
  }
}

inline void clear_unseen(const Tile& tile, int64_t q, float* row) {
  int64_t done = 0;
  each_seen(tile, q, [&](int64_t first, int64_t last) {
    std::fill(row + done, row + first, 0.0f);
    done = last;
  });
  std::fill(row + done, row + tile.columns, 0.0f);
}

// exp(score - peak) in place, 0 where nothing is seen; returns peak and sum.
inline std::pair<float, float> exponentials(float* row, const Tile& tile, int64_t q, const Rule& rule) {
  Vec peaks(kNone), total(0.0f);
  each_seen(tile, q, [&](int64_t first, int64_t last) {
    each(last - first, [&](int64_t i, int64_t n) {
      const Vec z = capped(Vec::loadu(row + first + i), rule);
      store(row + first + i, z, n);
      peaks = at::vec::maximum(peaks, inside(z, n, kNone));
    });
  });
  const float peak = at::vec::vec_reduce_all<float>([](Vec& a, Vec& b) { return at::vec::maximum(a, b); }, peaks);
  each_seen(tile, q, [&](int64_t first, int64_t last) {
    each(last - first, [&](int64_t i, int64_t n) {
      const Vec e = (Vec::loadu(row + first + i) - Vec(peak)).exp_u20();
      store(row + first + i, e, n);
      total = total + inside(e, n, 0.0f);
    });
  });
  clear_unseen(tile, q, row);
  return {peak, sum_of(total)};
}

// Scores and gradients of probabilities to probabilities and gradients of raw scores, both in place.
inline void slopes(float* row, float* d_row, const Tile& tile, int64_t q, const Rule& rule, float lse, float delta) {
  each_seen(tile, q, [&](int64_t first, int64_t last) {
    each(last - first, [&](int64_t i, int64_t n) {
      const Vec z = capped(Vec::loadu(row + first + i), rule), p = (z - Vec(lse)).exp_u20();
      Vec d = (Vec::loadu(d_row + first + i) - Vec(delta)) * p * Vec(rule.scale);
      if (rule.softcap > 0) {
        const Vec bent = z / Vec(rule.softcap);
        d = d * (Vec(1.0f) - bent * bent);
      }
      store(row + first + i, p, n);
      store(d_row + first + i, d, n);
    });
  });
  clear_unseen(tile, q, row);
  clear_unseen(tile, q, d_row);
}

// The left side [queries, keys / pack] of a product, made from floats in place.
template <class M>
Left<M> as_left(float* block, int64_t rows, int64_t columns, int64_t step) {
  if constexpr (M::kPack == 1) {
    return {block, step, 1};
  } else {
    for (int64_t r = 0; r < rows; ++r) {
      BFloat16* to = reinterpret_cast<BFloat16*>(block + r * step);
      for (int64_t i = 0; i < columns; i += kWidth) store(to + i, Vec::loadu(block + r * step + i), kWidth);
    }
    return {reinterpret_cast<typename M::Number*>(block), step, 1};
  }
}

template <class M>
void scores(const Tile& tile, const Left<M>& left, const Layout<M>& right, int64_t head, int64_t depth, float* block,
            int64_t step) {
  for (const Piece& piece : tile.pieces) {
    const int64_t start = piece.start / M::kPack * M::kPack, column = piece.column - piece.start % M::kPack;
    product<M>(tile.end - tile.start, piece.end - start, left, right.of(head) + start, right.step, depth, block + column,
               step, false);
  }
}

// The left side [keys, queries / pack] of a product, from floats [queries, keys]; `into` takes it where it is made.
template <class M>
Left<M> as_transposed_left(float* block, float* into, int64_t rows, int64_t columns, int64_t step) {
  if constexpr (M::kPack == 1) {
    return {block, 1, step};
  } else {
    if (rows % 2) std::fill(block + rows * step, block + rows * step + columns, 0.0f);
    for (int64_t r = 0; r < rows; r += 2) {
      const float *even = block + r * step, *odd = even + step;
      for (int64_t i = 0; i < columns; i += kWidth) M::interleave(even + i, odd + i, into + r * step + i);
    }
    return {reinterpret_cast<typename M::Number*>(into), 1, 2 * step};
  }
}

// Adds block' [keys, queries] x right [queries, features] to the sums of the tokens of a tile.
template <class M>
void scatter(const Tile& tile, const Left<M>& left, const typename M::Number* right, int64_t size, int64_t step, float* sums) {
  const int64_t depth = round_up(tile.end - tile.start, M::kPack) / M::kPack;
  for (const Piece& piece : tile.pieces) {
    const Left<M> here{left.first + piece.column, left.row, left.step};
    product<M>(piece.end - piece.start, size, here, right, step, depth, sums + piece.start * step, step, true);
  }
}

// Sum over the keys of a tile: block [queries, keys] x right [keys, features].
template <class M>
void mix(const Tile& tile, const Left<M>& left, const Layout<M>& right, int64_t head, int64_t size, float* out) {
  bool add = false;
  for (const Piece& piece : tile.pieces) {
    const int64_t start = piece.start / M::kPack, column = piece.column / M::kPack;
    const Left<M> here{left.first + column * left.step, left.row, left.step};
    const int64_t depth = round_up(piece.column % M::kPack + piece.end - piece.start, M::kPack) / M::kPack;
    product<M>(tile.end - tile.start, size, here, right.of(head) + start * right.step, right.step, depth, out, right.step,
               add);
    add = true;
  }
}

template <class T>
void store_row(T* to, const float* from, int64_t size, float factor) {
  each(size, [&](int64_t i, int64_t n) { store(to + i, Vec::loadu(from + i) * Vec(factor), n); });
}

template <class M, class T>
void forward(const View<T>& q, const View<T>& k, const View<T>& v, const Forest& forest, const Rule& rule, T* out, float* lse) {
  const int64_t depth = round_up(q.size, M::kPack) / M::kPack, group = q.heads / k.heads;
  const Layout<M> keys = tokens_in_lanes<M>(k), values = features_in_lanes<M>(v);
  const int64_t step = forest.widest + kSlack, size = values.step, count = forest.tiles.size();
  whenever_free(count * q.heads, [&](int64_t item) {
    // Long tiles stand behind short ones in a span: the last come first, so that no long one is left alone.
    const Tile& tile = forest.tiles[count - 1 - item % count];
    const int64_t head = item / count, rows = tile.end - tile.start;
    thread_local std::vector<typename M::Number> queries;
    thread_local std::vector<float> block, mixed;
    queries.resize(kQueries * depth);
    block.resize(kQueries * step);
    mixed.resize(kQueries * size);
    copy_left<M>(q, head, tile, queries.data());
    scores<M>(tile, {queries.data(), depth, 1}, keys, head / group, depth, block.data(), step);
    float totals[kQueries];
    for (int64_t r = 0; r < rows; ++r) {
      float* row = block.data() + r * step;
      const auto [peak, total] = exponentials(row, tile, r, rule);
      totals[r] = total;
      lse[head * q.tokens + tile.start + r] = peak + std::log(total);
    }
    mix<M>(tile, as_left<M>(block.data(), rows, tile.columns, step), values, head / group, q.size, mixed.data());
    for (int64_t r = 0; r < rows; ++r) {
      store_row(out + ((tile.start + r) * q.heads + head) * q.size, mixed.data() + r * size, q.size, 1.0f / totals[r]);
    }
  });
}

// ---- back

// Tiles of one tree for one key head, every `slots`-th of them: nobody else adds to its sums.
struct Work {
  int64_t head, tree, slot, cost;
};

std::vector<Work> share_out(const Forest& forest, int64_t heads, int64_t slots) {
  std::vector<int64_t> costs(forest.trees, 0);
  for (const Tile& tile : forest.tiles) costs[tile.tree] += tile.cost();
  std::vector<Work> work;
  for (int64_t head = 0; head < heads; ++head) {
    for (int64_t tree = 0; tree < forest.trees; ++tree) {
      for (int64_t slot = 0; slot < slots; ++slot) work.push_back({head, tree, slot, costs[tree]});
    }
  }
  std::stable_sort(work.begin(), work.end(), [](const Work& a, const Work& b) { return a.cost > b.cost; });
  return work;
}

template <class T>
struct Inputs {
  View<T> q, k, v, grad, out;
  const float* lse;
};

// One thread's room for a tile.
template <class M>
struct Room {
  std::vector<typename M::Number> q_left, d_left, q_right, d_right;
  std::vector<float> block, d_block, mixed;
  void fit(int64_t depth, int64_t size, int64_t step) {
    for (auto* left : {&q_left, &d_left}) left->resize(kQueries * depth);
    for (auto* right : {&q_right, &d_right}) right->resize(kQueries * size);
    for (auto* floats : {&block, &d_block}) floats->resize(kQueries * step);
    mixed.resize(kQueries * size);
  }
};

template <class M>
struct Keys {
  Layout<M> k_tokens, v_tokens, k_features;
};

template <class M, class T>
void tile_backward(const Inputs<T>& in, const Keys<M>& keys, const Tile& tile, int64_t head, const Rule& rule, int64_t step,
                   Room<M>& room, T* d_q, float* d_k, float* d_v) {
  const int64_t depth = round_up(in.q.size, M::kPack) / M::kPack, key_head = head / (in.q.heads / in.k.heads);
  const int64_t rows = tile.end - tile.start, size = keys.k_features.step;
  float *block = room.block.data(), *d_block = room.d_block.data();
  copy_left<M>(in.q, head, tile, room.q_left.data());
  copy_left<M>(in.grad, head, tile, room.d_left.data());
  features_in_lanes<M>(in.q, head, tile.start, tile.end, room.q_right.data(), size);
  features_in_lanes<M>(in.grad, head, tile.start, tile.end, room.d_right.data(), size);
  scores<M>(tile, {room.q_left.data(), depth, 1}, keys.k_tokens, key_head, depth, block, step);
  scores<M>(tile, {room.d_left.data(), depth, 1}, keys.v_tokens, key_head, depth, d_block, step);
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t token = tile.start + r;
    const T *grad = in.grad.at(head, token), *out = in.out.at(head, token);
    Vec delta(0.0f);
    each(in.q.size, [&](int64_t i, int64_t n) { delta = delta + inside(load(grad + i, n) * load(out + i, n), n, 0.0f); });
    slopes(block + r * step, d_block + r * step, tile, r, rule, in.lse[head * in.q.tokens + token], sum_of(delta));
  }
  scatter<M>(tile, as_transposed_left<M>(block, block, rows, tile.columns, step), room.d_right.data(), in.v.size, size, d_v);
  scatter<M>(tile, as_transposed_left<M>(d_block, block, rows, tile.columns, step), room.q_right.data(), in.q.size, size, d_k);
  mix<M>(tile, as_left<M>(d_block, rows, tile.columns, step), keys.k_features, key_head, in.q.size, room.mixed.data());
  for (int64_t r = 0; r < rows; ++r) {
    store_row(d_q + (head * in.q.tokens + tile.start + r) * in.q.size, room.mixed.data() + r * size, in.q.size, 1.0f);
  }
}

template <class T>
void add_up(const std::vector<float>& sums, int64_t slots, int64_t step, int64_t rows, int64_t size, T* to) {
  parallel_rows(rows, size, [&](int64_t row) {
    each(size, [&](int64_t i, int64_t n) {
      Vec total(0.0f);
      for (int64_t slot = 0; slot < slots; ++slot) total = total + Vec::loadu(sums.data() + (slot * rows + row) * step + i);
      store(to + row * size + i, total, n);
    });
  });
}

template <class M, class T>
void backward(const Inputs<T>& in, const Forest& forest, const Rule& rule, T* d_q, T* d_k, T* d_v) {
  const int64_t depth = round_up(in.q.size, M::kPack) / M::kPack, group = in.q.heads / in.k.heads;
  const Keys<M> keys{tokens_in_lanes<M>(in.k), tokens_in_lanes<M>(in.v), features_in_lanes<M>(in.k)};
  const int64_t step = forest.widest + kSlack, size = keys.k_features.step, threads = at::get_num_threads();
  const int64_t slots = in.k.heads * forest.trees >= 2 * threads ? 1 : threads;
  const int64_t tokens = in.k.heads * in.k.tokens;
  std::vector<float> k_sums(slots * tokens * size), v_sums(slots * tokens * size);
  const std::vector<Work> work = share_out(forest, in.k.heads, slots);
  whenever_free(work.size(), [&](int64_t item) {
    thread_local Room<M> room;
    room.fit(depth, size, step);
    const Work& mine = work[item];
    const int64_t place = (mine.slot * tokens + mine.head * in.k.tokens) * size;
    int64_t number = 0;
    for (const Tile& tile : forest.tiles) {
      if (tile.tree != mine.tree || number++ % slots != mine.slot) continue;
      for (int64_t head = mine.head * group; head < (mine.head + 1) * group; ++head) {
        tile_backward<M>(in, keys, tile, head, rule, step, room, d_q, k_sums.data() + place, v_sums.data() + place);
      }
    }
  });
  add_up(k_sums, slots, size, tokens, in.k.size, d_k);
  add_up(v_sums, slots, size, tokens, in.v.size, d_v);
}

// ---- the module

template <class Body>
void by_numbers(const Tensor& x, const Body& body) {
  if (x.scalar_type() == at::kFloat) return body(static_cast<Floats*>(nullptr), static_cast<float*>(nullptr));
  TORCH_CHECK(x.scalar_type() == at::kBFloat16, "attention: expected float32 or bfloat16, got ", x.scalar_type());
#if defined(__AVX512BF16__)
  body(static_cast<Halves*>(nullptr), static_cast<BFloat16*>(nullptr));
#else
  body(static_cast<Floats*>(nullptr), static_cast<BFloat16*>(nullptr));
#endif
}

// q [H, T, D], k and v [K, T, D], spans [3, B] (start, end, parent): out [T, H, D] and lse [H, T], float32.
std::tuple<Tensor, Tensor> forest_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& spans,
                                            double scale, int64_t window, double softcap) {
  Tensor out = at::empty({q.size(1), q.size(0), q.size(2)}, q.options());
  Tensor lse = at::empty({q.size(0), q.size(1)}, q.options().dtype(at::kFloat));
  const Rule rule{static_cast<float>(scale), static_cast<float>(softcap), window};
  by_numbers(q, [&](auto* numbers, auto* type) {
    using M = std::remove_pointer_t<decltype(numbers)>;
    using T = std::remove_pointer_t<decltype(type)>;
    const Forest forest(spans, window, M::kPack);
    forward<M>(View<T>(q), View<T>(k), View<T>(v), forest, rule, out.data_ptr<T>(), lse.data_ptr<float>());
  });
  return {out, lse};
}

// From grad and out [T, H, D] and lse: gradients by q, k and v.
std::tuple<Tensor, Tensor, Tensor> forest_attention_backward(const Tensor& grad, const Tensor& q, const Tensor& k,
                                                             const Tensor& v, const Tensor& out, const Tensor& lse,
                                                             const Tensor& spans, double scale, int64_t window,
                                                             double softcap) {
  Tensor d_q = at::empty(q.sizes(), q.options()), d_k = at::empty(k.sizes(), k.options());
  Tensor d_v = at::empty(v.sizes(), v.options());
  const Rule rule{static_cast<float>(scale), static_cast<float>(softcap), window};
  by_numbers(q, [&](auto* numbers, auto* type) {
    using M = std::remove_pointer_t<decltype(numbers)>;
    using T = std::remove_pointer_t<decltype(type)>;
    const Inputs<T> in{View<T>(q), View<T>(k), View<T>(v), View<T>(grad.transpose(0, 1)), View<T>(out.transpose(0, 1)),
                       lse.const_data_ptr<float>()};
    const Forest forest(spans, window, M::kPack);
    backward<M>(in, forest, rule, d_q.data_ptr<T>(), d_k.data_ptr<T>(), d_v.data_ptr<T>());
  });
  return {d_q, d_k, d_v};
}

}  // namespace

void luthier::bind_attention(pybind11::module_& m) {
  m.def("forest_attention", &forest_attention);
  m.def("forest_attention_backward", &forest_attention_backward);
}
