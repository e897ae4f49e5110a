"""Qwen 1.5, 2, 2.5 and 3, dense and with experts; R1 distillations."""

from luthier.core.anatomy import add_family
from luthier.core.protocols import Family
from luthier.families import EXPERTS, OURS, SPLIT

add_family(
    Family(
        model_types=("qwen2",),
        models="Qwen 1.5, 2 and 2.5, QwQ, R1 distillations",
        templates=("default", "qwen", "deepseekr1", "chatml", "deepseek3"),
        lora_targets=SPLIT,
        gguf="qwen2",
        kernels=OURS,
        quirks="Biases on queries, keys and values.",
    )
)
add_family(
    Family(
        model_types=("qwen3",),
        models="Qwen 3",
        templates=("default", "qwen3", "qwen3_nothink"),
        lora_targets=SPLIT,
        gguf="qwen3",
        kernels=OURS,
        quirks="Queries and keys are normed head by head.",
    )
)
add_family(
    Family(
        model_types=("qwen2_moe",),
        models="Qwen 1.5 and 2 MoE",
        templates=("default", "qwen"),
        lora_targets=SPLIT,
        experts=EXPERTS,
        router="mlp.gate",
        balance_loss=True,
        gguf="qwen2moe",
        quirks="A shared expert behind a gate of its own beside the others.",
    )
)
add_family(
    Family(
        model_types=("qwen3_moe",),
        models="Qwen 3 MoE",
        templates=("default", "qwen3", "qwen3_nothink"),
        lora_targets=SPLIT,
        experts=EXPERTS,
        router="mlp.gate",
        balance_loss=True,
        gguf="qwen3moe",
        quirks="128 experts a layer in the published models, 8 for each token.",
    )
)
