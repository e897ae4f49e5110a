"""Phi 3 and 4: query, key and value share one linear layer, and so do gate and up."""

from luthier.core.anatomy import add_family
from luthier.core.protocols import Family

add_family(
    Family(
        model_types=("phi3",),
        templates=(
            "phi",
            "phi4",
        ),
        kernels=("rms_norm", "layer_norm", "lora_linear", "decoder"),
        lora_targets=("qkv_proj", "o_proj", "gate_up_proj", "down_proj"),
    )
)
