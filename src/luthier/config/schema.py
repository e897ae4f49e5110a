"""Every setting, declared once: type, limits, default and, under the field, its help.

Command line, YAML, JSON schema and reference page are derived from these classes. Field names are unique over
all sections, so that a flat file needs no section headers; names that fine-tuning users know keep their spelling.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from pydantic import Field

from luthier.config.evaluation import EvaluateConfig
from luthier.config.rollout import RolloutConfig
from luthier.config.training import TrainConfig
from luthier.config.values import Descriptions, Names, Numbers, Positive
from luthier.core.types import Sampling


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
    ref_model_adapters: Names = ()
    """Adapters on `ref_model`, or on the model itself where that is not given, that objectives compare with."""
    model_revision: str = "main"
    """Hub branch, tag or commit."""
    rope_scaling: Literal["none", "linear", "dynamic", "yarn", "llama3"] = "none"
    """Stretch rotary positions to sequences of `rope_length` tokens: linear (arXiv:2306.15595), dynamic NTK, yarn
    (arXiv:2309.00071), or Llama 3's way."""
    rope_length: Annotated[int, Field(ge=0)] = 0
    """Longest sequence that rope_scaling makes room for; 0 takes cutoff_len."""
    add_tokens: Names = ()
    """Ordinary tokens to add to the vocabulary, separated by commas."""
    add_special_tokens: Names = ()
    """Special tokens to add; answers are shown without them, and where a message spells one it is the token."""
    new_special_tokens_config: Descriptions = field(default_factory=dict[str, str])
    """More of them, each with a text; its row begins as the mean of the text's tokens. A mapping, or its YAML file."""
    resize_vocab: bool = False
    """Add the special tokens that the named template needs and the tokenizer lacks."""
    train_from_scratch: bool = False
    """Begin with random weights instead of the model's."""
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

    def __post_init__(self) -> None:
        words = dict.fromkeys((*self.add_special_tokens, *self.new_special_tokens_config))
        object.__setattr__(self, "add_special_tokens", tuple(words))

    @property
    def has_own_words(self) -> bool:
        """Tell whether words are added to the vocabulary."""
        return bool(self.add_tokens or self.add_special_tokens)

    def without_words(self) -> ModelConfig:
        """Return the settings of the model as it is elsewhere, with no words added."""
        return replace(self, add_tokens=(), add_special_tokens=(), new_special_tokens_config={})


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Which rows, and how they become tokens."""

    dataset: Names = ()
    """Names in dataset_info.json or files (json, jsonl, csv, parquet, txt), separated by commas."""
    eval_dataset: Names = ()
    """Rows to evaluate on, named like `dataset`."""
    dataset_dir: str | dict[str, Any] = "data"
    """Folder with dataset_info.json, a file like it, or its entries; REMOTE:name reads it from a hub data set, and with
    ONLINE every name is one."""
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
    tool_format: str | None = None
    """How tools are described and called, instead of the way of the template that `template` names."""
    enable_thinking: bool | Literal["auto", "none"] = "auto"
    """Empty thoughts before answers without one: learned (true), part of the prompt (false), none of them (none); auto
    leaves it to the template."""
    preserve_thinking: bool = False
    """Keep the thoughts of earlier answers in the conversation."""
    split_special_tokens: bool = True
    """Special tokens that are spelled inside messages stay text; false makes them the tokens."""
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
    mix_strategy: Literal["concat", "interleave_under", "interleave_over", "interleave_once"] = "concat"
    """How several data sets mix: all rows, or draws until the first (under) or the last (over) is used up; once draws
    each row one time."""
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
    data_seed: int | None = None
    """Where the order of rows and the split of val_size come from; none takes seed."""
    eval_on_each_dataset: bool = False
    """Report eval_<name>_loss for each of several eval_dataset beside the loss of all."""
    tokenized_path: str | None = None
    """Folder that keeps the tokenized rows; where it is there already, they are read from it."""


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
