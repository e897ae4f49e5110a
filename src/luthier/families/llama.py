"""Llama 1 to 3 and what shares its code (SmolLM, Yi, R1 distillations, many others); Llama 4 text."""

from luthier.core.anatomy import add_family
from luthier.core.protocols import Family
from luthier.families import OURS, SPLIT

add_family(
    Family(
        model_types=("llama",),
        models="Llama 1 to 3.3, Yi, SmolLM 1 and 2, DeepSeek LLM, R1 distillations, InternLM 1 and 2, Baichuan 7B",
        templates=(
            "default",
            "llama3",
            "llama2",
            "llama2_zh",
            "smollm",
            "smollm2",
            "yi",
            "vicuna",
            "alpaca",
            "deepseek",
            "deepseekr1",
            "deepseekcoder",
            "chatml",
            "zephyr",
            "solar",
            "openchat",
            "intern2",
            "baichuan",
            "baichuan2",
        ),
        lora_targets=SPLIT,
        gguf="llama",
        kernels=OURS,
    )
)
add_family(
    Family(
        model_types=("llama4_text", "llama4"),
        models="Llama 4 Scout and Maverick, their text half",
        templates=("default", "llama4"),
        lora_targets=SPLIT,
        mlp="feed_forward",
        experts=("feed_forward.experts.gate_up_proj", "feed_forward.experts.down_proj"),
        router="feed_forward.router",
        gguf="llama4",
        packing="alone",
        kernels=("rms_norm",),
        quirks=(
            "Attention in chunks of absolute positions and queries that grow with the position: segments of "
            "a batch are computed one by one."
        ),
    )
)
