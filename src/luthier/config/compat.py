"""The LLaMA-Factory dialect: only the exceptions. Keys that a section declares route themselves.

Every table is data, so that the reference page and the tests read the same facts as the loader.
"""

from __future__ import annotations

from typing import Any

from luthier.config import compat_machines, compat_training

RENAMED: dict[str, str] = {
    **compat_training.RENAMED,
    "stage": "objective.name",
    "finetuning_type": "tuning.name",
    "lora_rank": "tuning.rank",
    "lora_alpha": "tuning.alpha",
    "lora_dropout": "tuning.dropout",
    "lora_target": "tuning.targets",
    "use_rslora": "tuning.rslora",
    "use_dora": "tuning.dora",
    "additional_target": "tuning.modules_to_save",
    "pissa_iter": "tuning.pissa_iterations",
    "loraplus_lr_ratio": "tuning.b_rate_ratio",
    "loraplus_lr_embedding": "tuning.embedding_rate",
    "oft_rank": "tuning.blocks",
    "oft_block_size": "tuning.block_size",
    "oft_target": "tuning.targets",
    "module_dropout": "tuning.dropout",
    "num_virtual_tokens": "tuning.tokens",
    "prefix_projection": "tuning.reparameterization",
    "encoder_hidden_size": "tuning.hidden",
    "pref_beta": "objective.beta",
    "ppo_target": "objective.kl_target",
    "ppo_whiten_rewards": "objective.whiten_rewards",
    "pref_loss": "objective.loss",
    "pref_ftx": "objective.sft_weight",
    "pref_bco_weight": "objective.bco_weight",
    "dpo_label_smoothing": "objective.label_smoothing",
    "simpo_gamma": "objective.gamma",
    "kto_chosen_weight": "objective.desirable_weight",
    "kto_rejected_weight": "objective.undesirable_weight",
    "ppo_epochs": "rollout.rollout_epochs",
    "ppo_buffer_size": "rollout.rollout_minibatches",
    "ppo_score_norm": "rollout.score_scaling",
    "freeze_trainable_layers": "tuning.layers",
    "freeze_trainable_modules": "tuning.modules",
    "freeze_extra_modules": "tuning.extra_modules",
    "infer_dtype": "model.dtype",
    "quantization_bit": "model.quantization_bit",
    "quantization_type": "model.quantization_type",
    "quantization_method": "model.quantization_backend",
    "resume_from_checkpoint": "train.resume",
    "evaluation_strategy": "train.eval_strategy",
    "do_sample": "generate.do_sample",
    "batch_size": "evaluate.predict_batch_size",
}
"""Flat key -> dotted key of ours."""

VALUES: dict[str, dict[Any, Any]] = {
    "objective.name": {"pretrain": "pt"},
    "train.report_to": {"none": ()},
    "train.optim": {
        "adamw_torch_fused": "adamw_torch",
        "adamw_hf": "adamw_torch",
        "adamw_bnb_8bit": "adamw_8bit",
        "rmsprop_bnb": "rmsprop_bnb_32bit",
        "galore_adamw_layerwise": "galore_adamw",
        "apollo_adamw_layerwise": "apollo_adamw",
    },
    "train.resume": {None: "never", False: "never", True: "must"},
    "train.save_total_limit": {None: 0},
    "train.max_steps": {0: -1},
    "train.save_strategy": {False: "no"},
    "train.eval_strategy": {False: "no"},
    "model.dtype": {"float16": "auto", "fp32": "float32", "bf16": "bfloat16"},
    "model.kernels": {False: "off"},
    "model.quantization_backend": {"bnb": "bitsandbytes"},
    "data.max_samples": {None: 0},
    "data.enable_thinking": {None: "none"},
    "model.rope_scaling": {None: "none"},
    "tuning.pissa_iterations": {-1: 0},
    "tuning.name": {
        "adapter": "bottleneck",
        "prefix_tuning": "prefix",
        "prompt_tuning": "prompt",
        "p_tuning": "ptuning",
    },
}
"""Dotted key -> value there -> value here."""

SAID: dict[str, dict[Any, str]] = {
    "train.optim": dict.fromkeys(("galore_adamw_layerwise", "apollo_adamw_layerwise"), compat_training.LAYERWISE),
}
"""Dotted key -> value there that becomes another one here (VALUES) -> what is said about it."""

