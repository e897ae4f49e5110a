"""Phi 2, 3, 3.5 and 4, dense and with experts."""

from luthier.core.anatomy import add_family
from luthier.core.protocols import Family
from luthier.families import EXPERTS

add_family(
    Family(
        model_types=("phi",),
        models="Phi 1, 1.5 and 2",
        templates=("default", "phi"),
        lora_targets=("q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"),
        gguf="phi2",
        kernels=("layer_norm", "attention", "lora_linear"),
        quirks="Attention and MLP run side by side; only part of a head rotates; the head has a bias.",
    )
)
add_family(
    Family(
        model_types=("phi3",),
        models="Phi 3, 3.5 and 4",
        templates=("default", "phi", "phi_small", "phi4", "phi4_mini"),
        lora_targets=("qkv_proj", "o_proj", "gate_up_proj", "down_proj"),
        gguf="phi3",
        kernels=("rms_norm", "lora_linear", "decoder"),
        quirks="Query, key and value share one linear layer, and so do gate and up.",
    )
)
add_family(
    Family(
        model_types=("phimoe",),
        models="Phi 3.5 MoE",
        templates=("default", "phi"),
        lora_targets=("q_proj", "k_proj", "v_proj", "o_proj"),
        experts=EXPERTS,
        router="mlp.router",
        balance_loss=True,
        gguf="phimoe",
        kernels=("layer_norm", "attention", "lora_linear"),
        quirks="16 experts chosen by SparseMixer, which adds noise in training; the router is inside a layer's MLP.",
    )
)
