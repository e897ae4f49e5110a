"""Qwen 2, 2.5 and 3."""

from luthier.core.anatomy import add_family
from luthier.core.protocols import Family

add_family(
    Family(
        model_types=("qwen2", "qwen3"),
        templates={"qwen": "chatml", "qwen3": None, "qwen3_nothink": None},
        lora_targets=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    )
)
