"""StarCoder 2."""

from luthier.core.anatomy import add_family
from luthier.core.protocols import Family

add_family(
    Family(
        model_types=("starcoder2",),
        models="StarCoder 2",
        templates=("default", "alpaca", "starchat"),
        lora_targets=("q_proj", "k_proj", "v_proj", "o_proj", "c_fc", "c_proj"),
        gguf="starcoder2",
        kernels=("layer_norm", "attention", "lora_linear"),
        quirks="LayerNorm, biases everywhere, an MLP without a gate.",
    )
)
