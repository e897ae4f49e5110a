"""OLMo 2 and 3: norms stand behind attention and MLP, not before."""

from luthier.core.anatomy import add_family
from luthier.core.protocols import Family
from luthier.families import SPLIT

add_family(
    Family(
        model_types=("olmo2",),
        models="OLMo 2",
        templates=("default", "olmo"),
        lora_targets=SPLIT,
        gguf="olmo2",
        quirks="Queries and keys are normed over all heads together.",
    )
)
add_family(
    Family(
        model_types=("olmo3",),
        models="OLMo 3",
        templates=("default", "olmo"),
        lora_targets=SPLIT,
        gguf="olmo2",
        quirks="As OLMo 2, with a sliding window in three of four layers.",
    )
)
