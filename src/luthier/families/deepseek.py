"""DeepSeek V2, V3 and R1: multi-head latent attention (arXiv:2405.04434) and fine-grained experts."""

from luthier.core.anatomy import add_family
from luthier.core.protocols import Family
from luthier.families import EXPERTS, LATENT

add_family(
    Family(
        model_types=("deepseek_v2",),
        models="DeepSeek V2, V2 Lite, V2.5",
        templates=("default", "deepseek3", "deepseek"),
        lora_targets=LATENT,
        experts=EXPERTS,
        router="mlp.gate",
        gguf="deepseek2",
        kernels=("rms_norm", "gated_mlp", "lora_linear"),
        quirks=(
            "Keys and values come from one small vector a token; values are narrower than keys; "
            "the first layers are dense."
        ),
    )
)
add_family(
    Family(
        model_types=("deepseek_v3",),
        models="DeepSeek V3, R1, Moonlight",
        templates=("default", "deepseek3", "deepseekr1", "moonlight"),
        lora_targets=LATENT,
        experts=EXPERTS,
        router="mlp.gate",
        gguf="deepseek2",
        kernels=("rms_norm", "gated_mlp", "lora_linear"),
        quirks="As V2; experts are balanced by a bias of the router, not by a loss (arXiv:2412.19437).",
    )
)
