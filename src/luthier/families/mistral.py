"""Mistral 7B and its descendants with dense layers."""

from luthier.core.anatomy import add_family
from luthier.core.protocols import Family

add_family(
    Family(
        model_types=("mistral",),
        templates=("mistral",),
        lora_targets=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    )
)
