"""Which tensor of a Hugging Face file becomes which tensor of a GGUF file, by pattern.

Names are matched without the prefixes of the decoder (`model.`). Groups are put into the target's name; a group called
`expert` is the place in a stack instead. What a pattern says twice is said once: `_layer` makes the rules of a block.
"""

from __future__ import annotations

from luthier.export.gguf.cuts import (
    Cut,
    flat,
    gate_half,
    key_half,
    key_in_pairs,
    plus_one,
    query_in_pairs,
    up_half,
    value_half,
    whole,
)

Rules = dict[str, dict[str, Cut]]
"""Pattern of a name -> names that the tensor becomes, and how."""


def _layer(names: dict[str, str], **cuts: Cut) -> Rules:
    """Return rules of a block: weight and bias of `there` become weight and bias of `here`."""
    return {
        rf"layers\.(\d+)\.{there}\.(weight|bias)": {f"blk.{{0}}.{here}.{{1}}": cuts.get(here, whole)}
        for there, here in names.items()
    }


def _experts(block: str, gate: str, up: str, down: str) -> Rules:
    """Return rules of experts that lie one by one, or fused as transformers holds them in memory."""
    single = {
        rf"layers\.(\d+)\.{block}\.experts\.(?P<expert>\d+)\.{there}\.weight": {f"blk.{{0}}.{here}.weight": whole}
        for there, here in ((gate, "ffn_gate_exps"), (up, "ffn_up_exps"), (down, "ffn_down_exps"))
    }
    return {**single, **_fused_experts(rf"{block}\.experts\.gate_up_proj", rf"{block}\.experts\.down_proj")}


def _fused_experts(gate_up: str, down: str) -> Rules:
    return {
        rf"layers\.(\d+)\.{gate_up}": {
            "blk.{0}.ffn_gate_exps.weight": gate_half,
            "blk.{0}.ffn_up_exps.weight": up_half,
        },
        rf"layers\.(\d+)\.{down}": {"blk.{0}.ffn_down_exps.weight": whole},
    }


_OUTSIDE: Rules = {
    r"embed_tokens\.weight": {"token_embd.weight": whole},
    r"norm\.(weight|bias)": {"output_norm.{0}": whole},
    r"lm_head\.weight": {"output.weight": whole},
}
_ATTENTION = {
    r"self_attn\.q_proj": "attn_q",
    r"self_attn\.k_proj": "attn_k",
    r"self_attn\.v_proj": "attn_v",
    r"self_attn\.o_proj": "attn_output",
    r"self_attn\.q_norm": "attn_q_norm",
    r"self_attn\.k_norm": "attn_k_norm",
}
_GATED = {r"mlp\.gate_proj": "ffn_gate", r"mlp\.up_proj": "ffn_up", r"mlp\.down_proj": "ffn_down"}
_PRE_NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
_PAIRS: dict[str, Cut] = {"attn_q": query_in_pairs, "attn_k": key_in_pairs}