IGNORED: dict[str, str] = {
    **compat_training.IGNORED,
    **compat_machines.IGNORED,
    "overwrite_cache": "cached tokens are keyed by what they were made from",
    "preprocessing_num_workers": "tokenizing runs in the tokenizer's own threads",
    "preprocessing_batch_size": "tokenizing chooses its own batches",
    "dataloader_num_workers": "rows are packed from a memory-mapped cache; no workers are needed",
    "dataloader_pin_memory": "rows are packed from a memory-mapped cache; no workers are needed",
    "ddp_timeout": "the launcher sets it",
    "use_fast_tokenizer": "fast tokenizers are always used",
    "low_cpu_mem_usage": "weights are always memory-mapped",
    "flash_attn": "attention over packed rows is chosen from what is here",
    "enable_liger_kernel": "luthier has kernels of its own: see `kernels`",
    "use_unsloth": "luthier has kernels of its own: see `kernels`",
    "use_unsloth_gc": "gradient_checkpointing and memory_budget say what is computed again",
    "use_reentrant_gc": "gradient_checkpointing and memory_budget say what is computed again",
    "use_kv_cache": "generation always uses one",
    "print_param_status": "`luthier estimate` prints what learns",
    "cache_dir": "set HF_HOME or LUTHIER_CACHE instead",
    "offload_folder": "weights are always memory-mapped",
    "data_shared_file_system": "every rank reads the same cache",
    "infer_backend": "our decoder answers; engine: vllm takes vLLM where it is installed",
    "max_length": "max_new_tokens bounds an answer, as it does there where both are known",
    "length_penalty": "only beam search reads it",
    "export_device": "tensors are merged one at a time where they lie",
    "export_quantization_dataset": "only export_quantization_bit reads it",
    "export_quantization_nsamples": "only export_quantization_bit reads it",
    "export_quantization_maxlen": "only export_quantization_bit reads it",
    "download_mode": "benchmarks are read from files",
    "quantization_device_map": "`device` says where the model is",
    "upcast_lmhead_output": "log-probabilities are computed in float32",
    "use_v1_kernels": "luthier has kernels of its own: see `kernels`",
    "ms_hub_token": "tokens belong into the environment; they are never written to a run directory",
    "om_hub_token": "tokens belong into the environment; they are never written to a run directory",
    "trust_remote_code": "this model's code comes with transformers; code in the model folder needs allow_remote_code",
    "neat_packing": "packed rows never see each other",
    "init_special_tokens": "new rows begin as the mean of the tokens of their description, or of their own",
    "save_dir": "results go into the run directory, or where --out says",
    "disable_gradient_checkpointing": "it is off unless gradient_checkpointing is set",
    "upcast_layernorm": "norms compute in float32",
    "include_num_input_tokens_seen": "tokens are always counted",
    "ignore_pad_token_for_loss": "there is no padding",
    "remove_unused_columns": "rows become examples; no columns remain",
    "logging_dir": "trackers write into the run directory",
    "full_determinism": "runs on a processor are bit-identical anyway",
    "pissa_convert": "such adapters are always written for the weights as they were",
    "hf_hub_token": "set HF_TOKEN in the environment; tokens are never written to a run directory",
}
"""Key -> why leaving it out changes nothing."""

_VLLM = "it is for infer_backend: vllm; engine: vllm answers with vLLM, vllm_memory_fraction is its share of the GPU"
_SGLANG = "it is for infer_backend: sglang; there is no such engine here, and our decoder answers"
_SPREAD = "it spreads memory over processes and changes no result; for that start with `accelerate launch --use_{}`"
_MULTIMODAL = "it is for pictures, films and sounds; rows and models with those are refused"
IGNORED |= dict.fromkeys(
    (
        *(f"image_{key}" for key in ("max_pixels", "min_pixels", "do_pan_and_scan")),
        *(f"video_{key}" for key in ("max_pixels", "min_pixels", "fps", "maxlen")),
        *("audio_sampling_rate", "use_audio_in_video", "crop_to_patches", "media_dir"),
        *("freeze_vision_tower", "freeze_multi_modal_projector", "freeze_language_model"),
    ),
    _MULTIMODAL,
)
IGNORED |= {
    "deepspeed": _SPREAD.format("deepspeed"),
    **dict.fromkeys(("fsdp", "fsdp_config"), _SPREAD.format("fsdp")),
    **dict.fromkeys((f"vllm_{k}" for k in ("config", "enforce_eager", "gpu_util", "max_lora_rank", "maxlen")), _VLLM),
    **dict.fromkeys((f"sglang_{k}" for k in ("config", "lora_backend", "maxlen", "mem_fraction", "tp_size")), _SGLANG),
}

