"""The parts of a transformers decoder, read once, and a forward pass over new tokens of several sequences.

Keys and values lie in pages of PAGE positions: [pages, 2, layers, key heads, head size * PAGE], keys with positions
side by side, values with features side by side. Shapes: T new tokens, N wanted rows, D hidden, V vocabulary.
"""

from __future__ import annotations

import copy
import inspect
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from luthier.core.anatomy import at_work, attention_window, backbone_of, decoder_layers, family_of, plain_model
from luthier.models.quantized import is_of_bitsandbytes
from luthier.tuning.parts.bottleneck import all_of as bottlenecks

if TYPE_CHECKING:
    from luthier.models.low_rank import Adapter

PAGE = 16
_LINEARS = {
    "qkv": (("self_attn", "qkv_proj"), ("self_attn", "q_proj"), ("self_attn", "k_proj"), ("self_attn", "v_proj")),
    "out": (("self_attn", "o_proj"),),
    "gate_up": (("mlp", "gate_up_proj"), ("mlp", "gate_proj"), ("mlp", "up_proj")),
    "down": (("mlp", "down_proj"),),
}
"""Product of a layer -> the modules that make it; the first is the fused form of the others."""
_IS_SILU = {"silu": True, "swish": True, "gelu_pytorch_tanh": False}


Turns = tuple[tuple[int, Tensor | None], ...]
"""Number of an adapter, and the rows [M] int64 that it works on; None: every row."""


@dataclass(frozen=True, slots=True)
class Step:
    """New tokens of several sequences; tokens of one sequence stand together and in order."""

    ids: Tensor
    """[T] int64."""
    positions: Tensor
    """[T] int64, positions inside their sequences."""
    sequences: Tensor
    """[T] int64, rows of `tables`."""
    tables: Tensor
    """[sequences, width] int32, page of each PAGE positions."""
    wanted: Tensor
    """[N] int64, rows whose hidden states are asked for."""
    turns: Turns = ()
    """Adapters at work in this step."""


class Decoder(Protocol):
    """Computes new tokens and keeps their keys and values in pages."""

    cache_dtype: torch.dtype
    """Number format of pages."""

    def add_adapter(self, adapter: Adapter) -> int:
        """Keep what an adapter adds, and return the number that steps name it by."""
        ...

    def hidden(self, step: Step, pages: Tensor) -> Tensor:
        """Return what the last norm makes of the wanted rows, [N, D]; writes into `pages`."""
        ...

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """Return float32 logits [N, V] of what `hidden` returned."""
        ...


@dataclass(slots=True)
class Layer:
    """Modules and facts of one decoder layer."""

    linears: dict[str, list[nn.Module]]
    gains: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    """What norms multiply by, float32."""
    window: int | None = None
    angles: int = 0
    """Which kind of rotary angles."""


@dataclass(slots=True)
class Parts:
    """Everything that a decoder needs from a transformers model."""

    layers: list[Layer]
    embedding: Tensor
    norm: Tensor
    head: nn.Module
    facts: dict[str, Any]
    rotary: Any
    rotary_kinds: tuple[str | None, ...]
    max_positions: int

    def angles(self, count: int) -> Tensor:
        """Return cosines and sines of the first `count` positions: [kinds, 2, positions, features that turn]."""
        device = self.embedding.device
        positions, like = torch.arange(count, device=device)[None], torch.zeros(1, device=device)
        kinds = [
            torch.stack([x[0].float() for x in self.rotary(like, positions, *([kind] if kind else []))])
            for kind in self.rotary_kinds
        ]
        return torch.stack(kinds).contiguous()

    def reach(self, angles: Tensor, positions: int) -> Tensor:
        """Return angles for at least `positions` positions, those given if they are enough."""
        return angles if angles.shape[2] >= positions else self.angles(max(positions, 2 * angles.shape[2]))

    def page_shape(self) -> tuple[int, ...]:
        """Return the shape of one page."""
        f = self.facts
        return 2, f["layers"], f["kv_heads"], f["head_size"] * PAGE


def obstacle(model: nn.Module) -> str | None:
    """Return why this model cannot be read into parts, or None."""
    config = plain_model(model).config
    if "decoder" not in family_of(config.model_type).kernels:
        return f"model type {config.model_type!r} has no decoder facts"
    ropes = getattr(config, "rope_parameters", None) or {}
    kinds = {str(r.get("rope_type")) for r in [ropes, *ropes.values()] if isinstance(r, dict)}
    if moving := kinds & {"dynamic", "longrope"}:
        return f"rotary scaling {min(moving)!r} changes with the length"
    activation = getattr(config, "hidden_activation", None) or config.hidden_act
    if activation not in _IS_SILU:
        return f"activation {activation!r}"
    if bottlenecks(model):
        return "bottleneck adapters stand behind its blocks"
    linears = [m for layer in decoder_layers(model) for group in _layer_linears(layer).values() for m in group]
    return next((why for m in linears if (why := _linear_obstacle(m))), None)


