"""GLM 4 in its three forms; ChatGLM 2 and 3 and GLM-4 in their first layout become `glm` while loading."""

from luthier.core.anatomy import add_family
from luthier.core.protocols import Family
from luthier.families import EXPERTS, SPLIT

add_family(
    Family(
        model_types=("glm",),
        models="GLM-4 9B and Edge, ChatGLM 2 and 3",
        templates=("default", "glm4", "glmz1", "chatglm3", "chatglm2"),
        lora_targets=("q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj"),
        gguf="chatglm",
        kernels=("rms_norm", "lora_linear"),
        quirks="Half of a head rotates, neighbours in pairs.",
    )
)
add_family(
    Family(
        model_types=("glm4",),
        models="GLM-4 0414, GLM-Z1",
        templates=("default", "glm4", "glmz1"),
        lora_targets=("q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj"),
        gguf="glm4",
        kernels=("rms_norm", "lora_linear"),
        quirks="As glm, with norms behind attention and MLP too.",
    )
)
add_family(
    Family(
        model_types=("glm4_moe",),
        models="GLM 4.5 to 4.7",
        templates=("default", "glm4_moe", "glm4_7"),
        lora_targets=SPLIT,
        experts=EXPERTS,
        router="mlp.gate",
        gguf="glm4moe",
        quirks="Experts are balanced by a bias of the router, not by a loss; the first layers are dense.",
    )
)
