"""Command R, Command R7B and Aya."""

from luthier.core.anatomy import add_family
from luthier.core.protocols import Family
from luthier.families import SPLIT

add_family(
    Family(
        model_types=("cohere",),
        models="Command R, Aya 23 and Expanse",
        templates=("default", "cohere"),
        lora_targets=SPLIT,
        gguf="command-r",
        kernels=("gated_mlp", "lora_linear"),
        quirks="Attention and MLP run side by side; neighbours rotate in pairs; logits are scaled.",
    )
)
add_family(
    Family(
        model_types=("cohere2",),
        models="Command R7B and A",
        templates=("default", "cohere"),
        lora_targets=SPLIT,
        gguf="cohere2",
        kernels=("gated_mlp", "lora_linear"),
        quirks="As cohere; three layers with a window and rotary embedding for one with neither.",
    )
)
