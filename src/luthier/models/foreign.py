"""Architectures that transformers has not under their own name, but computes exactly once their weights are re-laid.

A table says how the config translates and which tensors become which; tensors are cut while they are read, one at a
time. What is not exact (Baichuan 13B's ALiBi, ChatGLM 1) is left to the code that comes with the model, if it may run.
Shapes: H query heads, K key heads, C head size, I inputs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from luthier.core.errors import ModelError
from luthier.core.log import say_once

Raw = dict[str, Any]
"""config.json as it is."""
Cut = Callable[[Tensor, "Sizes"], Tensor]
Rules = dict[str, dict[str, "Cut | None"]]
"""Pattern of a tensor's name -> names that it becomes (groups as {0}, {1}) and which part each is; none: as it is."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a cut needs to know."""

    heads: int
    key_heads: int
    head_size: int

    @property
    def rows(self) -> tuple[int, int, int]:
        """Return the outputs of query, key and value."""
        return self.heads * self.head_size, self.key_heads * self.head_size, self.key_heads * self.head_size


@dataclass(frozen=True, slots=True)
class Foreign:
    """How one architecture becomes one of transformers'."""

    becomes: str
    """`model_type` that computes it."""
    config: Callable[[Raw], Raw]
    rules: Rules
    left_out: str = r"(?!)"
    """Pattern of names that have no place there."""
    obstacle: Callable[[Raw], str | None] = lambda raw: None
    """Returns why this form of the architecture is not exact, or None."""
    note: str = ""
    """What a user should know of it."""


# ---- configs

_SAME = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps", "rope_theta",
    "rope_scaling", "tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id", "quantization_config",
)  # fmt: skip


def _same(raw: Raw) -> Raw:
    kept = {key: raw[key] for key in _SAME if raw.get(key) is not None}
    dtype = raw.get("dtype", raw.get("torch_dtype"))
    return {"tie_word_embeddings": False, **kept, **({"dtype": dtype} if dtype else {})}


def _with_bias(raw: Raw) -> Raw:
    return {**_same(raw), "attention_bias": bool(raw.get("bias", True))}


