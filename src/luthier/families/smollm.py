"""SmolLM 3: Llama without rotary embedding in every fourth layer."""

from luthier.core.anatomy import add_family
from luthier.core.protocols import Family
from luthier.families import SPLIT

add_family(
    Family(
        model_types=("smollm3",),
        models="SmolLM 3",
        templates=("default", "chatml", "smollm2"),
        lora_targets=SPLIT,
        gguf="smollm3",
        quirks="Every fourth layer has no rotary embedding.",
    )
)
