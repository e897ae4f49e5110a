"""gpt-oss 20B and 120B."""

from luthier.core.anatomy import add_family
from luthier.core.protocols import Family
from luthier.families import EXPERTS

add_family(
    Family(
        model_types=("gpt_oss",),
        models="gpt-oss 20B and 120B",
        templates=("default", "gpt_oss"),
        lora_targets=("q_proj", "k_proj", "v_proj", "o_proj"),
        experts=EXPERTS,
        router="mlp.router",
        balance_loss=True,
        gguf="gpt-oss",
        kernels=("rms_norm", "lora_linear"),
        quirks=(
            "Each head has a learned sink that takes part of the attention; "
            "every second layer has a window of 128; experts have biases."
        ),
    )
)