def _minicpm(raw: Raw) -> Raw:
    hidden, layers = raw["hidden_size"], raw["num_hidden_layers"]
    return {
        **_same(raw),
        "tie_word_embeddings": raw.get("tie_word_embeddings", True),
        "embedding_multiplier": raw.get("scale_emb", 1),
        "residual_multiplier": raw.get("scale_depth", 1) / math.sqrt(layers),
        "attention_multiplier": (hidden // raw["num_attention_heads"]) ** -0.5,
        "logits_scaling": hidden / raw.get("dim_model_base", 1),
    }


def _chatglm(raw: Raw) -> Raw:
    return {
        **_same(raw),
        "vocab_size": raw["padded_vocab_size"],
        "intermediate_size": raw["ffn_hidden_size"],
        "num_hidden_layers": raw["num_layers"],
        "num_key_value_heads": _chatglm_groups(raw),
        "head_dim": raw["kv_channels"],
        "rms_norm_eps": raw["layernorm_epsilon"],
        "max_position_embeddings": raw["seq_length"],
        "attention_bias": bool(raw.get("add_qkv_bias", False)),
        "rope_theta": 10000.0 * raw.get("rope_ratio", 1),
    }


def _chatglm_groups(raw: Raw) -> int:
    return raw["multi_query_group_num"] if raw.get("multi_query_attention") else raw["num_attention_heads"]


def _no_alibi(raw: Raw) -> str | None:
    # Only the 7B models rotate; the 13B models, with 40 layers, name no positions.
    alibi = "max_position_embeddings" not in raw or raw["num_hidden_layers"] == 40
    return "its attention has ALiBi biases (13B)" if alibi else None


def _plain_minicpm(raw: Raw) -> str | None:
    if raw.get("num_experts"):
        return "it has experts"
    return "its attention is sparse (sparse_config)" if raw.get("sparse_config") else None


def _rotating_glm(raw: Raw) -> str | None:
    if "padded_vocab_size" not in raw:
        return "it is of the first generation, with two-dimensional positions"
    unlike = {
        "add_bias_linear": False, "rmsnorm": True, "original_rope": True, "post_layer_norm": True,
        "apply_residual_connection_post_layernorm": False,
    }  # fmt: skip
    found = [f"{key} is {raw[key]}" for key, value in unlike.items() if raw.get(key, value) != value]
    return found[0] if found else None


# ---- cuts


def _share(place: int) -> Cut:
    """Query, key and value one behind the other."""
    return lambda x, sizes: x.split(sizes.rows)[place]


def _by_head(place: int) -> Cut:
    """Query, key and value of each head together, where heads share no keys; else one behind the other."""

    def cut(x: Tensor, sizes: Sizes) -> Tensor:
        if sizes.heads != sizes.key_heads:
            return x.split(sizes.rows)[place]
        return x.unflatten(0, (sizes.heads, 3, sizes.head_size))[:, place].flatten(0, 1)

    return cut


def _by_group(part: slice) -> Cut:
    """Each key head behind the query heads that share it, its value behind it."""

    def cut(x: Tensor, sizes: Sizes) -> Tensor:
        members = sizes.heads // sizes.key_heads + 2
        return x.unflatten(0, (sizes.key_heads, members, sizes.head_size))[:, part].flatten(0, 2)

    return cut


def _unit_rows(x: Tensor, sizes: Sizes) -> Tensor:
    return F.normalize(x.float()).to(x.dtype)


def _qkv(layer: str, source: str, cuts: tuple[Cut, Cut, Cut], target: str = "self_attn") -> Rules:
    names = [f"model.layers.{{0}}.{target}.{part}_proj.{{1}}" for part in "qkv"]
    return {rf"{layer}{source}\.(weight|bias)": dict(zip(names, cuts, strict=True))}


_LAYER = r"model\.layers\.(\d+)\."
_REST: Rules = {r"(.*)": {"{0}": None}}
_NORMS = r"(input_layernorm|post_attention_layernorm)"
_GLM = r"transformer\.encoder\.layers\.(\d+)\."


def _renamed(layer: str, names: dict[str, str]) -> Rules:
    return {
        rf"{layer}{there}\.(weight|bias)": {f"model.layers.{{0}}.{here}.{{1}}": None} for there, here in names.items()
    }


_INTERNLM2: Rules = {
    r"model\.tok_embeddings\.weight": {"model.embed_tokens.weight": None},
    r"output\.weight": {"lm_head.weight": None},
    r"model\.norm\.weight": {"model.norm.weight": None},
    **_qkv(_LAYER, r"attention\.wqkv", (_by_group(slice(0, -2)), _by_group(slice(-2, -1)), _by_group(slice(-1, None)))),
    **_renamed(
        _LAYER,
        {
            r"attention\.wo": "self_attn.o_proj",
            r"feed_forward\.w1": "mlp.gate_proj",
            r"feed_forward\.w3": "mlp.up_proj",
            r"feed_forward\.w2": "mlp.down_proj",
            r"attention_norm": "input_layernorm",
            r"ffn_norm": "post_attention_layernorm",
        },
    ),
}
_BAICHUAN: Rules = {**_qkv(_LAYER, r"self_attn\.W_pack", (_share(0), _share(1), _share(2))), **_REST}
_BAICHUAN2: Rules = {r"lm_head\.weight": {"lm_head.weight": _unit_rows}, **_BAICHUAN}
_CHATGLM: Rules = {
    r"transformer\.embedding\.word_embeddings\.weight": {"model.embed_tokens.weight": None},
    r"transformer\.output_layer\.weight": {"lm_head.weight": None},
    r"transformer\.encoder\.final_layernorm\.weight": {"model.norm.weight": None},
    **_qkv(_GLM, r"self_attention\.query_key_value", (_by_head(0), _by_head(1), _by_head(2))),
    **_renamed(
        _GLM,
        {
            r"self_attention\.dense": "self_attn.o_proj",
            r"mlp\.dense_h_to_4h": "mlp.gate_up_proj",
            r"mlp\.dense_4h_to_h": "mlp.down_proj",
            "input_layernorm": "input_layernorm",
            "post_attention_layernorm": "post_attention_layernorm",
        },
    ),
}
_TEXT_HALF: Rules = {
    r"model\.language_model\.(.*)": {"model.{0}": None},
    r"language_model\.model\.(.*)": {"model.{0}": None},
    r"(?:language_model\.)?lm_head\.weight": {"lm_head.weight": None},
}
_SEEING = r"(model\.)?(vision_tower|multi_modal_projector)\..*"
_ANGLES = r".*rotary_(emb|pos_emb)\.inv_freq"
_BAICHUAN2_WORDS = 125_696


def _text_config(raw: Raw) -> Raw:
    from transformers import AutoConfig

    whole = AutoConfig.for_model(
        **{key: value for key, value in raw.items() if key not in ("auto_map", "architectures")}
    )
    return whole.get_text_config().to_dict()


_TEXT = "the vision tower is left out: only text is trained and saved"
FOREIGN: dict[str, Foreign] = {
    "internlm": Foreign("llama", _with_bias, _REST, _ANGLES),
    "internlm2": Foreign("llama", _with_bias, _INTERNLM2, _ANGLES),
    "baichuan": Foreign("llama", _same, _BAICHUAN, _ANGLES, _no_alibi),
    "minicpm": Foreign("granite", _minicpm, _REST, _ANGLES, _plain_minicpm),
    "chatglm": Foreign("glm", _chatglm, _CHATGLM, _ANGLES, _rotating_glm),
    "gemma3": Foreign("gemma3_text", _text_config, _TEXT_HALF, _SEEING, note=_TEXT),
    "mistral3": Foreign("mistral", _text_config, _TEXT_HALF, _SEEING, note=_TEXT),
}
_BAICHUAN_2 = Foreign(
    "llama", _same, _BAICHUAN2, _ANGLES, _no_alibi,
    "the rows of its head have length one; full tuning lets them have any",
)  # fmt: skip


def foreign_of(raw: Raw) -> Foreign | None:
    """Return how the model of a config.json is re-laid; None when transformers knows it, or nothing is exact."""
    found = FOREIGN.get(str(raw.get("model_type")))
    if found is FOREIGN["baichuan"] and raw.get("vocab_size") == _BAICHUAN2_WORDS:
        found = _BAICHUAN_2
    return found if found is not None and found.obstacle(raw) is None else None


def needs_own_code(raw: Raw) -> str | None:
    """Return why the model of a config.json can only be computed by code of its own, or None."""
    from transformers import CONFIG_MAPPING

    model_type = str(raw.get("model_type"))
    if foreign_of(raw) is not None or model_type in CONFIG_MAPPING:
        return None
    known = FOREIGN.get(model_type)
    why = known and known.obstacle(raw)
    return f"{model_type!r} is not computed exactly by any class here: {why}" if why else f"{model_type!r} is not known"


# ---- loading


@dataclass(frozen=True, slots=True)
class Layout:
    """How a model folder or hub name is read."""

    config: Any
    """transformers' config of the class that computes it."""
    raw: Raw
    foreign: Foreign | None
    remote: bool
    """Whether code of its own runs."""

    def relay(self, weights: Mapping[str, Any]) -> dict[str, Any]:
        """Return the weights under transformers' names, still unread; raises ModelError when they do not fit."""
        assert self.foreign is not None
        found = _relaid(weights, self.foreign, _sizes(self.config))
        if self.config.tie_word_embeddings:
            found.pop("lm_head.weight", None)
        wanted = _names_of(self.config)
        unlike = sorted(wanted - found.keys()) or sorted(found.keys() - wanted)
        if unlike:
            raise ModelError(
                f"the weights do not fit {self.raw['model_type']}: {unlike[0]} is "
                f"{'missing' if unlike[0] in wanted else 'unknown'}; download the model again",
                code="model_damaged",
            )
        if self.foreign.note:
            say_once(f"{self.raw['model_type']}: {self.foreign.note}")
        return found


def read_layout(base: str, *, revision: str = "main", allow_remote_code: bool = False) -> Layout:
    """Read the config of a model; code of its own runs only where nothing here computes it.

    Raises OSError or ValueError as transformers does.
    """
    from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

    raw, _ = PreTrainedConfig.get_config_dict(base, revision=revision)
    foreign = foreign_of(raw)
    if foreign is not None:
        translated = {key: value for key, value in foreign.config(raw).items() if key != "model_type"}
        becomes = str(foreign.config(raw).get("model_type", foreign.becomes))
        return Layout(AutoConfig.for_model(becomes, **translated), raw, foreign, remote=False)
    remote = allow_remote_code and raw.get("model_type") not in CONFIG_MAPPING
    config = AutoConfig.from_pretrained(base, revision=revision, trust_remote_code=remote)
    return Layout(config, raw, None, remote=remote)


def is_own_code(config: Any) -> bool:
    """Return whether a config is of a class that came with its model."""
    return not type(config).__module__.startswith("transformers.")


def _sizes(config: Any) -> Sizes:
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return Sizes(heads, getattr(config, "num_key_value_heads", None) or heads, size)


def _names_of(config: Any) -> set[str]:
    """Return the names of the weights that the class of `config` has; a tied head is none."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        shell: nn.Module = AutoModelForCausalLM.from_config(config)
    return {name for name, _ in shell.named_parameters()}


def _relaid(weights: Mapping[str, Any], foreign: Foreign, sizes: Sizes) -> dict[str, Any]:
    from luthier.models.quantized_files import Stored

    found: dict[str, Any] = {}
    for name, stored in weights.items():
        if re.fullmatch(foreign.left_out, name):
            continue
        for pattern, parts in foreign.rules.items():
            if match := re.fullmatch(pattern, name):
                for target, cut in parts.items():
                    found[target.format(*match.groups())] = Stored(_reader(stored, cut, sizes))
                break
        else:
            found[name] = stored
    return found


def _reader(stored: Any, cut: Cut | None, sizes: Sizes) -> Callable[[], Tensor]:
    if cut is None:
        return lambda: stored[...]
    return lambda: cut(stored[...], sizes).contiguous()
