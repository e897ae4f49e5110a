"""Where the form shows a setting."""

from __future__ import annotations

GROUPS: dict[str, str] = {
    "model": "Model",
    "numbers": "Number formats and kernels",
    "data": "Data",
    "rows": "How rows are read",
    "objective": "Method",
    "tuning": "What learns",
    "length": "How long and how much",
    "rate": "Learning rate and gradients",
    "optimizer": "Optimizer",
    "memory": "Memory",
    "saving": "Saving and resuming",
    "watching": "Evaluation while training",
    "reports": "Reports",
    "rollout": "Answers while training",
    "rewards": "Rewards",
    "critic": "Critic",
    "generate": "How answers are drawn",
    "evaluate": "Evaluation",
    "export": "Export",
    "serve": "Server",
}
BASIC = frozenset(
    {
        "train.learning_rate",
        "train.num_train_epochs",
        "train.per_device_train_batch_size",
        "train.gradient_accumulation_steps",
        "data.cutoff_len",
        "data.max_samples",
        "data.val_size",
        "train.run_name",
        "tuning.rank",
        "tuning.alpha",
        "tuning.tokens",
        "objective.beta",
        "rollout.rewards",
        "rollout.num_generations",
        "rollout.max_completion_length",
    }
)
"""Settings that are shown before all of them are asked for."""
_BY_KEY: dict[str, tuple[str, ...]] = {
    "numbers": (
        "dtype", "quantization", "double_quantization", "quantization_backend", "device", "kernels", "engine",
        "vllm_memory_fraction", "decode_dtype", "threads", "tf32",
    ),
    "rows": (
        "formatting", "columns", "tags", "pairs", "template", "default_system", "tool_format", "enable_thinking",
        "preserve_thinking", "split_special_tokens", "too_long", "bad_rows", "train_on_prompt", "mask_history",
        "mix_strategy", "interleave_probs", "streaming", "buffer_size", "tokenized_path",
    ),
    "length": (
        "run_name", "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps",
        "cutoff_len", "max_samples", "val_size", "packing", "seed", "data_seed", "disable_shuffling",
    ),
    "rate": (
        "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_ratio", "warmup_steps", "max_grad_norm",
        "neftune_noise_alpha", "moe_aux_loss_coef",
    ),
    "memory": ("gradient_checkpointing", "memory_budget", "offload_dir", "precompute_reference"),
    "saving": (
        "output_dir", "overwrite_output_dir", "save_strategy", "save_steps", "save_total_limit", "save_only_model",
        "resume",
    ),
    "watching": (
        "eval_strategy", "eval_steps", "eval_delay", "compute_accuracy", "eval_on_start",
        "per_device_eval_batch_size", "load_best_model_at_end", "metric_for_best_model", "greater_is_better",
        "early_stopping_steps", "eval_on_each_dataset",
    ),
    "reports": (
        "logging_steps", "logging_strategy", "logging_first_step", "report_to", "project", "use_swanlab",
        "swanlab_project", "swanlab_workspace", "swanlab_run_name", "swanlab_mode", "swanlab_logdir", "plot_loss",
    ),
    "rewards": (
        "rewards", "reward_model", "reward_model_weight", "combine_rewards", "reward_time_limit_seconds",
        "score_clip", "score_scaling", "max_flat_steps",
    ),
    "critic": ("value_model", "critic_model", "critic_learning_rate", "critic_warmup_steps"),
}  # fmt: skip
_GROUP_OF = {key: group for group, keys in _BY_KEY.items() for key in keys}
_OF_SECTION = {"train": "optimizer"}


def group_of(section: str, key: str) -> str:
    """Return the heading of a setting: its own, or that of its section.

    >>> group_of("train", "galore_rank"), group_of("train", "resume"), group_of("tuning", "dropout")
    ('optimizer', 'saving', 'tuning')
    """
    own = None if section in ("tuning", "objective") else _GROUP_OF.get(key)
    return own or _OF_SECTION.get(section, section)
