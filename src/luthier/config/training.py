"""Settings of the loop: steps, optimizer, schedule, memory, checkpoints, evaluation while training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from luthier.config.optimizers import OptimizerConfig
from luthier.config.values import Bytes, Names, Positive, Share

Schedule = Literal[
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
    "cosine_with_min_lr",
    "cosine_warmup_with_min_lr",
    "warmup_stable_decay",
]
"""Schedules that depend on the step alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig(OptimizerConfig):
    """How the loop runs."""

    output_dir: str | None = None
    """Run directory; none makes runs/<time>-<name>."""
    run_name: str | None = None
    """Name shown in lists and used for the run directory."""
    overwrite_output_dir: bool = False
    """Replace a finished run in output_dir; the old one is moved aside, not deleted."""
    per_device_train_batch_size: Positive = 8
    """Rows of one forward pass."""
    gradient_accumulation_steps: Positive = 1
    """Forward passes of one optimizer step."""
    learning_rate: Annotated[float, Field(ge=0)] = 0.0
    """Peak learning rate, reached after warm-up; 0 takes the usual one of the tuning and the objective, and says so."""
    num_train_epochs: Annotated[float, Field(gt=0)] = 3.0
    """Passes over the data."""
    max_steps: Annotated[int, Field(ge=-1)] = -1
    """Optimizer steps; overrides num_train_epochs when above 0."""
    lr_scheduler_type: Schedule = "linear"
    """Course of the learning rate after warm-up, through transformers.get_scheduler."""
    lr_scheduler_kwargs: dict[str, float | int | str] = field(default_factory=dict[str, float | int | str])
    """Settings of the schedule itself, such as min_lr_rate or num_decay_steps."""
    warmup_ratio: Share = 0.0
    """Fraction of all optimizer steps spent warming up."""
    warmup_steps: Annotated[float, Field(ge=0)] = 0
    """Steps spent warming up (below 1: their share); overrides warmup_ratio when above 0."""
    neftune_noise_alpha: Annotated[float, Field(ge=0)] = 0.0
    """Noise on the embeddings while learning, +-alpha / sqrt(tokens of the row x hidden size) (arXiv:2310.05914)."""
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    """Clip the gradient to this norm; 0 does not clip."""
    moe_aux_loss_coef: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the load-balancing loss of a mixture of experts; 0 leaves it out."""
    gradient_checkpointing: bool = False
    """Compute the activations of every layer again in the backward pass: less memory, more time."""
    memory_budget: Bytes | None = None
    """Most memory of the process (of the GPU where one computes), such as 6GB; as few layers as fit are recomputed."""
    offload_dir: str | None = None
    """Folder on a disk where large activations wait for the backward pass; for contexts that fit no other way."""
    precompute_reference: bool | None = None
    """Score all rows with the reference once, before the first step; none means yes if a row is read more than once."""
    seed: Annotated[int, Field(ge=0)] = 42
    """Seed of shuffling, initial adapter weights and dropout."""
    logging_steps: Positive = 1
    """Steps between training lines in events.jsonl."""
    logging_strategy: Literal["steps", "epoch", "no"] = "steps"
    """When to write training lines; the last step always does."""
    logging_first_step: bool = False
    """Write a line for the first step, too."""
    save_strategy: Literal["steps", "epoch", "no"] = "steps"
    """When to write checkpoints; the end is always saved."""
    save_steps: Positive = 500
    """Steps between checkpoints."""
    save_total_limit: Annotated[int, Field(ge=0)] = 0
    """Checkpoints kept, newest first, besides the best; 0 keeps all."""
    save_only_model: bool = False
    """Leave optimizer and random states out of checkpoints; such a run cannot be resumed."""
    eval_strategy: Literal["steps", "epoch", "no"] | None = None
    """When to evaluate; none means steps when there are evaluation rows."""
    eval_steps: Positive = 500
    """Steps between evaluations."""
    eval_delay: Annotated[float, Field(ge=0)] = 0.0
    """Epochs (eval_strategy: epoch) or steps before which nothing is evaluated."""
    compute_accuracy: bool = False
    """Also tell in evaluation how often the right token is the most probable one: eval_accuracy."""
    eval_on_start: bool = False
    """Evaluate before the first step, too."""
    per_device_eval_batch_size: Positive = 8
    """Rows of one forward pass in evaluation."""
    load_best_model_at_end: bool = False
    """Keep the best checkpoint as the result."""
    metric_for_best_model: str | None = None
    """Metric of evaluation that tells the best checkpoint; none takes eval_reward where answers are graded, else
    eval_loss."""
    greater_is_better: bool | None = None
    """Whether that metric shall rise; none means yes unless its name ends in loss."""
    early_stopping_steps: Annotated[int, Field(ge=0)] = 0
    """Stop after this many evaluations without improvement; 0 never stops early."""
    resume: str = "never"
    """never, auto (if there is a checkpoint), must, or the path of a checkpoint."""
    report_to: Names = ()
    """Trackers through accelerate, such as tensorboard, wandb, mlflow or swanlab; all takes those that are installed.
    events.jsonl is always written."""
    project: str = "tracker"
    """Project that trackers file the run under."""
    use_swanlab: bool = False
    """Report to SwanLab, too."""
    swanlab_project: str | None = None
    """Project in SwanLab; none takes `project`."""
    swanlab_workspace: str | None = None
    """Workspace in SwanLab."""
    swanlab_run_name: str | None = None
    """Name of the run in SwanLab; none takes run_name."""
    swanlab_mode: Literal["cloud", "local", "offline", "disabled"] | None = None
    """Where SwanLab keeps the run; none leaves it to SwanLab."""
    swanlab_logdir: str | None = None
    """Folder of local runs of SwanLab."""
    tf32: bool | None = None
    """Products of float32 on a GPU in TF32: faster, with 10 bits of mantissa; none leaves it to torch."""
    plot_loss: bool = True
    """Draw training_loss.png at the end."""
