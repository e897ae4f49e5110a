"""Parameters of the calls, with the names and defaults that scripts rely on, and which of them do nothing here."""

from __future__ import annotations

import inspect
from dataclasses import MISSING, dataclass, field, fields
from typing import TYPE_CHECKING, Any, TypeVar

from luthier.core.errors import ConfigError
from luthier.core.log import say_once
from luthier.core.registry import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class LoadArguments:
    """What from_pretrained takes."""

    model_name: str = "unsloth/Llama-3.2-1B-Instruct"
    max_seq_length: int | None = 2048
    dtype: Any = None
    load_in_4bit: bool = True
    load_in_8bit: bool = False
    load_in_16bit: bool = False
    full_finetuning: bool = False
    token: str | None = None
    device_map: Any = "sequential"
    rope_scaling: Any = None
    fix_tokenizer: bool = True
    trust_remote_code: bool = False
    use_gradient_checkpointing: Any = "unsloth"
    resize_model_vocab: int | None = None
    revision: str | None = None
    use_exact_model_name: bool = False
    offload_embedding: bool = False
    float32_mixed_precision: bool | None = None
    fast_inference: bool = False
    gpu_memory_utilization: float = 0.5
    float8_kv_cache: bool = False
    random_state: int = 3407
    max_lora_rank: int = 64
    disable_log_stats: bool = True
    qat_scheme: Any = None
    load_in_fp8: Any = False
    unsloth_tiled_mlp: bool = False
    text_only: bool = False
    attn_implementation: str | None = None
    local_files_only: bool = False
    quantization_config: Any = None
    num_labels: int | None = None
    return_logits: bool = False
    fullgraph: bool = True
    auto_model: Any = None
    whisper_language: str | None = None
    whisper_task: str | None = None
    unsloth_force_compile: bool = False
    target_parameters: Any = None


LOAD_IGNORED = {
    "fix_tokenizer": "nothing of the tokenizer is changed but padding and lengths",
    "offload_embedding": "embeddings stay where the model is",
    "float32_mixed_precision": "what learns is float32, and the base keeps its own number format",
    "gpu_memory_utilization": "answers come from luthier's own decoder, which takes what it needs",
    "float8_kv_cache": "luthier's decoder keeps keys and values in 16 or 32 bits",
    "max_lora_rank": "luthier's decoder takes adapters of any rank",
    "disable_log_stats": "luthier's decoder prints none",
    "unsloth_tiled_mlp": "the feed-forward block is computed in one piece",
    "attn_implementation": "attention is chosen from what is here; where it differs it is exact",
    "return_logits": "evaluation gets logits whenever it asks for them",
    "fullgraph": "nothing is compiled when a model is loaded",
    "unsloth_force_compile": "nothing is compiled when a model is loaded",
    "target_parameters": "give it to get_peft_model",
}
"""Parameter -> why it changes nothing."""
LOAD_REFUSED = {
    "load_in_fp8": "8-bit floats are not part of this version; load_in_8bit=True keeps weights in 8-bit whole numbers",
    "qat_scheme": "quantization-aware training is not part of this version; load_in_4bit=True learns on 4-bit weights",
    "num_labels": "classification heads are not part of this version; `luthier train` with stage: rm trains a grader",
    "resize_model_vocab": "rows are added by add_new_tokens, which also gives them values",
    "auto_model": "luthier trains causal language models",
    "whisper_language": "luthier trains text models",
    "whisper_task": "luthier trains text models",
}
"""Parameter -> why it cannot be had, and what to do."""


@dataclass(frozen=True, slots=True)
class AdapterArguments:
    """What get_peft_model takes behind the model."""

    r: int = 16
    target_modules: Any = PROJECTIONS
    lora_alpha: float = 16
    lora_dropout: float = 0.0
    bias: str = "none"
    layers_to_transform: Any = None
    layers_pattern: Any = None
    use_gradient_checkpointing: Any = "unsloth"
    random_state: int = 3407
    max_seq_length: int | None = 2048
    use_rslora: bool = False
    modules_to_save: Any = None
    init_lora_weights: Any = True
    loftq_config: Any = field(default_factory=dict[str, Any])
    temporary_location: str = "_unsloth_temporary_saved_buffers"
    use_dora: bool = False
    qat_scheme: Any = None
    ensure_weight_tying: bool = False
    target_parameters: Any = None
    finetune_last_n_layers: int | None = None
    finetune_language_layers: bool = True
    finetune_attention_modules: bool = True
    finetune_mlp_modules: bool = True
    finetune_vision_layers: bool = True
    finetune_audio_layers: bool = False
    task_type: Any = "CAUSAL_LM"


ADAPTER_IGNORED = {
    "layers_pattern": "decoder layers are found by themselves",
    "temporary_location": "nothing is moved to the disk",
    "finetune_audio_layers": "luthier trains text models",
    "ensure_weight_tying": "a copy of tied weights that learns stays tied anyway",
}
"""Parameter -> why it changes nothing."""
ADAPTER_REFUSED = {
    "bias": "biases belong to the base, which stays as it is; use full_finetuning=True to train them",
    "qat_scheme": LOAD_REFUSED["qat_scheme"],
    "finetune_language_layers": "these layers are all that a text model has",
    "task_type": "luthier trains causal language models",
}
"""Parameter -> why it cannot be had, and what to do."""


def bind(form: Callable[..., T], call: str, positional: Sequence[Any], named: Mapping[str, Any]) -> T:
    """Return the arguments of a call as its record. Raises TypeError for an unknown one, naming the nearest."""
    names = list(_defaults(form))
    if len(positional) > len(names):
        raise TypeError(f"{call} takes {len(names)} arguments, {len(positional)} were given")
    given = dict(zip(names, positional, strict=False))
    for name in named:
        if name not in names:
            raise TypeError(f"{call} has no parameter {name!r}{did_you_mean(name, names)}")
        if name in given:
            raise TypeError(f"{call} was given {name!r} twice")
    return form(**given, **named)


def weigh(arguments: Any, call: str, ignored: Mapping[str, str], refused: Mapping[str, str]) -> None:
    """Say once what does nothing here. Raises ConfigError for what cannot be had."""
    for name, usual in _defaults(type(arguments)).items():
        value = getattr(arguments, name)
        if (not value and not usual) or value == usual:
            continue
        if name in refused:
            raise ConfigError(f"{call}: {name}={value!r} cannot be had: {refused[name]}")
        if name in ignored:
            say_once(f"{name}={value!r} is not used: {ignored[name]}")


def signature_of(form: Any, *before: str) -> inspect.Signature:
    """Return the signature that help() shows; `before`: names in front of those of the record."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    first = [inspect.Parameter(name, kind) for name in before]
    return inspect.Signature(
        [*first, *(inspect.Parameter(name, kind, default=usual) for name, usual in _defaults(form).items())]
    )


def _defaults(form: Any) -> dict[str, Any]:
    return {
        each.name: each.default_factory() if each.default_factory is not MISSING else each.default
        for each in fields(form)
    }
