#include "bindings.h"

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  luthier::bind_attention(m);
  luthier::bind_fused(m);
  luthier::bind_decoder(m);
  luthier::bind_matmul(m);
  luthier::bind_quantized(m);
  luthier::bind_scores(m);
}
