"""Put kernels into instances of a transformers model, and take them out again. No class is touched."""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from luthier.core.anatomy import attention_window, family_of, packing_of, plain_model
from luthier.core.log import say_once
from luthier.kernels.attention import FOREST_ATTENTION
from luthier.kernels.gated import GATED
from luthier.kernels.layer_norm import LAYER_NORM
from luthier.kernels.linear_logprobs import LINEAR_LOGPROBS
from luthier.kernels.lora_linear import LORA_LINEAR
from luthier.kernels.panels import add_low_rank
from luthier.kernels.products import times_transposed
from luthier.kernels.rms_norm import RMS_NORM
from luthier.kernels.rope import ROPE
from luthier.models.quantized import QuantizedLinear
from luthier.models.virtual import PrefixCache

if TYPE_CHECKING:
    from luthier.core.batch import Spans
    from luthier.core.protocols import Family
    from luthier.kernels.op import Op

FOREST = "luthier_forest"
_ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
_PATCHED = "_luthier_patched"


def register_attention() -> None:
    """Make the name FOREST known to transformers; a call without spans behaves like sdpa."""
    ALL_ATTENTION_FUNCTIONS.register(FOREST, _attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(FOREST, sdpa_mask)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    forest: Spans | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it: query [1, H, T, D] to output [1, T, H, D]."""
    sinks_H = kwargs.pop("s_aux", None)
    if forest is None:
        if softcap is not None or sinks_H is not None:  # sdpa has neither
            return _written_out(query, key, value, attention_mask, scaling, softcap, sinks_H), None
        sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]
        return sdpa(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs)
    if dropout:
        say_once("attention dropout is left out: packed attention has none")
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    # Under autocast rotation leaves queries and keys in float32 while values are narrower.
    q_HTD, k_KTD, v_KTD = query[0].to(value.dtype), key[0].to(value.dtype), value[0]
    size, narrower = v_KTD.shape[2], k_KTD.shape[2] - v_KTD.shape[2]
    if narrower > 0:  # latent attention: zeros behind the values change nothing
        v_KTD = F.pad(v_KTD, (0, narrower))
    prefix = k_KTD.shape[1] - q_HTD.shape[1]  # keys in front of the first token, which no query belongs to
    if prefix:
        q_HTD = F.pad(q_HTD, (0, 0, prefix, 0))
    call = FOREST_ATTENTION.choose(query.device.type)[1]
    out = call(q_HTD, k_KTD, v_KTD, forest, scale, sliding_window, softcap, sinks_H)
    return out[None, prefix:, :, :size], None


def _written_out(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    softcap: float | None,
    sinks_H: Tensor | None,
) -> Tensor:
    """Attention with soft-capped scores or with sinks, for generation: [1, H, T, D] to [1, T, H, D]."""
    group = query.shape[1] // key.shape[1]
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    scores = (query @ key.repeat_interleave(group, 1).transpose(2, 3)).float() * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is not None:
        hidden = ~mask if mask.dtype == torch.bool else mask < -1.0
        scores = scores.masked_fill(hidden[..., : key.shape[2]], torch.finfo(scores.dtype).min)
    elif query.shape[2] > 1:
        seen = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device)
        scores = scores.masked_fill(~seen.tril(key.shape[2] - query.shape[2]), torch.finfo(scores.dtype).min)
    if sinks_H is not None:
        scores = torch.cat([scores, sinks_H.float()[None, :, None, None].expand(*scores.shape[:3], 1)], -1)
    probs = torch.softmax(scores, -1)[..., : key.shape[2]].to(value.dtype)
    return (probs @ value.repeat_interleave(group, 1)).transpose(1, 2).contiguous()


def plain_attention(config: Any) -> str:
    """Return the attention of transformers that is exact for a model: sdpa, unless scores have something it leaves out.

    That is a cap, sinks, or the bias by distance of ALiBi.
    """
    text = config.get_text_config()
    more = getattr(text, "attn_logit_softcapping", None) or getattr(text, "alibi", False)
    return "eager" if more or text.model_type == "gpt_oss" else "sdpa"


def attention_for(config: Any, kernels: str) -> str:
    """Return the attention that a model with this transformers config is loaded with; `kernels`: "auto" or "off"."""
    return FOREST if kernels == "auto" and packing_of(config) == "forest" else plain_attention(config)


def install(model: nn.Module) -> list[str]:
    """Put kernels into the instances of `model` that its family allows; return one line for each kernel."""
    plain = plain_model(model)
    family, device = family_of(plain.config.model_type), plain.device.type
    lines: list[str] = []
    for kernel, put in _INSTALLERS.items():
        if kernel not in family.kernels:
            lines.append(f"{kernel}: plain transformers (not proven for {plain.config.model_type})")
            continue
        count = sum(put(module, family, _OPS[kernel].choose(device)[1]) for module in model.modules())
        if count:
            lines.append(f"{_chosen(_OPS[kernel], device)} x {count}")
    if plain.config._attn_implementation == FOREST:
        lines += [_chosen(op, device) for op in (FOREST_ATTENTION, LINEAR_LOGPROBS)]
    return lines


def _chosen(op: Op, device: str) -> str:
    """Return which form of an operation runs, and why those before it do not."""
    name, _, reasons = op.choose(device)
    return f"{op.name}: {name}" + (f" ({'; '.join(reasons)})" if reasons else "")


def remove(model: nn.Module) -> None:
    """Take every kernel out of `model`; it is the plain transformers model again."""
    for module in model.modules():
        if getattr(module, _PATCHED, False):
            del module.forward, module.__dict__[_PATCHED]


def _bind(module: nn.Module, forward: Any) -> int:
    module.forward = types.MethodType(forward, module)
    module.__dict__[_PATCHED] = True
    return 1


def _put_rms_norm(module: nn.Module, family: Family, call: Any) -> int:
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    weight = getattr(module, "weight", None)
    if not type(module).__name__.endswith("RMSNorm") or eps is None or weight is None:
        return 0
    offset = family.norm_offset
    return _bind(module, lambda self, x: call(x, self.weight, eps, offset))


def _put_gated_mlp(module: nn.Module, family: Family, call: Any) -> int:
    parts = ("gate_proj", "up_proj", "down_proj")
    activation = _ACTIVATIONS.get(_activation_name(module))
    if activation is None or not type(module).__name__.endswith("MLP") or not all(hasattr(module, p) for p in parts):
        return 0
    return _bind(module, lambda self, x: self.down_proj(call(self.gate_proj(x), self.up_proj(x), activation)))


def _activation_name(module: nn.Module) -> str:
    function: Any = getattr(module, "act_fn", None)
    config: Any = getattr(module, "config", None)
    declared = getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", None)
    return str(declared) if function is not None and declared else ""


def _put_attention(module: nn.Module, family: Family, turn: Any) -> int:
    """Hand rotated heads of packed rows to forest attention as they are; decoding with a cache keeps its own way."""
    parts = ("q_proj", "k_proj", "v_proj", "head_dim", "scaling")
    if not type(module).__name__.endswith("Attention") or not all(hasattr(module, part) for part in parts):
        return 0
    plain, window = type(module).forward, attention_window(module)
    softcap, rotates = getattr(module, "attn_logit_softcapping", None), bool(getattr(module, "use_rope", True))
    out_proj = "o_proj" if hasattr(module, "o_proj") else "dense"
    norms = next((n for n in (("q_norm", "k_norm"), ("q_layernorm", "k_layernorm")) if hasattr(module, n[0])), None)

    def forward(
        self: Any, hidden_states: Tensor, position_embeddings: Any = None, **kwargs: Any
    ) -> tuple[Tensor, None]:
        before = kwargs.get("past_key_values")
        if kwargs.get("forest") is None or not isinstance(before, PrefixCache | None):
            return plain(self, hidden_states, position_embeddings=position_embeddings, **kwargs)
        q_TC, k_TC, v_TC = (project(hidden_states)[0] for project in (self.q_proj, self.k_proj, self.v_proj))
        q_HTD, k_HTD = _normed_heads(self, norms, q_TC, k_TC)
        if rotates:
            cos_TR, sin_TR = (angles[0] for angles in position_embeddings)
            q_HTD, k_HTD = turn(q_HTD, cos_TR, sin_TR), turn(k_HTD, cos_TR, sin_TR)
        kwargs["attention_mask"] = None
        dropout = self.attention_dropout if self.training else 0.0
        options = {"scaling": self.scaling, "dropout": dropout, "sliding_window": window, "softcap": softcap}
        k, v = k_HTD[None], v_TC.unflatten(-1, (-1, self.head_dim)).transpose(0, 1)[None]
        if before is not None:
            k, v = before.update(k, v, self.layer_idx)
        out, _ = _attention(self, q_HTD[None], k, v, **options, **kwargs)
        return getattr(self, out_proj)(out.flatten(-2)), None

    return _bind(module, forward)


def _normed_heads(module: Any, names: tuple[str, str] | None, q_TC: Tensor, k_TC: Tensor) -> tuple[Tensor, Tensor]:
    """Return queries and keys as heads [H, T, D], normed head by head or, where the norm is as wide, all together."""
    both: list[Tensor] = []
    for x_TC, name in ((q_TC, names and names[0]), (k_TC, names and names[1])):
        norm = getattr(module, name) if name else None
        together = norm is not None and norm.weight.shape[-1] == x_TC.shape[-1] != module.head_dim
        heads = (norm(x_TC) if norm is not None and together else x_TC).unflatten(-1, (-1, module.head_dim))
        heads = heads.transpose(0, 1)
        both.append(heads if norm is None or together else norm(heads))
    return both[0], both[1]


def _put_lora_linear(module: nn.Module, family: Family, call: Any) -> int:
    from peft.tuners.lora import Linear

    if not isinstance(module, Linear) or not isinstance(module.base_layer, nn.Linear):
        return 0
    if any(module.use_dora.values()):
        say_once("DoRA layers compute as peft does: the direction of a weight changes with every step")
        return 0
    plain = type(module).forward

    def forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        name = self.active_adapters[0] if len(self.active_adapters) == 1 else None
        if self.disable_adapters and not kwargs and _takes_product(self, x):
            return times_transposed(x.flatten(0, -2), self.base_layer.weight).unflatten(0, x.shape[:-1])
        # Everything that the kernel does not know goes the plain way: switched off, merged, several adapters.
        known = name in self.lora_A and not (self.disable_adapters or self.merged)
        if not known or kwargs or self.lora_B[name].bias is not None or torch.is_autocast_enabled(x.device.type):
            return plain(self, x, *args, **kwargs)
        base, dropout = self.base_layer, getattr(self.lora_dropout[name], "p", 0.0) if self.training else 0.0
        # Drawn as torch draws it, so that kernels: off sees the same numbers fall out.
        keep = torch.empty_like(x).bernoulli_(1 - dropout).bool() if dropout else None
        low = self.lora_A[name].weight, self.lora_B[name].weight, self.scaling[name]
        if isinstance(base, QuantizedLinear):
            keep_TI = None if keep is None else keep.flatten(0, -2)
            x_TI = x.flatten(0, -2)
            return add_low_rank(base(x_TI), x_TI, *low, keep_TI, dropout).view(*x.shape[:-1], base.out_features)
        return call(x, base.weight, base.bias, *low, keep, dropout)

    return _bind(module, forward)


def _takes_product(layer: Any, x: Tensor) -> bool:
    """Tell whether a layer with its adapters off is a mere product that nobody learns from: a reference."""
    base = layer.base_layer
    is_mere = type(base) is nn.Linear and base.bias is None and x.dtype == base.weight.dtype and not layer.merged
    return is_mere and not torch.is_grad_enabled() and not torch.is_autocast_enabled(x.device.type)


def _put_layer_norm(module: nn.Module, family: Family, call: Any) -> int:
    if type(module) is not nn.LayerNorm or module.weight is None or len(module.normalized_shape) != 1:
        return 0
    return _bind(module, lambda self, x: call(x, self.weight, self.bias, self.eps))


_INSTALLERS = {
    "rms_norm": _put_rms_norm,
    "layer_norm": _put_layer_norm,
    "gated_mlp": _put_gated_mlp,
    "attention": _put_attention,
    "lora_linear": _put_lora_linear,
}
_OPS = {
    "rms_norm": RMS_NORM,
    "layer_norm": LAYER_NORM,
    "gated_mlp": GATED,
    "attention": ROPE,
    "lora_linear": LORA_LINEAR,
}
