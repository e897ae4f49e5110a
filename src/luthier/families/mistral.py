"""Mistral and Ministral with dense layers, and Mixtral."""

from luthier.core.anatomy import add_family
from luthier.core.protocols import Family
from luthier.families import EXPERTS, OURS, SPLIT

add_family(
    Family(
        model_types=("mistral", "ministral"),
        models="Mistral 7B, Nemo, Small, Ministral 2410, Zephyr",
        templates=("default", "mistral", "mistral_small", "ministral", "zephyr", "openchat"),
        lora_targets=SPLIT,
        gguf="llama",
        kernels=OURS,
    )
)
add_family(
    Family(
        model_types=("mixtral",),
        models="Mixtral 8x7B and 8x22B",
        templates=("default", "mistral"),
        lora_targets=("q_proj", "k_proj", "v_proj", "o_proj"),
        experts=EXPERTS,
        router="mlp.gate",
        balance_loss=True,
        gguf="llama",
        kernels=("rms_norm", "attention", "lora_linear"),
        quirks="8 experts a layer, 2 for each token.",
    )
)
add_family(
    Family(
        model_types=("ministral3",),
        models="Ministral 3, its text half",
        templates=("default", "ministral3", "mistral"),
        lora_targets=SPLIT,
        gguf="mistral3",
        kernels=("rms_norm", "gated_mlp", "lora_linear"),
        quirks="Queries grow with the position.",
    )
)
