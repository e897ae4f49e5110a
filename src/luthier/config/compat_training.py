"""Keys of LLaMA-Factory and of transformers' TrainingArguments that say how to train: only the exceptions.

The tables have the same shape as those of `compat`, which takes them in.
"""

from __future__ import annotations

from typing import Any

RENAMED: dict[str, str] = {
    "label_smoothing_factor": "objective.label_smoothing_factor",
    "asft_alpha": "objective.asft_alpha",
    "eaft_alpha": "objective.eaft_alpha",
    "ld_alpha": "objective.ld_alpha",
    "expand_layers": "tuning.expand",
    "activation_checkpointing": "train.gradient_checkpointing",
    "per_gpu_train_batch_size": "train.per_device_train_batch_size",
    "per_gpu_eval_batch_size": "train.per_device_eval_batch_size",
}

SWITCHES: dict[str, tuple[str, Any]] = {
    "use_cpu": ("model.device", "cpu"),
    "no_cuda": ("model.device", "cpu"),
    "use_llama_pro": ("tuning.llama_pro", True),
    "use_galore": ("train.optim", "galore_adamw"),
    "use_apollo": ("train.optim", "apollo_adamw"),
    "use_badam": ("train.optim", "badam"),
    "use_adam_mini": ("train.optim", "adam_mini"),
    "use_muon": ("train.optim", "muon"),
    "use_dft_loss": ("objective.token_loss", "dft"),
    "use_asft_loss": ("objective.token_loss", "asft"),
    "use_eaft_loss": ("objective.token_loss", "eaft"),
}

LAYERWISE = "the update is the same; gradients of all layers are kept until the step, and max_grad_norm applies"

