"""Memory and time before training, with what each number rests on."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from luthier.core.anatomy import decoder_layers, family_of
from luthier.kernels.cpu import prepare_process, processor_name
from luthier.kernels.linear_logprobs import CHUNK_BYTES
from luthier.models.device import Placement, place
from luthier.models.load import load_tokenizer, parameter_counts, resolve
from luthier.training.metrics import clock
from luthier.training.optim import warmup_steps
from luthier.workflows.build import make_layout, make_loaders, make_preparer, read_data

if TYPE_CHECKING:
    from luthier.config.schema import RunConfig

RUNTIME_BYTES = 750_000_000
"""torch, transformers and the tokenizer themselves: measured on Linux."""
HEAP_FACTOR = 1.35
"""The allocator keeps blocks between steps of different length: measured peak over sum of live tensors."""
USE_OF_PEAK = {torch.float32: 0.62, torch.bfloat16: 0.42}
"""Share of the measured product speed that a whole training step reaches."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run would take."""

    parameters: int
    learning: int
    steps: int
    tokens: int
    """Computed over the whole run, shared prefixes once."""
    memory: dict[str, int]
    """Bytes by purpose."""
    seconds: float
    basis: tuple[str, ...]

    @property
    def peak_bytes(self) -> int:
        """Return the sum of all parts."""
        return sum(self.memory.values())

    def lines(self) -> list[str]:
        """Return the estimate for people."""
        parts = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in self.memory.items())
        return [
            f"model: {self.parameters / 1e6:.1f} M parameters, {self.learning / 1e6:.2f} M learn",
            f"memory: about {self.peak_bytes / 1e9:.1f} GB ({parts})",
            f"time: about {clock(self.seconds)} for {self.steps} steps, {self.tokens} tokens",
            *(f"based on: {line}" for line in self.basis),
        ]


def estimate(config: RunConfig) -> Estimate:
    """Return memory and time for `config`, from real token counts, a shell of the model and a measured product."""
    prepare_process(config.model.threads)
    placement = place(config.model, base_learns=not hasattr(config.tuning, "rank"))
    files = resolve(config.model.model_name_or_path)
    model = _shell(files.base, config)
    every, learning = parameter_counts(model)
    preparer = make_preparer(load_tokenizer(files, config.model), config, _plain(model).config.model_type)
    data = read_data(config, preparer)
    loader, _ = make_loaders(config, data, preparer, make_layout(config, packable=config.tuning.packable))
    batches = _batch_tokens(loader, config)
    steps = config.train.max_steps if config.train.max_steps > 0 else _steps(config, loader)
    warmup_steps(config.train, steps)
    per_step = sum(batches) / len(batches) * config.train.gradient_accumulation_steps
    width = placement.dtype.itemsize
    memory = {
        "runtime": RUNTIME_BYTES,
        "weights": every * width + (learning * 4 if learning < every else 0),
        "gradients and optimizer": learning * (4 + 8),
        "activations": int(HEAP_FACTOR * max(batches) * _activation_bytes(model, config, placement)),
        "head chunk": 2 * CHUNK_BYTES,
    }
    speed, seconds = _seconds(model, every, learning, per_step * steps, placement)
    basis = (
        f"{'real' if data.train is not None else 'assumed'} token counts: largest batch {max(batches)}, "
        f"mean {per_step:.0f} a step",
        f"{speed / 1e9:.0f} GFLOP/s measured here for {placement.dtype}, of which a step reaches "
        f"{USE_OF_PEAK.get(placement.autocast or placement.dtype, 0.3):.0%}",
        f"{processor_name()}; {placement.reason}",
    )
    return Estimate(every, learning, steps, int(per_step * steps), memory, seconds, basis)


def _shell(base: str, config: RunConfig) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        options = {"trust_remote_code": config.model.allow_remote_code}
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base, **options), **options)
        return config.tuning.apply(model.requires_grad_(False))


def _plain(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _batch_tokens(loader: Any, config: RunConfig) -> list[int]:
    """Return the computed tokens of each batch of the first epoch; a guess for streams."""
    if loader.steps_per_epoch is None:
        return [config.data.cutoff_len * config.train.per_device_train_batch_size // 4]
    batches = [batch for window in loader.plan(0) for batch in window]
    return [int(loader.lengths[batch].sum()) for batch in batches]


def _steps(config: RunConfig, loader: Any) -> int:
    return max(1, round(config.train.num_train_epochs * loader.steps_per_epoch))


def _activation_bytes(model: Any, config: RunConfig, placement: Placement) -> float:
    """Return bytes kept for one token between forward and backward."""
    plain = _plain(model)
    c = plain.config
    heads, head_size = c.num_attention_heads, getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    keys = getattr(c, "num_key_value_heads", heads)
    # Norm inputs and outputs, rotated q and k, v, attention output; gate, up and their product.
    numbers = 4 * c.hidden_size + (2 * heads + 2 * keys) * head_size + 3 * c.intermediate_size
    kernels = config.model.kernels == "auto" and bool(family_of(c.model_type).kernels)
    factor = 1.0 if kernels else 2.5
    layers = len(decoder_layers(model))
    kept = layers * c.hidden_size if config.train.gradient_checkpointing else layers * numbers * factor
    return kept * (placement.autocast or placement.dtype).itemsize


def _seconds(model: Any, every: int, learning: int, tokens: float, placement: Placement) -> tuple[float, float]:
    """Return measured product speed in FLOP/s, and seconds.

    A token costs 2 FLOPs a weight forward, 2 for the gradient of inputs, 2 for that of weights that learn.
    """
    dtype = placement.autocast or placement.dtype
    speed = _measured_flops(dtype, placement.device)
    flops = tokens * (4 * every + 2 * learning)
    return speed, flops / (speed * USE_OF_PEAK.get(dtype, 0.3))


def _measured_flops(dtype: torch.dtype, device: torch.device, size: int = 1024) -> float:
    a = torch.randn(size, size, dtype=dtype, device=device)
    for _ in range(3):
        torch.mm(a, a)
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        float((a @ a)[0, 0])
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best
