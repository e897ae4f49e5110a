// Products of large float32 matrices. On AVX512 processors of AMD they run at more than twice the speed of torch's, whose
// library keeps to shorter vectors there.

#include "bindings.h"
#include "products.h"

namespace {

using namespace luthier;

constexpr int64_t kPanelColumns = kTileVectors * kWidth;
constexpr int64_t kRowBlock = 32 * kTileRows;     // rows of x that stay in the second-level cache
constexpr int64_t kPackedNumbers = 2 << 20;       // of w that are re-laid at a time

// Columns [first, first + panels * kPanelColumns) of w as [panels, depth, kPanelColumns], zeros behind the last one.
void pack_columns(const float* w, int64_t depth, int64_t columns, bool transposed, int64_t first, int64_t panels, float* to) {
  at::parallel_for(0, panels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) {
      const int64_t column = first + panel * kPanelColumns, width = std::min(kPanelColumns, columns - column);
      float* into = to + panel * depth * kPanelColumns;
      if (width < kPanelColumns) std::fill(into, into + depth * kPanelColumns, 0.0f);
      if (transposed) {
        for (int64_t k = 0; k < depth; k += kWidth) {
          const int64_t here = std::min(kWidth, depth - k);
          for (int64_t j = 0; j < width; j += kWidth) {
            at::vec::transpose_mxn<float>(w + (column + j) * depth + k, depth, into + k * kPanelColumns + j, kPanelColumns,
                                          static_cast<int>(std::min(kWidth, width - j)), static_cast<int>(here));
          }
        }
      } else {
        for (int64_t k = 0; k < depth; ++k) {
          std::copy(w + k * columns + column, w + k * columns + column + width, into + k * kPanelColumns);
        }
      }
    }
  });
}

// Some rows of x by one packed panel.
void panel_product(const float* x, int64_t rows, int64_t depth, const float* panel, float* y, int64_t columns, int64_t width) {
  const Left<Floats> left{x, depth, 1};
  if (width == kPanelColumns) {
    product<Floats>(rows, kPanelColumns, left, panel, kPanelColumns, depth, y, columns, false);
    return;
  }
  float part[kRowBlock * kPanelColumns];
  product<Floats>(rows, kPanelColumns, left, panel, kPanelColumns, depth, part, kPanelColumns, false);
  for (int64_t r = 0; r < rows; ++r) std::copy(part + r * kPanelColumns, part + r * kPanelColumns + width, y + r * columns);
}

// x [M, K] by w [K, N], or by the transpose of w [N, K]: [M, N].
Tensor matmul(const Tensor& x, const Tensor& w, bool transposed) {
  const int64_t rows = x.size(0), depth = x.size(1), columns = w.size(transposed ? 0 : 1);
  TORCH_CHECK(x.scalar_type() == at::kFloat && w.scalar_type() == at::kFloat, "matmul: expected float32");
  TORCH_CHECK(x.is_contiguous() && w.is_contiguous() && w.size(transposed ? 1 : 0) == depth, "matmul: shapes do not fit");
  Tensor y = at::empty({rows, columns}, x.options());
  const int64_t panels = round_up(columns, kPanelColumns) / kPanelColumns;
  const int64_t at_a_time = std::max<int64_t>(1, std::min(panels, kPackedNumbers / std::max<int64_t>(1, depth * kPanelColumns)));
  Tensor packed = at::empty({at_a_time * depth * kPanelColumns}, x.options());
  const float *from = x.const_data_ptr<float>(), *numbers = packed.const_data_ptr<float>();
  float* to = y.data_ptr<float>();
  for (int64_t first = 0; first < panels; first += at_a_time) {
    const int64_t here = std::min(at_a_time, panels - first);
    pack_columns(w.const_data_ptr<float>(), depth, columns, transposed, first * kPanelColumns, here, packed.data_ptr<float>());
    at::parallel_for(0, round_up(rows, kTileRows) / kTileRows, 1, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin * kTileRows; row < std::min(rows, end * kTileRows); row += kRowBlock) {
        const int64_t count = std::min({kRowBlock, end * kTileRows - row, rows - row});
        for (int64_t panel = 0; panel < here; ++panel) {
          const int64_t column = (first + panel) * kPanelColumns;
          panel_product(from + row * depth, count, depth, numbers + panel * depth * kPanelColumns, to + row * columns + column,
                        columns, std::min(kPanelColumns, columns - column));
        }
      }
    });
  }
  return y;
}

}  // namespace

void luthier::bind_matmul(pybind11::module_& m) { m.def("matmul", &matmul); }
