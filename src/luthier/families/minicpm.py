"""MiniCPM 3; MiniCPM 1, 2 and 4 become `granite` while loading."""

from luthier.core.anatomy import add_family
from luthier.core.protocols import Family
from luthier.families import LATENT

add_family(
    Family(
        model_types=("minicpm3",),
        models="MiniCPM 3",
        templates=("default", "cpm4", "cpm", "chatml"),
        lora_targets=LATENT[1:],
        gguf="minicpm3",
        kernels=("rms_norm", "gated_mlp", "lora_linear"),
        quirks="Latent attention as in DeepSeek V2; embeddings, residuals and logits have multipliers.",
    )
)
