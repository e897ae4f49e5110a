// Low-rank additions to the products of a decoder, for the rows that ask for them.

#pragma once

#include "vectors.h"

#include <array>
#include <utility>
#include <vector>

namespace luthier {

enum Product { kQkv, kOut, kGateUp, kDown, kProducts };

// to += from @ down @ up; [inputs, rank] and [rank, outputs], float, undefined where an adapter leaves the product alone.
struct LowRank {
  Tensor down, up;
};

using Adapter = std::vector<std::array<LowRank, kProducts>>;  // by layer

// Number of an adapter and the rows that it works on, int64; undefined: every row.
using Turns = std::vector<std::pair<int64_t, std::optional<Tensor>>>;

class Adapters {
 public:
  // Of each layer the pairs by product; returns the number of the adapter.
  int64_t add(const std::vector<std::vector<std::pair<std::optional<Tensor>, std::optional<Tensor>>>>& layers) {
    Adapter made;
    for (const auto& products : layers) {
      TORCH_CHECK(products.size() == kProducts, "adapter: expected ", kProducts, " products, got ", products.size());
      auto& row = made.emplace_back();
      for (size_t i = 0; i < products.size(); ++i) {
        if (!products[i].first.has_value()) continue;
        row[i] = {products[i].first->to(at::kFloat).contiguous(), products[i].second->to(at::kFloat).contiguous()};
      }
    }
    all_.push_back(std::move(made));
    return static_cast<int64_t>(all_.size()) - 1;
  }

  void apply(const Turns& turns, size_t layer, Product product, const Tensor& from, Tensor& to) const {
    for (const auto& [number, rows] : turns) {
      const LowRank& part = all_.at(number).at(layer)[product];
      if (!part.down.defined()) continue;
      if (!rows.has_value()) {
        to.addmm_(from.mm(part.down), part.up);
      } else {
        to.index_add_(0, *rows, from.index_select(0, *rows).mm(part.down).mm(part.up));
      }
    }
  }

 private:
  std::vector<Adapter> all_;
};

}  // namespace luthier
