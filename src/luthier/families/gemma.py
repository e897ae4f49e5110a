"""Gemma 1, 2 and 3: norms multiply by one plus their weight."""

from luthier.core.anatomy import add_family
from luthier.core.protocols import Family

add_family(
    Family(
        model_types=("gemma", "gemma2", "gemma3_text"),
        templates=(
            "gemma",
            "gemma2",
            "gemma3",
        ),
        lora_targets=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        norm_offset=1.0,
    )
)
