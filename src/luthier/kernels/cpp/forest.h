// What attention over a packed forest walks: tiles of queries with the keys that they see, and keys and values re-laid for
// products.
#pragma once

#include "products.h"

#include <cstring>
#include <vector>

namespace luthier {

constexpr int64_t kQueries = 60;                       // of one tile: a whole number of register tiles
constexpr int64_t kSlack = kTileVectors * kWidth;      // room behind a row for a last, partly used tile

// Consecutive tokens [start, end) that a tile sees; their scores begin at `column`.
struct Piece {
  int64_t start, end, column;
};

struct Tile {
  int64_t start, end, tree, columns;
  std::vector<Piece> pieces;       // in order of position; the last one is the tile's own span up to its end
  std::vector<int64_t> firsts;     // column of the first key that each query sees
  int64_t cost() const { return (end - start) * columns; }
};

struct Forest {
  std::vector<Tile> tiles;
  int64_t trees = 0, widest = 0;

  // Pieces begin and end at multiples of `pack`, so that neighbouring keys can be multiplied together.
  Forest(const Tensor& spans, int64_t window, int64_t pack) {
    const int64_t* numbers = spans.const_data_ptr<int64_t>();
    const int64_t count = spans.size(1);
    const int64_t *start = numbers, *end = numbers + count, *parent = numbers + 2 * count;
    std::vector<int64_t> tree(count);
    for (int64_t span = 0; span < count; ++span) {
      tree[span] = parent[span] < 0 ? trees++ : tree[parent[span]];
      std::vector<int64_t> path{span};
      while (parent[path.back()] >= 0) path.push_back(parent[path.back()]);
      int64_t above = 0;
      for (size_t i = 1; i < path.size(); ++i) above += end[path[i]] - start[path[i]];
      for (int64_t first = start[span]; first < end[span]; first += kQueries) {
        Tile tile{first, std::min(first + kQueries, end[span]), tree[span], 0, {}, {}};
        const int64_t position = above + first - start[span];
        const int64_t low = window > 0 ? std::max<int64_t>(0, position - window + 1) : 0;
        int64_t passed = 0;
        for (size_t i = path.size(); i-- > 0;) {
          const int64_t last = i == 0 ? tile.end : end[path[i]], begin = start[path[i]] + std::max<int64_t>(0, low - passed);
          passed += end[path[i]] - start[path[i]];
          if (begin >= last) continue;
          const int64_t column = tile.columns + begin % pack;
          tile.pieces.push_back({begin, last, column});
          tile.columns = round_up(column + last - begin, pack);
        }
        for (int64_t q = 0; q < tile.end - first; ++q) {
          tile.firsts.push_back(column_of(tile, window > 0 ? std::max<int64_t>(0, position + q - window + 1) - low : 0));
        }
        widest = std::max(widest, tile.columns);
        tiles.push_back(std::move(tile));
      }
    }
  }

