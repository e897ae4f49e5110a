"""Granite 3, dense and with experts."""

from luthier.core.anatomy import add_family
from luthier.core.protocols import Family
from luthier.families import SPLIT

add_family(
    Family(
        model_types=("granite",),
        models="Granite 3, MiniCPM 1 to 4",
        templates=("default", "granite3", "cpm", "cpm4"),
        lora_targets=SPLIT,
        gguf="granite",
        quirks="Embeddings, residuals, scores and logits have multipliers.",
    )
)
add_family(
    Family(
        model_types=("granitemoe",),
        models="Granite 3 MoE",
        templates=("default", "granite3"),
        lora_targets=("q_proj", "k_proj", "v_proj", "o_proj"),
        mlp="block_sparse_moe",
        experts=("block_sparse_moe.experts.gate_up_proj", "block_sparse_moe.experts.down_proj"),
        router="block_sparse_moe.router",
        balance_loss=True,
        gguf="granitemoe",
        kernels=("rms_norm", "attention", "lora_linear"),
        quirks="Multipliers as in granite; 32 to 40 small experts.",
    )
)
