// What each source file adds to the module.
#pragma once

#include <torch/extension.h>

namespace luthier {

void bind_attention(pybind11::module_& m);
void bind_fused(pybind11::module_& m);
void bind_decoder(pybind11::module_& m);
void bind_matmul(pybind11::module_& m);
void bind_quantized(pybind11::module_& m);
void bind_scores(pybind11::module_& m);

}  // namespace luthier