REFUSED: dict[str, str] = {
    **compat_training.REFUSED,
    **compat_machines.REFUSED,
    "shift_attn": "it changes the mathematics of attention and no model is served that way",
    "mixture_of_depths": "it changes the architecture and no engine serves the result",
    "export_quantization_bit": "quantized files are GGUF here: export_format: gguf with export_quantize: q4_k_m",
    "adapter_folder": "name each folder in adapter_name_or_path",
    "freeze_original_embeddings": "the whole table learns where new tokens have rows; leave it out",
    "export_legacy_format": "`.bin` files are pickles, which run code when they are read; safetensors are written",
    "export_hub_model_id": "look at the folder first, then upload it: `hf upload NAME FOLDER`",
    "reward_model_quantization_bit": "the reward model is loaded like the model",
    "ref_model_quantization_bit": "the reference is loaded like the model",
}
"""Key -> reason and what to do."""

ONLY: dict[str, tuple[tuple[Any, ...], str]] = {
    **compat_training.ONLY,
    "num_beams": ((1,), "answers grow one token at a time, without beams"),
    "eval_num_beams": ((1,), "answers grow one token at a time, without beams"),
    "skip_special_tokens": ((True,), "answers are text without special tokens"),
}
"""Key -> the values that ask for what is done anyway, and why others are refused."""

SWITCHES: dict[str, tuple[str, Any]] = {
    **compat_training.SWITCHES,
    "bf16": ("model.dtype", "bfloat16"),
    "pure_bf16": ("model.dtype", "bfloat16"),
    "fp16": ("model.dtype", "auto"),
    "pissa_init": ("tuning.init", "pissa"),
    "load_in_4bit": ("model.quantization_bit", 4),
    "load_in_8bit": ("model.quantization_bit", 8),
}
"""Key that, when true, sets another one."""


YIELDS = compat_training.YIELDS
"""Dotted key -> a value of it that another key which sets the same may replace."""

WORDS: dict[str, tuple[Any, ...]] = {
    "model.quantization_bit": (4, 8),
    "model.quantization_type": ("nf4", "fp4"),
    "generate.do_sample": (True, False),
}
"""Dotted keys that no section has, and their values: they only count in PRESETS."""

PRESETS: tuple[tuple[dict[str, Any], dict[str, Any]], ...] = (
    ({"model.quantization_bit": 4, "model.quantization_type": "fp4"}, {"model.quantization": "fp4"}),
    ({"model.quantization_bit": 4}, {"model.quantization": "nf4"}),
    ({"model.quantization_bit": 8}, {"model.quantization": "int8"}),
    ({"tuning.name": "qlora", "model.quantization_type": "fp4"}, {"model.quantization": "fp4"}),
    ({"tuning.name": "qlora"}, {"model.quantization": "nf4"}),
    ({"objective.name": "ppo"}, {"rollout.num_generations": 1}),
    ({"train.badam_mode": "ratio"}, {"train.badam_switch_interval": 100}),
    ({"generate.do_sample": True}, {"generate.temperature": 0.95, "generate.top_p": 0.7, "generate.top_k": 50}),
)
"""What is written -> what it sets where that is not set by name. The first that holds goes first."""

TAKES: tuple[tuple[dict[str, Any], str, str], ...] = (
    ({"objective.name": "ppo"}, "rollout.max_completion_length", "generate.max_new_tokens"),
)
"""What is written, a setting, and the one whose value it takes where only that one is named."""

MEANS: dict[str, dict[Any, Any]] = {"tuning.name": {"qlora": "lora"}}
"""Dotted key -> a word for several settings (PRESETS) -> what it is for this one."""


_LOSSES = {"orpo": "orpo", "simpo": "simpo", "kto_pair": "kto"}
BECOMES: tuple[tuple[dict[str, Any], dict[str, Any]], ...] = (
    *(({"objective.name": "dpo", "objective.loss": loss}, {"objective.name": name}) for loss, name in _LOSSES.items()),
    ({"generate.do_sample": False}, {"generate.temperature": 0.0}),
)
"""What is written -> what it stands for instead."""


def has_word_on(key: str) -> bool:
    """Tell whether a table says what becomes of a key."""
    return any(key in table for table in (RENAMED, SWITCHES, IGNORED, REFUSED, ONLY))


def refusal(key: str, value: object) -> str | None:
    """Return why a key may not have this value; None where the value asks for nothing, or the key is not known."""
    if key in ONLY:
        accepted, reason = ONLY[key]
        return None if value is None or value in accepted else reason
    return None if value is None or value is False or value == 0 else REFUSED.get(key)
