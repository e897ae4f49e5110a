"""Facts about architectures, one file a family."""

SPLIT = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Linear layers of Llama and all that kept its names."""
LATENT = (
    *("q_proj", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"),
    *("gate_proj", "up_proj", "down_proj"),
)
"""Linear layers with multi-head latent attention (arXiv:2405.04434)."""
EXPERTS = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")
"""Where transformers keeps the weights of all experts of a layer."""
OURS = ("rms_norm", "gated_mlp", "attention", "lora_linear", "decoder")
"""Kernels for what is built as Llama is."""