IGNORED: dict[str, str] = {
    "galore_layerwise": LAYERWISE,
    "apollo_layerwise": LAYERWISE,
    "badam_verbose": "which layer learns follows from badam_switch_mode and the step",
    "apollo_scale_front": "the limiter compares norms of successive updates, which a constant factor does not change",
    "dataloader_persistent_workers": "rows are packed from a memory-mapped cache; no workers are needed",
    "dataloader_prefetch_factor": "rows are packed from a memory-mapped cache; no workers are needed",
    "dataloader_multiprocessing_context": "rows are packed from a memory-mapped cache; no workers are needed",
    "dataloader_in_order": "rows are packed from a memory-mapped cache; no workers are needed",
    "accelerator_config": "rows are packed from a memory-mapped cache; no workers are needed",
    "dispatch_batches": "rows are packed from a memory-mapped cache; no workers are needed",
    "split_batches": "rows are packed from a memory-mapped cache; no workers are needed",
    "group_by_length": "rows are packed without padding, so rows of equal length save nothing",
    "train_sampling_strategy": "rows are packed without padding, so rows of equal length save nothing",
    "length_column_name": "rows are packed without padding, so rows of equal length save nothing",
    "sortish_sampler": "rows are packed without padding, so rows of equal length save nothing",
    "dataloader_drop_last": "a step is divided by what it holds, so a smaller last one needs no dropping",
    "average_tokens_across_devices": "losses are divided once by the tokens of all processes",
    "bf16_full_eval": "evaluation computes in the number format of training",
    "fp16_full_eval": "evaluation computes in the number format of training",
    "activation_checkpointing_kwargs": "gradient_checkpointing and memory_budget say what is recomputed",
    "gradient_checkpointing_kwargs": "gradient_checkpointing and memory_budget say what is recomputed",
    "recompute_granularity": "gradient_checkpointing and memory_budget say what is recomputed",
    "torch_compile": "luthier has kernels of its own, which are compiled beforehand: see `kernels`",
    "torch_compile_backend": "luthier has kernels of its own, which are compiled beforehand: see `kernels`",
    "torch_compile_mode": "luthier has kernels of its own, which are compiled beforehand: see `kernels`",
    "torchdynamo": "luthier has kernels of its own, which are compiled beforehand: see `kernels`",
    "jit_mode_eval": "luthier has kernels of its own, which are compiled beforehand: see `kernels`",
    "use_liger_kernel": "luthier has kernels of its own, which are compiled beforehand: see `kernels`",
    "liger_kernel_config": "luthier has kernels of its own, which are compiled beforehand: see `kernels`",
    "use_cache": "training keeps no cache, generation always uses one",
    "torch_empty_cache_steps": "memory is planned beforehand: see memory_budget",
    "skip_memory_metrics": "memory is planned beforehand: see memory_budget",
    "auto_find_batch_size": "the batch size stays as it is set; memory_budget makes a batch fit",
    "log_on_each_node": "the run directory is written by the first process alone",
    "save_on_each_node": "the run directory is written by the first process alone",
    "logging_nan_inf_filter": "a loss that is not finite stops the run",
    "log_level": "how much is said is set by LUTHIER_LOG_LEVEL",
    "log_level_replica": "how much is said is set by LUTHIER_LOG_LEVEL",
    "disable_tqdm": "the progress bar is shown on a terminal only",
    "trackio_space_id": "set it in the environment of the tracker",
    "trackio_bucket_id": "set it in the environment of the tracker",
    "trackio_static_space_id": "set it in the environment of the tracker",
    "swanlab_lark_webhook_url": "set it in the environment of the tracker",
    "swanlab_api_key": "set it in the environment; keys are never written to a run directory",
    "swanlab_lark_secret": "set it in the environment; keys are never written to a run directory",
    "prediction_loss_only": "evaluation adds up sums and keeps no predictions",
    "eval_do_concat_batches": "evaluation adds up sums and keeps no predictions",
    "eval_use_gather_object": "evaluation adds up sums and keeps no predictions",
    "eval_accumulation_steps": "evaluation adds up sums and keeps no predictions",
    "include_for_metrics": "evaluation adds up sums and keeps no predictions",
    "batch_eval_metrics": "evaluation adds up sums and keeps no predictions",
    "use_legacy_prediction_loop": "evaluation adds up sums and keeps no predictions",
    "enable_jit_checkpoint": "checkpoints are written on every stop signal",
    "hub_private_repo": "it only matters with push_to_hub",
    "hub_model_id": "it only matters with push_to_hub",
    "hub_strategy": "it only matters with push_to_hub",
    "hub_always_push": "it only matters with push_to_hub",
    "hub_revision": "it only matters with push_to_hub",
    "hub_token": "set HF_TOKEN in the environment; tokens are never written to a run directory",
    "push_to_hub_token": "set HF_TOKEN in the environment; tokens are never written to a run directory",
    "ignore_data_skip": "a resumed run reads what it would have read, at no cost",
    "restore_callback_states_from_checkpoint": "a checkpoint holds all that goes on from step to step",
    "label_names": "rows become examples; no columns remain",
    "ddp_find_unused_parameters": "accelerate chooses how gradients are exchanged",
    "ddp_bucket_cap_mb": "accelerate chooses how gradients are exchanged",
    "ddp_broadcast_buffers": "accelerate chooses how gradients are exchanged",
    "ddp_static_graph": "accelerate chooses how gradients are exchanged",
    "ddp_backend": "accelerate chooses how gradients are exchanged",
    "local_rank": "accelerate chooses how gradients are exchanged",
    "generation_config": "see the settings of generation",
    "generation_max_length": "see the settings of generation",
    "fp16_opt_level": "the number format follows from dtype",
    "half_precision_backend": "the number format follows from dtype",
    "include_tokens_per_second": "tokens per second are always told",
    "save_safetensors": "weights are always written so",
    "include_effective_tokens_per_second": "tokens per second are always told",
}

REFUSED: dict[str, str] = {
    "optim_args": "write them as settings of their own, such as galore_rank or adam_beta1",
    "optim_target_modules": "write galore_target or apollo_target",
    "push_to_hub": "publish the result yourself: `hf upload NAME RUN_DIRECTORY`, or the folder of `luthier export`",
    "parallelism_config": "start with `accelerate launch` and its options instead",
    "tensor_model_parallel_size": "luthier splits rows over processes, not layers; start with `accelerate launch`",
    "pipeline_model_parallel_size": "luthier splits rows over processes, not layers; start with `accelerate launch`",
    "expert_model_parallel_size": "luthier splits rows over processes, not layers; start with `accelerate launch`",
    "context_parallel_size": "long rows fit by memory_budget and offload_dir on one device",
    "sequence_parallel": "long rows fit by memory_budget and offload_dir on one device",
    "tpu_num_cores": "luthier computes on processors and NVIDIA GPUs",
    "debug": "it is for TPUs; a loss that is not finite is always named with its rows",
    "past_index": "no model of today has this output",
    "profiler": "`luthier estimate` measures what a step takes",
}

ONLY: dict[str, tuple[tuple[Any, ...], str]] = {
    "generation_num_beams": ((1,), "answers grow one token at a time, without beams"),
}

YIELDS: dict[str, Any] = {"train.optim": "adamw_torch"}
