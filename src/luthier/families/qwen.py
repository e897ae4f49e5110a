"""Qwen 2, 2.5 and 3."""

from luthier.core.anatomy import add_family
from luthier.core.protocols import Family

add_family(
    Family(
        model_types=("qwen2", "qwen3"),
        templates=(
            "qwen",
            "qwen3",
            "qwen3_nothink",
        ),
        lora_targets=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    )
)
