"""Gemma 1, 2 and 3: norms multiply by one plus their weight."""

from luthier.core.anatomy import add_family
from luthier.core.protocols import Family
from luthier.families import OURS, SPLIT

add_family(
    Family(
        model_types=("gemma",),
        models="Gemma 1",
        templates=("default", "gemma"),
        lora_targets=SPLIT,
        gguf="gemma",
        norm_offset=1.0,
        kernels=OURS,
        quirks="Norms multiply by one plus their weight; token embeddings are scaled.",
    )
)
add_family(
    Family(
        model_types=("gemma2",),
        models="Gemma 2",
        templates=("default", "gemma2", "gemma"),
        lora_targets=SPLIT,
        gguf="gemma2",
        norm_offset=1.0,
        kernels=OURS,
        quirks=(
            "Soft-capped scores and logits; every second layer has a sliding window; "
            "norms also behind attention and MLP."
        ),
    )
)
add_family(
    Family(
        model_types=("gemma3_text",),
        models="Gemma 3; of the larger ones the text half",
        templates=("default", "gemma3", "gemma"),
        lora_targets=SPLIT,
        gguf="gemma3",
        norm_offset=1.0,
        kernels=OURS,
        quirks="Five layers with a sliding window and rotary angles of their own for one without.",
    )
)
