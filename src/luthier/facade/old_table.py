"""Old names of TRL's and transformers' arguments, and what became of each. Data alone: nothing is imported here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class To:
    """The argument has another name today."""

    name: str
    values: Mapping[Any, Any] | None = None
    """Old value -> value of today, where those changed, too; other old values say what the default says."""


@dataclass(frozen=True, slots=True)
class Without:
    """The argument is left out, because what it did happens anyway or nowhere."""

    why: str


@dataclass(frozen=True, slots=True)
class Unless:
    """The argument is left out at values that change nothing, and refused at others."""

    harmless: tuple[Any, ...]
    why: str


@dataclass(frozen=True, slots=True)
class Ours:
    """The library has no successor, and the façade does what the argument says."""

    how: str


TESTED = "1.16"
"""Version of TRL that this was written for."""

Entry = To | Without | Unless | Ours
Table = Mapping[str, Entry]

_WRITTEN = "weights are always written as safetensors"
_MEMORY = "it was another library's own switch of memory, which our chunks do without"

ARGUMENTS: Table = {
    "warmup_ratio": To("warmup_steps"),
    "evaluation_strategy": To("eval_strategy"),
    "no_cuda": To("use_cpu"),
    "group_by_length": To("train_sampling_strategy", {True: "group_by_length"}),
    "per_gpu_train_batch_size": To("per_device_train_batch_size"),
    "per_gpu_eval_batch_size": To("per_device_eval_batch_size"),
    "adafactor": To("optim", {True: "adafactor"}),
    "push_to_hub_model_id": To("hub_model_id"),
    "push_to_hub_token": To("hub_token"),
    "include_tokens_per_second": Without("speed is reported by the trainer's own metrics"),
    "use_liger": To("use_liger_kernel"),
    "logging_dir": Without("trackers choose their folder; for TensorBoard set TENSORBOARD_LOGGING_DIR"),
    "overwrite_output_dir": Without("a trainer writes into its output_dir either way"),
    "save_safetensors": Unless((True, None), _WRITTEN),
    "fp16_backend": Without("torch chooses it"),
    "half_precision_backend": Without("torch chooses it"),
    "fp16_opt_level": Without("it belonged to apex"),
    "use_mps_device": Without("the device is found"),
    "use_ipex": Without("torch computes"),
    "jit_mode_eval": Unless((False, None), "torch has no such mode any more"),
    "torchdynamo": Without("use torch_compile"),
    "include_inputs_for_metrics": To("include_for_metrics", {True: ["inputs"]}),
    "dispatch_batches": Unless((False, None), "set accelerator_config={'dispatch_batches': ...}"),
    "split_batches": Unless((False, None), "set accelerator_config={'split_batches': ...}"),
    "past_index": Unless((-1, None), "models keep no past between batches"),
    "ray_scope": Without("searches have their own settings"),
    "mp_parameters": Without("it belonged to SageMaker"),
    "tpu_num_cores": Without("the launcher knows"),
}
"""What transformers.TrainingArguments and everything below it knew."""

_LENGTHS: Table = {
    "max_prompt_length": Ours("the end of longer prompts is kept, by us"),
    "max_completion_length": Ours("longer answers are cut, by us"),
    "max_target_length": Ours("longer answers are cut, by us"),
}
_PREFERENCE: Table = {
    **_LENGTHS,
    "label_pad_token_id": Without("labels are masked with -100"),
    "padding_value": Without("the tokenizer's padding token is used"),
    "is_encoder_decoder": Unless((False, None), "only decoders are trained"),
    "generate_during_eval": Unless((False, None), "TRL generates no samples in evaluation any more"),
    "model_adapter_name": Unless(("default", None), "the adapter called default learns"),
    "ref_adapter_name": Unless((None, "ref", "reference"), "the reference is the model with its adapter off"),
    "reference_free": Unless((False, None), "TRL has no objective without a reference any more"),
    "force_use_ref_model": Without("a ref_model that is given is used"),
    "ref_model_init_kwargs": Unless((None,), "load the reference yourself and pass it as ref_model"),
    "use_logits_to_keep": Without("logits are never kept"),
    "base_model_attribute_name": Without("it is found"),
    "use_num_logits_to_keep": Without("logits are never kept"),
    "tools": Unless((None,), "put them into a column called tools"),
}
_ROLLOUTS: Table = {
    "max_prompt_length": _LENGTHS["max_prompt_length"],
    "vllm_sampling_params": Ours("read into temperature, top_p, top_k, min_p and the like"),
    "unsloth_num_chunks": Without(_MEMORY),
    "unsloth_logit_chunk_multiplier": Without(_MEMORY),
    "unsloth_grpo_mini_batch": Without(_MEMORY),
    "vllm_device": Without("vLLM runs beside the training on its GPU"),
    "vllm_dtype": Without("vLLM takes the model's"),
    "vllm_max_model_len": To("vllm_max_model_length"),
    "vllm_enable_prefix_caching": Without("vLLM decides"),
    "vllm_guided_decoding_regex": To("vllm_structured_outputs_regex"),
}
CONFIGS: Mapping[str, Table] = {
    "TrainingArguments": {},
    "SFTConfig": {
        "max_seq_length": To("max_length"),
        "dataset_batch_size": Without("rows are tokenized one by one"),
        "num_of_sequences": Without("rows are packed as they fit"),
        "chars_per_token": Without("rows are packed by their tokens"),
    },
    "DPOConfig": {**_PREFERENCE, "rpo_alpha": Ours("the answer's own loss is added with this weight")},
    "KTOConfig": _PREFERENCE,
    "ORPOConfig": _PREFERENCE,
    "CPOConfig": _PREFERENCE,
    "RewardConfig": {"max_seq_length": To("max_length")},
    "GRPOConfig": _ROLLOUTS,
    "RLOOConfig": _ROLLOUTS,
    "GKDConfig": {"max_seq_length": To("max_length")},
    "OnlineDPOConfig": {},
}
"""Class of settings -> its own old names, beside those of `ARGUMENTS`."""

TRAINER_ARGUMENTS: Table = {
    "tokenizer": To("processing_class"),
    "infinite": Without("max_steps ends a training"),
    "model_init_kwargs": Unless((None,), "the model is loaded before it is trained"),
    "model_init": Unless((None,), "pass the model itself"),
}
"""Old names of trainers; whatever else their settings know is moved there."""

CONFIG_OF: Mapping[str, tuple[str, str]] = {
    "SFTTrainer": ("trl.trainer.sft_config", "SFTConfig"),
    "DPOTrainer": ("trl.trainer.dpo_config", "DPOConfig"),
    "KTOTrainer": ("trl.trainer.kto_config", "KTOConfig"),
    "RewardTrainer": ("trl.trainer.reward_config", "RewardConfig"),
    "GRPOTrainer": ("trl.trainer.grpo_config", "GRPOConfig"),
    "RLOOTrainer": ("trl.trainer.rloo_config", "RLOOConfig"),
    "ORPOTrainer": ("trl.experimental.orpo.orpo_config", "ORPOConfig"),
    "CPOTrainer": ("trl.experimental.cpo.cpo_config", "CPOConfig"),
    "GKDTrainer": ("trl.experimental.gkd.gkd_config", "GKDConfig"),
    "OnlineDPOTrainer": ("trl.experimental.online_dpo.online_dpo_config", "OnlineDPOConfig"),
    "Trainer": ("transformers.training_args", "TrainingArguments"),
}
"""Trainer -> module and name of its settings."""

CLASSES: Mapping[str, str] = {
    **dict(CONFIG_OF.values()),
    **{module.replace("_config", "_trainer"): name for name, (module, _) in CONFIG_OF.items() if "_config" in module},
    "transformers.trainer": "Trainer",
    "transformers.training_args_seq2seq": "Seq2SeqTrainingArguments",
    "luthier.facade.trainers": "UnslothTrainingArguments",
}
"""Module -> the class in it whose arguments are translated."""

MOVED: Mapping[str, str] = {
    "ORPOConfig": "trl.experimental.orpo",
    "ORPOTrainer": "trl.experimental.orpo",
    "CPOConfig": "trl.experimental.cpo",
    "CPOTrainer": "trl.experimental.cpo",
    "GKDConfig": "trl.experimental.gkd",
    "GKDTrainer": "trl.experimental.gkd",
    "OnlineDPOConfig": "trl.experimental.online_dpo",
    "OnlineDPOTrainer": "trl.experimental.online_dpo",
}
"""What `from trl import` gave, and where it is today."""

_VALUE_HEAD = "a critic belongs to `luthier train` with stage: ppo"
GONE: Mapping[str, str] = {
    "PPOConfig": "TRL has no PPO any more; `luthier train` has, with stage: ppo",
    "PPOTrainer": "TRL has no PPO any more; `luthier train` has, with stage: ppo",
    "AutoModelForCausalLMWithValueHead": _VALUE_HEAD,
    "DataCollatorForCompletionOnlyLM": "use luthier.chat_templates.train_on_responses_only(trainer)",
    "setup_chat_format": "use luthier.chat_templates.get_chat_template(tokenizer, 'chatml')",
    "ConstantLengthDataset": "set packing=True in SFTConfig",
    "BCOConfig": "TRL has no BCO any more; KTOConfig is its nearest relative",
    "BCOTrainer": "TRL has no BCO any more; KTOTrainer is its nearest relative",
}
"""What `from trl import` gave, and what to do instead."""

ELSEWHERE: Mapping[str, Any] = {
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "learning_rate": 5e-5,
    "weight_decay": 0.001,
    "optim": "adamw_8bit",
    "warmup_steps": 0.1,
    "logging_steps": 1,
}
"""Defaults that scripts for other libraries may count on where they say nothing; TRL's hold, and that is said."""
