"""Architectures with a mapping to GGUF: name in llama.cpp, tensors, settings, and forms that it cannot compute."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from luthier.export.gguf import rules
from luthier.export.gguf.cuts import head_size_of, heads_of
from luthier.export.gguf.rope import Metadata, parameters, rope_obstacle

SCALINGS = ("linear", "yarn")
"""Kinds of rope scaling that most architectures have there."""
FACTORS = (*SCALINGS, "llama3", "longrope")
"""And those of architectures that read tensors of factors."""


def _nothing(facts: Any) -> Metadata:
    return {}


def _none(facts: Any) -> str | None:
    return None


@dataclass(frozen=True, slots=True)
class Architecture:
    """How the models of one `model_type` become GGUF."""

    name: str
    """Its name in llama.cpp."""
    rules: rules.Rules
    more: Callable[[Any], Metadata] = _nothing
    """Settings beyond those that all have, below `<name>.`."""
    unlike: Callable[[Any], str | None] = _none
    """Returns why llama.cpp does not compute this form of it, or None."""
    scalings: tuple[str, ...] = SCALINGS
    windows: bool = False
    """Whether llama.cpp computes its sliding window; else the context that the file names ends with the window."""
    epsilon: str = "attention.layer_norm_rms_epsilon"
    activation: str = "silu"
    """What llama.cpp computes between the linear layers of an MLP."""
    adapters: bool = True
    """Whether llama.cpp puts adapters on all of its linear layers."""


# ---- settings


def _experts(facts: Any) -> Metadata:
    return {"expert_count": _count(facts), "expert_used_count": facts.num_experts_per_tok}


def _count(facts: Any) -> int:
    return next(
        getattr(facts, key)
        for key in ("n_routed_experts", "num_local_experts", "num_experts")
        if getattr(facts, key, None)
    )


def _narrow_experts(facts: Any) -> Metadata:
    return {**_experts(facts), "expert_feed_forward_length": facts.moe_intermediate_size}


def _qwen2_moe(facts: Any) -> Metadata:
    return {
        **_narrow_experts(facts),
        "expert_shared_feed_forward_length": facts.shared_expert_intermediate_size,
    }


def _gemma2(facts: Any) -> Metadata:
    return {
        "attention.sliding_window": facts.sliding_window,
        "attn_logit_softcapping": float(facts.attn_logit_softcapping),
        "final_logit_softcapping": float(facts.final_logit_softcapping),
    }


def _gemma3(facts: Any) -> Metadata:
    return {
        "attention.sliding_window": facts.sliding_window,
        "rope.freq_base_swa": float(parameters(facts, "sliding_attention")["rope_theta"]),
    }


def _granite(facts: Any) -> Metadata:
    return {
        "embedding_scale": float(facts.embedding_multiplier),
        "residual_scale": float(facts.residual_multiplier),
        "attention.scale": float(facts.attention_multiplier),
        "logit_scale": float(facts.logits_scaling),
    }


def _granite_moe(facts: Any) -> Metadata:
    return {**_granite(facts), **_experts(facts)}


def _deepseek(facts: Any) -> Metadata:
    """Keys and values as one latent head: that is what llama.cpp keeps in its cache."""
    latent, rotary = facts.kv_lora_rank, facts.qk_rope_head_dim
    low_rank = {"attention.q_lora_rank": facts.q_lora_rank} if facts.q_lora_rank else {}
    third = facts.model_type == "deepseek_v3"
    grouped = third and facts.n_group > 1
    groups = {"expert_group_count": facts.n_group, "expert_group_used_count": facts.topk_group} if grouped else {}
    return {
        **_narrow_experts(facts),
        **low_rank,
        **groups,
        "attention.head_count_kv": 1,
        "attention.kv_lora_rank": latent,
        "attention.key_length": latent + rotary,
        "attention.value_length": latent,
        "attention.key_length_mla": facts.qk_nope_head_dim + rotary,
        "attention.value_length_mla": facts.v_head_dim,
        "leading_dense_block_count": facts.first_k_dense_replace,
        "expert_shared_count": facts.n_shared_experts,
        "expert_weights_scale": float(facts.routed_scaling_factor),
        "expert_weights_norm": bool(third and facts.norm_topk_prob),
        "expert_gating_func": 2 if third else 1,
    }


# ---- forms that are not computed


def _layers_turn(facts: Any, period: int) -> str | None:
    """Every `period`-th layer sees everything, the others a window."""
    wanted = ["full_attention" if (i + 1) % period == 0 else "sliding_attention" for i in range(len(facts.layer_types))]
    if list(facts.layer_types) != wanted:
        return f"its layers do not take turns as published ones do: full attention in every {period}. layer"
    return None


def _scale_is(facts: Any, layers_of_largest: int) -> str | None:
    """llama.cpp knows the attention scale from the size of the model alone."""
    largest = facts.num_hidden_layers == layers_of_largest
    wanted = facts.hidden_size // heads_of(facts) if largest else head_size_of(facts)
    if facts.query_pre_attn_scalar != wanted:
        return f"query_pre_attn_scalar is {facts.query_pre_attn_scalar}; llama.cpp computes with {wanted}"
    return None


def _untied(facts: Any) -> str | None:
    return None if facts.tie_word_embeddings else "its head is not tied to the embeddings"


def _gemma2_unlike(facts: Any) -> str | None:
    if not (facts.attn_logit_softcapping and facts.final_logit_softcapping):
        return "it has no caps on its logits"
    return _untied(facts) or _layers_turn(facts, 2) or _scale_is(facts, 46)


def _gemma3_unlike(facts: Any) -> str | None:
    if facts.attn_logit_softcapping or facts.final_logit_softcapping:
        return "it has caps on its logits"
    if getattr(facts, "use_bidirectional_attention", False):
        return "its attention sees both ways"
    if parameters(facts, "sliding_attention")["rope_type"] != "default":
        return "layers with a window have rope scaling"
    return _untied(facts) or _layers_turn(facts, 6) or _scale_is(facts, 62)


def _smollm3_unlike(facts: Any) -> str | None:
    wanted = [int((i + 1) % 4 != 0) for i in range(facts.num_hidden_layers)]
    found = [int(bool(x)) for x in facts.no_rope_layers]
    return None if found == wanted else "no_rope_layers is not every fourth layer"


def _whole_heads(facts: Any) -> str | None:
    if head_size_of(facts) * heads_of(facts) != facts.hidden_size:
        return f"its heads do not add up to the hidden size ({heads_of(facts)} of {head_size_of(facts)})"
    return None


def _all_routed(facts: Any) -> str | None:
    if facts.decoder_sparse_step != 1 or facts.mlp_only_layers:
        return "some of its layers have no experts (decoder_sparse_step, mlp_only_layers)"
    return None


def _qwen2_moe_unlike(facts: Any) -> str | None:
    if facts.norm_topk_prob:
        return "norm_topk_prob is true"
    if not facts.qkv_bias:
        return "qkv_bias is false"
    return _all_routed(facts) or _whole_heads(facts) or _tied_qwen2_moe(facts)


def _tied_qwen2_moe(facts: Any) -> str | None:
    return "its head is tied to the embeddings" if facts.tie_word_embeddings else None


def _qwen3_moe_unlike(facts: Any) -> str | None:
    return _all_routed(facts) or (None if facts.norm_topk_prob else "norm_topk_prob is false")


def _whole_query(facts: Any) -> str | None:
    """llama.cpp knows from the number of layers alone whether queries have a latent form."""
    if facts.q_lora_rank is None and facts.num_hidden_layers not in (26, 27):
        return f"it has no q_lora_rank and {facts.num_hidden_layers} layers; llama.cpp takes that with 26 or 27 only"
    if facts.q_lora_rank is not None and facts.num_hidden_layers in (26, 27):
        return f"it has a q_lora_rank; llama.cpp takes none with {facts.num_hidden_layers} layers"
    return None


def _deepseek_v2_unlike(facts: Any) -> str | None:
    if facts.topk_method != "greedy":
        return f"its experts are chosen by {facts.topk_method}"
    return _whole_query(facts)


def _deepseek_v3_unlike(facts: Any) -> str | None:
    return _whole_query(facts) if facts.rope_interleave else "rope_interleave is false"


_GELU = "gelu_pytorch_tanh"
_LLAMA = Architecture("llama", rules.PAIRS, scalings=FACTORS)
ARCHITECTURES: dict[str, Architecture] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "internlm3": _LLAMA,
    "mixtral": Architecture("llama", rules.MIXTRAL, _experts, scalings=FACTORS),
    "smollm3": Architecture("smollm3", rules.PAIRS, unlike=_smollm3_unlike),
    "qwen2": Architecture("qwen2", rules.HALVES, unlike=_whole_heads),
    "qwen2_moe": Architecture("qwen2moe", rules.QWEN_MOE, _qwen2_moe, _qwen2_moe_unlike),
    "qwen3": Architecture("qwen3", rules.HALVES),
    "qwen3_moe": Architecture("qwen3moe", rules.QWEN_MOE, _narrow_experts, _qwen3_moe_unlike),
    "gemma2": Architecture("gemma2", rules.GEMMA, _gemma2, _gemma2_unlike, (), windows=True, activation=_GELU),
    "gemma3_text": Architecture(
        "gemma3", rules.GEMMA, _gemma3, _gemma3_unlike, ("linear",), windows=True, activation=_GELU
    ),
    "phi3": Architecture("phi3", rules.PHI3, unlike=_whole_heads, scalings=("longrope",)),
    "glm4": Architecture("glm4", rules.GLM4),
    "olmo2": Architecture("olmo2", rules.OLMO2),
    "granite": Architecture("granite", rules.PAIRS, _granite, scalings=FACTORS),
    "granitemoe": Architecture("granitemoe", rules.GRANITE_MOE, _granite_moe, scalings=FACTORS),
    "starcoder2": Architecture(
        "starcoder2", rules.STARCODER2, epsilon="attention.layer_norm_epsilon", activation=_GELU
    ),
    "deepseek_v2": Architecture("deepseek2", rules.DEEPSEEK, _deepseek, _deepseek_v2_unlike, ("yarn",), adapters=False),
    "deepseek_v3": Architecture("deepseek2", rules.DEEPSEEK, _deepseek, _deepseek_v3_unlike, ("yarn",), adapters=False),
}
"""By transformers' `model_type`."""


def _other_activation(facts: Any, known: Architecture) -> str | None:
    found = getattr(facts, "hidden_activation", None) or facts.hidden_act
    return None if found == known.activation else f"its MLP has {found}, llama.cpp computes {known.activation}"


def obstacle(source: Any) -> str | None:
    """Return why a source, or a configuration of transformers, has no exact GGUF form, or None where it has one."""
    facts = getattr(source, "facts", source)
    known = ARCHITECTURES.get(facts.model_type)
    if known is None:
        names = ", ".join(ARCHITECTURES)
        return f"{facts.model_type} has no mapping to GGUF (there are: {names}); export_format: merged works"
    why = _other_activation(facts, known) or known.unlike(facts) or rope_obstacle(facts, known.scalings)
    return f"this {facts.model_type} has no exact GGUF form: {why}; export_format: merged works" if why else None