  // Column of the key that stands `skip` keys behind the first one.
  static int64_t column_of(const Tile& tile, int64_t skip) {
    for (const Piece& piece : tile.pieces) {
      if (skip < piece.end - piece.start) return piece.column + skip;
      skip -= piece.end - piece.start;
    }
    return tile.columns;
  }
};

// Behind the last key that query `q` of a tile sees.
inline int64_t last_column(const Tile& tile, int64_t q) {
  const Piece& own = tile.pieces.back();
  return own.column + (tile.start - own.start) + q + 1;
}

// ---- layouts of [heads, tokens, features] for the right side of a product, and of a tile for the left

template <class M>
struct Layout {
  std::vector<typename M::Number> numbers;
  int64_t step = 0, head = 0;
  const typename M::Number* of(int64_t h) const { return numbers.data() + h * head; }
};

template <class T>
struct View {
  const T* first;
  int64_t heads, tokens, size, head_step, token_step;
  explicit View(const Tensor& x)
      : first(x.const_data_ptr<T>()), heads(x.size(0)), tokens(x.size(1)), size(x.size(2)), head_step(x.stride(0)),
        token_step(x.stride(1)) {
    TORCH_CHECK(x.stride(2) == 1, "attention: features must lie side by side");
  }
  const T* at(int64_t head, int64_t token) const { return first + head * head_step + token * token_step; }
};

// Numbers k * pack .. of one token as a product reads them; zeros behind the last feature.
template <class M, class T>
inline typename M::Number number_of(const T* token, int64_t k, int64_t size) {
  if constexpr (M::kPack == 1) {
    return M::make(token[k], 0.0f);
  } else if constexpr (std::is_same_v<T, BFloat16>) {
    if (2 * k + 1 == size) return M::make(token[2 * k], 0.0f);
    typename M::Number both;
    std::memcpy(&both, token + 2 * k, sizeof(both));
    return both;
  } else {
    return M::make(token[2 * k], 2 * k + 1 < size ? static_cast<float>(token[2 * k + 1]) : 0.0f);
  }
}

template <class Body>
void blocks_of_tokens(int64_t heads, int64_t tokens, const Body& body) {
  constexpr int64_t kBlock = 64;
  at::parallel_for(0, heads * (round_up(tokens, kBlock) / kBlock), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i / heads * kBlock;
      body(i % heads, first, std::min(first + kBlock, tokens));
    }
  });
}

// Right side with tokens in the lanes: [features / pack, tokens].
template <class M, class T>
Layout<M> tokens_in_lanes(const View<T>& x) {
  Layout<M> out;
  const int64_t depth = round_up(x.size, M::kPack) / M::kPack;
  out.step = round_up(x.tokens, kWidth) + kSlack;
  if (out.step / kWidth % 2 == 0) out.step += kWidth;  // an odd number of cache lines: rows do not share sets
  out.head = depth * out.step;
  out.numbers.assign(x.heads * out.head, M::make(0, 0));
  blocks_of_tokens(x.heads, x.tokens, [&](int64_t h, int64_t first, int64_t last) {
    for (int64_t k = 0; k < depth; ++k) {
      auto* to = out.numbers.data() + h * out.head + k * out.step;
      for (int64_t t = first; t < last; ++t) to[t] = number_of<M>(x.at(h, t), k, x.size);
    }
  });
  return out;
}

// Writes the right side with features in the lanes, [tokens / pack, features], for some tokens of one head.
template <class M, class T>
void features_in_lanes(const View<T>& x, int64_t head, int64_t first, int64_t last, typename M::Number* to, int64_t step) {
  for (int64_t t = first; t < last; t += M::kPack, to += step) {
    const T* even = x.at(head, t);
    const T* odd = M::kPack == 2 && t + 1 < last ? x.at(head, t + 1) : nullptr;
    for (int64_t d = 0; d < x.size; ++d) to[d] = M::make(even[d], odd ? static_cast<float>(odd[d]) : 0.0f);
  }
}

template <class M, class T>
Layout<M> features_in_lanes(const View<T>& x) {
  Layout<M> out;
  out.step = round_up(x.size, kWidth);
  out.head = round_up(x.tokens, M::kPack) / M::kPack * out.step;
  out.numbers.assign(x.heads * out.head, M::make(0, 0));
  blocks_of_tokens(x.heads, x.tokens, [&](int64_t h, int64_t first, int64_t last) {
    features_in_lanes<M>(x, h, first, last, out.numbers.data() + h * out.head + first / M::kPack * out.step, out.step);
  });
  return out;
}

// Left side: [queries, features / pack].
template <class M, class T>
void copy_left(const View<T>& x, int64_t head, const Tile& tile, typename M::Number* to) {
  const int64_t depth = round_up(x.size, M::kPack) / M::kPack;
  for (int64_t t = tile.start; t < tile.end; ++t, to += depth) {
    for (int64_t k = 0; k < depth; ++k) to[k] = number_of<M>(x.at(head, t), k, x.size);
  }
}

}  // namespace luthier