def _linear_obstacle(module: nn.Module) -> str | None:
    from peft.tuners.tuners_utils import BaseTunerLayer

    base = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
    # bitsandbytes' layers are linear ones whose weight is codes.
    readable = isinstance(base, nn.Linear) and not is_of_bitsandbytes(base)
    return None if readable else f"a layer is a {type(module).__name__}"


def weight_of(module: nn.Module) -> Tensor:
    """Return the weight of a module with what adapters make of it; of linear layers [outputs, inputs].

    It shares memory with the module only where that does not learn.
    """
    quick = _with_low_rank(at_work(module))
    return _lasting(_merged(module).weight) if quick is None else quick


def _lasting(x: Tensor) -> Tensor:
    return x.detach().clone() if x.requires_grad else x.detach()


def _with_low_rank(module: Any) -> Tensor | None:
    """Return the weight of a linear layer with its one plain LoRA, without copying the module; None for others."""
    from peft.tuners.lora import Linear

    if type(module) is not Linear or module.merged or module.disable_adapters or len(module.active_adapters) != 1:
        return None
    (name,) = module.active_adapters
    base: Any = module.get_base_layer()
    plain = name in module.lora_A and name not in module.lora_variant and type(base) is nn.Linear
    return base.weight.detach() + module.get_delta_weight(name).detach().to(base.weight.dtype) if plain else None


def bias_of(module: nn.Module) -> Tensor | None:
    """Return the bias of a linear layer with what adapters make of it."""
    bias = _merged(module).bias
    return None if bias is None else _lasting(bias)


def _merged(module: Any) -> Any:
    """Return a plain module that computes what `module` does; `module` itself stays as it is."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    module = at_work(module)
    if not isinstance(module, BaseTunerLayer):
        return module
    if module.merged or module.disable_adapters:
        return module.get_base_layer()
    alone = copy.deepcopy(module)
    alone.merge()  # pyright: ignore[reportCallIssue]  each kind of layer has it
    return alone.get_base_layer()


def _layer_linears(layer: Any) -> dict[str, list[nn.Module]]:
    found: dict[str, list[nn.Module]] = {}
    for name, (fused, *parts) in _LINEARS.items():
        whole: Any = getattr(getattr(layer, fused[0]), fused[1], None)
        found[name] = [getattr(getattr(layer, part), own) for part, own in parts] if whole is None else [whole]
    return found


def read_parts(model: nn.Module) -> Parts:
    """Read a model for which `obstacle` returns None."""
    plain, backbone, config = plain_model(model), backbone_of(model), plain_model(model).config
    offset = family_of(config.model_type).norm_offset
    modules: list[Any] = list(decoder_layers(model))
    per_kind = "layer_type" in inspect.signature(backbone.rotary_emb.forward).parameters
    types = [str(t) for t in config.layer_types] if per_kind else []
    kinds = tuple(dict.fromkeys(types)) if per_kind else (None,)
    first = modules[0].self_attn
    layers = [
        Layer(
            _layer_linears(layer),
            _gains(layer, offset),
            attention_window(layer.self_attn),
            kinds.index(types[i]) if per_kind else 0,
        )
        for i, layer in enumerate(modules)
    ]
    heads = config.num_attention_heads
    facts = {
        "hidden": config.hidden_size,
        "heads": heads,
        "kv_heads": getattr(config, "num_key_value_heads", None) or heads,
        "head_size": first.head_dim,
        "layers": len(layers),
        "eps": config.rms_norm_eps,
        "scale": float(first.scaling),
        "softcap": float(getattr(config, "attn_logit_softcapping", None) or 0),
        "final_softcap": float(getattr(config, "final_logit_softcapping", None) or 0),
        "logit_scale": float(
            getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1.0)
        ),
        "embedding_scale": _embedding_scale(backbone.embed_tokens),
        "is_silu": _IS_SILU[getattr(config, "hidden_activation", None) or config.hidden_act],
    }
    embedding = weight_of(backbone.embed_tokens)
    norm = weight_of(backbone.norm).float() + offset
    head = plain.get_output_embeddings()
    return Parts(layers, embedding, norm, head, facts, backbone.rotary_emb, kinds, config.max_position_embeddings)


def _embedding_scale(embedding: Any) -> float:
    """Return the factor of token embeddings, rounded as the model rounds it."""
    scale = torch.tensor(getattr(embedding, "scalar_embed_scale", 1.0))
    return float(scale.to(embedding.weight.dtype))


def _gains(layer: Any, offset: float) -> dict[str, Tensor]:
    """Return what each norm of a layer multiplies by, under our names; Gemma 2 and 3 also norm what goes out."""
    sandwiched = hasattr(layer, "pre_feedforward_layernorm")
    modules = {
        "before_attention": layer.input_layernorm,
        "after_attention": layer.post_attention_layernorm if sandwiched else None,
        "before_mlp": layer.pre_feedforward_layernorm if sandwiched else layer.post_attention_layernorm,
        "after_mlp": layer.post_feedforward_layernorm if sandwiched else None,
        "query_norm": getattr(layer.self_attn, "q_norm", None),
        "key_norm": getattr(layer.self_attn, "k_norm", None),
    }
    return {name: weight_of(m).float() + offset for name, m in modules.items() if m is not None}
