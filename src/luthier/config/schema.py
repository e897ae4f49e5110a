"""Every setting, declared once: type, limits, default and, under the field, its help.

Command line, YAML, JSON schema and reference page are derived from these classes. Field names are unique over
all sections, so that a flat file needs no section headers; names that fine-tuning users know keep their spelling.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from luthier.config.evaluation import EvaluateConfig
from luthier.config.values import Bytes, Names, Numbers, Positive, Share, split_commas
from luthier.core.types import Sampling


def _as_part(value: object) -> object:
    """Read a bare name, or name, weight and whatever else as settings."""
    if isinstance(value, str):
        return {"name": value}
    if not isinstance(value, dict) or "settings" in value:
        return value
    named = {key: each for key, each in value.items() if key in ("name", "weight")}
    return {**named, "settings": {key: each for key, each in value.items() if key not in named}}


@dataclass(frozen=True, kw_only=True, slots=True)
class NamedPart:
    """A thing from a shelf, by name, with settings of its own."""

    name: str
    """Name on the shelf, module:attribute, or FILE.py:attribute."""
    weight: float = 1.0
    """Weight in a sum."""
    settings: dict[str, Any] = field(default_factory=dict[str, Any])
    """Fields of the thing."""


Part = Annotated[NamedPart, BeforeValidator(_as_part)]
Parts = Annotated[tuple[Part, ...], BeforeValidator(split_commas)]
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
class ModelConfig:
    """Which model, and in what form it is loaded."""

    model_name_or_path: str
    """Alias (see `luthier models`), folder, run directory, checkpoint, or hub name."""
    adapter_name_or_path: Names = ()
    """Adapter folders, run directories or checkpoints: the last is trained on, those before it are merged first."""
    create_new_adapter: bool = False
    """Merge every adapter and train a new one on top."""
    more_adapters: dict[str, str] = field(default_factory=dict[str, str])
    """Name -> folder of adapters to switch between while answering: /adapter NAME in a chat."""
    ref_model: str | None = None
    """Model, adapter or run that objectives compare with; none means the model as it was before this run."""
    model_revision: str = "main"
    """Hub branch, tag or commit."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of frozen weights and activations; auto takes what is fast here and says so."""
    quantization: Literal["none", "nf4", "fp4", "int8"] = "none"
    """Keep the linear layers frozen in 4 bits (nf4, fp4) or 8 (int8); an adapter learns on top (arXiv:2305.14314)."""
    double_quantization: bool = True
    """Keep the scales of 4-bit weights in 8 bits, too: 4.1 bits a weight instead of 4.5."""
    quantization_backend: Literal["auto", "luthier", "bitsandbytes"] = "auto"
    """Whose quantized layers compute; auto takes what is faster here and says so."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""
    kernels: Literal["auto", "off"] = "auto"
    """off gives the plain transformers model back."""
    engine: Literal["auto", "local", "hf", "vllm"] = "auto"
    """What generates answers: our decoder (local), transformers (hf) where that cannot read the model, or vLLM."""
    vllm_memory_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """Share of the GPU's memory for vLLM's copy of the weights and its pages; the rest is left to training."""
    decode_dtype: Literal["auto", "float32", "bfloat16", "int8"] = "auto"
    """Number format of weights while answering; auto keeps `dtype`; int8, of our decoder, is fastest and rounds."""
    threads: Annotated[int, Field(ge=0)] = 0
    """Processor threads; 0 uses every core that the process may use."""
    allow_remote_code: bool = False
    """Run Python files that the model folder brings. Only for code you have read."""
    allow_pickle: bool = False
    """Load `.bin` weights, with torch's weights-only reader."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Which rows, and how they become tokens."""

    dataset: Names = ()
    """Names in dataset_info.json or files (json, jsonl, csv, parquet, txt), separated by commas."""
    eval_dataset: Names = ()
    """Rows to evaluate on, named like `dataset`."""
    dataset_dir: str = "data"
    """Folder with dataset_info.json; REMOTE:name reads it from a hub data set."""
    formatting: str = "auto"
    """Row format of files given by path: auto, or a name on the format shelf (alpaca, sharegpt, openai, text)."""
    columns: dict[str, str] = field(default_factory=dict[str, str])
    """Role of a column -> its name in files given by path, as in dataset_info.json."""
    tags: dict[str, str] = field(default_factory=dict[str, str])
    """Names of roles inside conversations, as in dataset_info.json."""
    pairs: bool | None = None
    """Rows of files given by path hold a chosen and a rejected answer; none tells by the columns."""
    template: str | None = None
    """Chat template by name; none uses the tokenizer's own."""
    default_system: str | None = None
    """System text for rows that have none."""
    enable_thinking: bool | None = None
    """Passed to chat templates that know it."""
    cutoff_len: Positive = 2048
    """Most tokens of one sequence."""
    too_long: Literal["cut", "skip", "fail"] = "cut"
    """What to do with longer rows; counted and said either way."""
    bad_rows: Literal["fail", "skip"] = "fail"
    """What to do with rows that cannot be trained on; skip counts and lists them."""
    train_on_prompt: bool = False
    """Learn the whole conversation instead of the answers only."""
    mask_history: bool = False
    """Learn only the last answer of a conversation."""
    max_samples: Annotated[int, Field(ge=0)] = 0
    """Most rows of each data set; 0 takes all."""
    val_size: Annotated[float, Field(ge=0)] = 0.0
    """Held-out part of `dataset`: a share below 1, a count from 1 on."""
    mix_strategy: Literal["concat", "interleave_under", "interleave_over"] = "concat"
    """How several data sets mix: all rows, or draws until the first (under) or the last (over) is used up."""
    interleave_probs: Numbers = ()
    """Weight of each data set when interleaving; empty draws evenly."""
    streaming: bool = False
    """Read and tokenize rows while training; needs max_steps."""
    buffer_size: Positive = 16384
    """Rows that are shuffled among each other when streaming."""
    packing: bool | None = None
    """Fill each batch up to cutoff_len tokens instead of a fixed number of rows; none means yes for pt only."""
    disable_shuffling: bool = False
    """Keep the rows in their order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
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
    optim: Literal["adamw_torch", "adamw_8bit", "muon", "sgd", "adafactor", "rmsprop", "adagrad"] = "adamw_torch"
    """Optimizer; adamw_8bit keeps its state in 8 bits (bitsandbytes), muon (arXiv:2502.16982) is for matrices only."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay, on matrices only."""
    adam_beta1: Share = 0.9
    """Decay of the first moment."""
    adam_beta2: Share = 0.999
    """Decay of the second moment."""
    adam_epsilon: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the denominator."""
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
    eval_on_start: bool = False
    """Evaluate before the first step, too."""
    per_device_eval_batch_size: Positive = 8
    """Rows of one forward pass in evaluation."""
    load_best_model_at_end: bool = False
    """Keep the checkpoint with the lowest eval_loss as the result."""
    early_stopping_steps: Annotated[int, Field(ge=0)] = 0
    """Stop after this many evaluations without improvement; 0 never stops early."""
    resume: str = "never"
    """never, auto (if there is a checkpoint), must, or the path of a checkpoint."""
    report_to: Names = ()
    """Trackers through accelerate, such as tensorboard; events.jsonl is always written."""
    plot_loss: bool = True
    """Draw training_loss.png at the end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutConfig:
    """How prompts are answered and graded while training; for objectives that learn from the policy's own answers.

    One step answers per_device_train_batch_size x gradient_accumulation_steps x rollout_minibatches prompts and answers
    in all, num_generations to each prompt, and learns from them.
    """

    num_generations: Positive = 8
    """Answers to one prompt."""
    max_completion_length: Positive = 256
    """Most tokens of an answer, end-of-turn included."""
    rollout_temperature: Annotated[float, Field(gt=0)] = 1.0
    """Temperature of the draws; ratios, KL and entropy are those of the tempered distribution."""
    rollout_top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Draw from the smallest set of tokens whose probability reaches this share."""
    rollout_top_k: Annotated[int, Field(ge=0)] = 0
    """Draw from this many tokens; 0 draws from all."""
    rollout_epochs: Positive | None = None
    """Passes over the answers of a step; none takes the objective's: 4 for ppo, 1 for others."""
    rollout_minibatches: Positive | None = None
    """Updates of one pass; none takes the objective's: 4 for gspo, 1 for others."""
    rollout_ahead: Annotated[int, Field(ge=0, le=1)] = 0
    """1 answers the prompts of the next step while this one trains, with weights that are one step old; 0 does not."""
    rewards: Parts = ()
    """What grades answers: names, or {name, weight, settings of its own}; also module:function and FILE.py:function."""
    reward_model: str | None = None
    """Folder of a reward model that grades answers, too."""
    reward_model_weight: float = 1.0
    """Its weight in the sum of rewards."""
    combine_rewards: Literal["sum", "normalize"] = "sum"
    """sum: add up weighted rewards; normalize: bring each to mean 0 and deviation 1 in its group first."""
    reward_time_limit_seconds: Annotated[float, Field(gt=0)] = 10.0
    """A reward that takes longer counts as missing."""
    environment: Part | None = None
    """Where prompts come from instead of a data set, and what answers to answers: {name, settings of its own}."""
    max_turns: Positive = 1
    """Most answers of the model in one episode with an environment."""
    cut_off: Literal["keep", "mask", "penalize"] = "keep"
    """Answers that reach max_completion_length: learned from like others, left out of the loss, or graded lower."""
    cut_off_penalty: Annotated[float, Field(ge=0)] = 1.0
    """Taken from the reward of cut-off answers where they are penalized."""
    old_logp: Literal["trainer", "engine"] = "trainer"
    """Whose log-probabilities of the answers the ratio is formed with."""
    importance_cap: Annotated[float, Field(ge=0)] = 0.0
    """Weigh tokens by the ratio trainer / engine, at most this (2 is usual); 0 does not."""
    max_resample_rounds: Positive = 10
    """Rounds of answers in one step while too few groups differ in reward (on_equal_rewards: resample)."""
    too_few_groups: Literal["go_on", "stop"] = "go_on"
    """What follows when the rounds are used up."""
    max_flat_steps: Positive = 10
    """Steps in a row without any difference in reward until the run stops."""
    score_clip: Annotated[float, Field(ge=0)] = 0.0
    """Keep rewards within plus and minus this number; 0 does not."""
    score_scaling: bool = False
    """Divide rewards by their running deviation."""
    value_model: Literal["separate", "shared"] = "separate"
    """Of ppo: a model of its own, or a second head on the policy."""
    critic_model: str | None = None
    """What a separate value model begins as; none takes the reward model, or else the policy with a fresh head."""
    critic_learning_rate: Annotated[float, Field(ge=0)] = 0.0
    """Peak learning rate of the value model; 0 takes the usual one of the tuning for supervised rows."""
    critic_warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps in which only the value model learns."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportConfig:
    """What `luthier export` writes."""

    export_dir: str | None = None
    """Folder to write; none writes export/<format> inside the run directory."""
    export_format: Literal["merged", "adapter", "gguf", "gguf_adapter", "ollama", "all"] = "merged"
    """merged: a whole model; adapter: only what was trained; gguf: for llama.cpp; gguf_adapter: a LoRA for it;
    ollama: GGUF with its Modelfile;
    all: each of them that this model has."""
    export_dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Number format of merged weights; none keeps that of the base model."""
    export_size: Annotated[float, Field(gt=0)] = 5.0
    """Largest file of safetensors, in gigabytes."""
    export_quantize: Names = ("q8_0",)
    """Forms of GGUF files, one file each: f32, f16, bf16, q8_0, q5_0, q4_0, and q6_k, q5_k_m, q4_k_m and others of
    llama.cpp's."""
    export_imatrix: str | None = None
    """File with importances of weights (llama-imatrix) for GGUF files of few bits."""
    export_verify: bool = True
    """Read what was written back, run it, and compare it with the model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeConfig:
    """How `luthier serve` listens."""

    host: str = "127.0.0.1"
    """Address to listen on; others than loopback need a key."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """Port to listen on; 0 takes a free one."""
    served_model_name: str | None = None
    """What clients call the model; none takes the name of its folder or alias."""
    api_keys: str | None = None
    """File of keys that let clients in, made by `luthier keys add`; it holds their hashes."""
    allow_without_key: bool = False
    """Let everybody in who reaches an address that is not loopback."""
    allowed_origins: Names = ()
    """Origins of pages, such as https://example.org, whose scripts may ask; those of this machine always may."""
    max_concurrent: Positive = 32
    """Most answers that grow together; others wait."""
    max_queue: Annotated[int, Field(ge=0)] = 64
    """Most answers that wait; further requests are told to come again later (429)."""
    max_body_bytes: Annotated[int, Field(ge=1024)] = 10_000_000
    """Largest request; more is refused unread (413)."""
    request_timeout_seconds: Annotated[float, Field(gt=0)] = 600.0
    """Longest time of one request, waiting included."""
    shutdown_grace_seconds: Annotated[float, Field(ge=0)] = 20.0
    """After a signal to stop, what runs may go on this long."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """Everything that a command needs, resolved."""

    model: ModelConfig
    data: DataConfig = field(default_factory=DataConfig)
    tuning: Any = None
    """An instance from the tuning shelf."""
    objective: Any = None
    """An instance from the objectives shelf."""
    train: TrainConfig = field(default_factory=TrainConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    generate: Sampling = field(default_factory=Sampling)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    serve: ServeConfig = field(default_factory=ServeConfig)


SECTIONS: dict[str, type] = {
    "model": ModelConfig,
    "data": DataConfig,
    "train": TrainConfig,
    "rollout": RolloutConfig,
    "generate": Sampling,
    "evaluate": EvaluateConfig,
    "export": ExportConfig,
    "serve": ServeConfig,
}
"""Sections with a fixed class; tuning and objective take their class from a shelf."""
