"""Llama 1 to 3, and models that share its code: SmolLM, Yi, many others."""

from luthier.core.anatomy import add_family
from luthier.core.protocols import Family

add_family(
    Family(
        model_types=("llama",),
        templates=(
            "default",
            "llama2",
            "llama3",
            "smollm",
            "smollm2",
            "yi",
        ),
        lora_targets=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    )
)