HALVES: Rules = {**_OUTSIDE, **_layer({**_ATTENTION, **_GATED, **_PRE_NORMS})}
"""Llama's names, rotating halves of a head: Qwen."""
PAIRS: Rules = {**_OUTSIDE, **_layer({**_ATTENTION, **_GATED, **_PRE_NORMS}, **_PAIRS)}
"""Llama's names, and rotary embedding of neighbours: Llama and most that are built as it is."""
MIXTRAL: Rules = {
    **PAIRS,
    **_layer({r"(?:mlp|block_sparse_moe)\.gate": "ffn_gate_inp"}),
    **_experts(r"(?:mlp|block_sparse_moe)", "w1", "w3", "w2"),
}
_ROUTED: Rules = {
    **_layer({r"mlp\.gate": "ffn_gate_inp"}),
    **_experts("mlp", "gate_proj", "up_proj", "down_proj"),
}
QWEN_MOE: Rules = {
    **HALVES,
    **_ROUTED,
    r"layers\.(\d+)\.mlp\.shared_expert_gate\.weight": {"blk.{0}.ffn_gate_inp_shexp.weight": flat},
    **_layer(
        {
            r"mlp\.shared_expert\.gate_proj": "ffn_gate_shexp",
            r"mlp\.shared_expert\.up_proj": "ffn_up_shexp",
            r"mlp\.shared_expert\.down_proj": "ffn_down_shexp",
        }
    ),
}
GRANITE_MOE: Rules = {
    **PAIRS,
    **_layer({r"block_sparse_moe\.router(?:\.layer)?": "ffn_gate_inp"}),
    **_fused_experts(r"block_sparse_moe\.input_linear\.weight", r"block_sparse_moe\.output_linear\.weight"),
    **_fused_experts(r"block_sparse_moe\.experts\.gate_up_proj", r"block_sparse_moe\.experts\.down_proj"),
}
_GEMMA_NORMS = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
GEMMA: Rules = {
    **_OUTSIDE,
    r"norm\.(weight|bias)": {"output_norm.{0}": plus_one},
    **_layer(
        {**_ATTENTION, **_GATED, **_GEMMA_NORMS},
        **dict.fromkeys([*_GEMMA_NORMS.values(), "attn_q_norm", "attn_k_norm"], plus_one),
    ),
}
PHI3: Rules = {
    **_OUTSIDE,
    **_layer(
        {
            r"self_attn\.qkv_proj": "attn_qkv",
            r"self_attn\.o_proj": "attn_output",
            r"mlp\.gate_up_proj": "ffn_up",
            r"mlp\.down_proj": "ffn_down",
            **_PRE_NORMS,
        }
    ),
}
GLM4: Rules = {
    **_OUTSIDE,
    **_layer(
        {
            **_ATTENTION,
            r"mlp\.gate_up_proj": "ffn_up",
            r"mlp\.down_proj": "ffn_down",
            **_PRE_NORMS,
            "post_self_attn_layernorm": "post_attention_norm",
            "post_mlp_layernorm": "post_ffw_norm",
        }
    ),
}
OLMO2: Rules = {
    **_OUTSIDE,
    **_layer(
        {
            **_ATTENTION,
            **_GATED,
            "post_attention_layernorm": "post_attention_norm",
            "post_feedforward_layernorm": "post_ffw_norm",
        }
    ),
}
STARCODER2: Rules = {
    **_OUTSIDE,
    **_layer({**_ATTENTION, **_PRE_NORMS, r"mlp\.c_fc": "ffn_up", r"mlp\.c_proj": "ffn_down"}),
}
DEEPSEEK: Rules = {
    **_OUTSIDE,
    **_ROUTED,
    **_layer(
        {
            **_GATED,
            **_PRE_NORMS,
            r"self_attn\.q_proj": "attn_q",
            r"self_attn\.q_a_proj": "attn_q_a",
            r"self_attn\.q_a_layernorm": "attn_q_a_norm",
            r"self_attn\.q_b_proj": "attn_q_b",
            r"self_attn\.kv_a_proj_with_mqa": "attn_kv_a_mqa",
            r"self_attn\.kv_a_layernorm": "attn_kv_a_norm",
            r"self_attn\.o_proj": "attn_output",
            r"mlp\.shared_experts\.gate_proj": "ffn_gate_shexp",
            r"mlp\.shared_experts\.up_proj": "ffn_up_shexp",
            r"mlp\.shared_experts\.down_proj": "ffn_down_shexp",
        }
    ),
    r"layers\.(\d+)\.self_attn\.kv_b_proj\.weight": {
        "blk.{0}.attn_k_b.weight": key_half,
        "blk.{0}.attn_v_b.weight": value_half,
    },
    r"layers\.(\d+)\.mlp\.gate\.e_score_correction_bias": {"blk.{0}.exp_probs_b.bias": whole},
}
