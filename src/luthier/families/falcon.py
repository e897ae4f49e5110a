"""Falcon 7B, 40B and 180B; RW-1B with ALiBi."""

from luthier.core.anatomy import add_family
from luthier.core.protocols import Family

add_family(
    Family(
        model_types=("falcon",),
        models="Falcon 7B, 40B, 180B and RW",
        templates=("default", "falcon"),
        lora_targets=("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"),
        layers="h",
        attention="self_attention",
        gguf="falcon",
        packing="mask",
        kernels=("layer_norm",),
        quirks=(
            "Attention code of its own, so packed rows go through a dense mask; "
            "with ALiBi, segments are computed one by one."
        ),
    )
)
