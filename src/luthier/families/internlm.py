"""InternLM 3; InternLM 2 becomes `llama` while loading."""

from luthier.core.anatomy import add_family
from luthier.core.protocols import Family
from luthier.families import SPLIT

add_family(
    Family(
        model_types=("internlm3",),
        models="InternLM 3",
        templates=("default", "intern2"),
        lora_targets=SPLIT,
        gguf="llama",
        quirks="Computed by transformers' Llama.",
    )
)
