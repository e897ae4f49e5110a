"""GPT-2 and GPT-NeoX (Pythia)."""

from luthier.core.anatomy import add_family
from luthier.core.protocols import Family

add_family(
    Family(
        model_types=("gpt2",),
        models="GPT-2",
        templates=("default", "alpaca"),
        lora_targets=("c_attn", "c_proj", "c_fc"),
        layers="h",
        attention="attn",
        gguf="gpt2",
        kernels=("layer_norm",),
        quirks="Linear layers are stored transposed (Conv1D); positions are learned and end at 1024.",
    )
)
add_family(
    Family(
        model_types=("gpt_neox",),
        models="GPT-NeoX, Pythia",
        templates=("default", "alpaca"),
        lora_targets=("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"),
        attention="attention",
        gguf="gptneox",
        kernels=("layer_norm", "lora_linear"),
        quirks="Attention and MLP run side by side; a quarter of a head rotates.",
    )
)
