"""What training takes, part by part, and the least recomputation that fits a budget."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from luthier.core.anatomy import decoder_layers
from luthier.core.errors import ConfigError
from luthier.core.log import logger
from luthier.data.loader import Cursor
from luthier.data.pack import pack
from luthier.kernels.linear_logprobs import CHUNK_BYTES
from luthier.models.quantized import quantized_size
from luthier.training.trainer import total_steps
from luthier.workflows.probe import Batches, Probe, probe

if TYPE_CHECKING:
    import torch

    from luthier.config.schema import RunConfig
    from luthier.data.loader import Loader
    from luthier.models.device import Placement

RUNTIME_BYTES = 750_000_000
"""torch, transformers and the tokenizer themselves: measured on Linux."""
HEAP_FACTOR = 1.15
"""The allocator keeps blocks between steps of different length: measured peak over sum of live tensors."""
LEAST_CHUNK_BYTES = 4 * 2**20
MOST_EPOCHS = 10
"""Epochs whose order is looked at; the largest batch of more is hardly larger."""
STREAMED_WINDOWS = 4
"""Windows of a stream that are looked at for its usual and its largest batch."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Batches to measure with, and how far they stand for the others."""

    batches: Batches
    batches_per_epoch: int | None
    mean_tokens: float
    """Computed tokens of a batch."""
    counted: bool
    """False for streams, of which only the first windows are known."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """How much is recomputed, and what that takes."""

    recomputed: int
    layers: int
    chunk_bytes: int
    parts: dict[str, int]
    """Bytes by purpose."""
    probe: Probe

    @property
    def peak_bytes(self) -> int:
        """Return the sum of all parts."""
        return sum(self.parts.values())


def chunk_bytes(config: RunConfig) -> int:
    """Return the bytes of logits at a time: a 128th of a memory budget, within bounds."""
    budget = config.train.memory_budget
    return CHUNK_BYTES if budget is None else min(CHUNK_BYTES, max(LEAST_CHUNK_BYTES, budget // 128))


def look_at(config: RunConfig, loader: Loader) -> Sizes:
    """Find the largest and a usual batch of those that the run will read; of a stream, of its first windows."""
    source: Any = loader
    if loader.steps_per_epoch is None:
        windows = source.windows(Cursor())
        seen = [batch for _ in range(STREAMED_WINDOWS) for batch in next(windows).batches]
        seen.sort(key=lambda batch: batch.num_tokens)
        mean = sum(batch.num_tokens for batch in seen) / len(seen)
        return Sizes(Batches(seen[-1], seen[len(seen) // 2]), None, mean, counted=False)
    steps = total_steps(config.train, loader)
    epochs = min(MOST_EPOCHS, math.ceil(steps / loader.steps_per_epoch))
    plan = [batch for window in [w for e in range(epochs) for w in source.plan(e)][:steps] for batch in window]
    tokens = [int(source.lengths[batch].sum()) for batch in plan]
    mean = sum(tokens) / len(tokens)
    usual = min(range(len(plan)), key=lambda i: abs(tokens[i] - mean))
    largest = max(range(len(plan)), key=tokens.__getitem__)
    both = Batches(*(pack([source.units[i] for i in plan[j]]) for j in (largest, usual)))
    per_epoch = loader.steps_per_epoch * config.train.gradient_accumulation_steps
    return Sizes(both, per_epoch, both.typical.num_tokens * mean / max(1, tokens[usual]), counted=True)


def plan_memory(
    config: RunConfig,
    placement: Placement,
    base: str,
    model: torch.nn.Module,
    sizes: Sizes,
    *,
    learning: int,
    every: int,
) -> MemoryPlan:
    """Measure, and choose how many layers are recomputed. `model` may be without weights.

    Raises ConfigError when no plan fits `memory_budget`, naming a setting that does.
    """
    chunk = chunk_bytes(config)
    found = probe(config, placement, base, sizes.batches, chunk)
    layers, budget = len(decoder_layers(model)), config.train.memory_budget
    fixed = {
        "runtime": RUNTIME_BYTES if placement.device.type == "cpu" else 0,
        "weights": _weight_bytes(model, placement, learning=learning, every=every),
        "optimizer": int(found.optimizer_bytes.at(layers)),
    }
    own = config.model.ref_model is not None or config.model.ref_model_adapters
    if config.objective.needs & {"reference", "distribution"} and learning == every and not own:
        fixed["reference"] = _weight_bytes(model, placement, learning=0, every=every)

    def parts(recomputed: int) -> dict[str, int]:
        return fixed | {"activations and gradients": int(HEAP_FACTOR * found.peak_bytes(layers, recomputed))}

    chosen = layers if config.train.gradient_checkpointing else 0
    if budget is not None and not config.train.gradient_checkpointing:
        fitting = [n for n in range(layers + 1) if sum(parts(n).values()) <= budget]
        chosen = fitting[0] if fitting else layers
    plan = MemoryPlan(chosen, layers, chunk, parts(chosen), found)
    if budget is not None and plan.peak_bytes > budget:
        raise ConfigError(_advice(config, plan, sizes, sum(fixed.values())), code="memory_budget")
    return plan


def _weight_bytes(model: torch.nn.Module, placement: Placement, *, learning: int, every: int) -> int:
    """Return the bytes of all weights: narrow ones as codes and scales, those of an adapter in float32, too."""
    narrow, size = quantized_size(model)
    return (every - narrow) * placement.dtype.itemsize + size + (learning * 4 if learning < every else 0)


def _advice(config: RunConfig, plan: MemoryPlan, sizes: Sizes, fixed: int) -> str:
    budget = config.train.memory_budget or 0
    said = (
        f"memory_budget is {budget / 1e9:.2f} GB, but training takes about {plan.peak_bytes / 1e9:.2f} GB even with "
        f"all {plan.layers} layers recomputed (weights, optimizer and the process itself: {fixed / 1e9:.2f} GB)"
    )
    room, needed = budget - fixed, plan.peak_bytes - fixed
    lower = f"memory_budget: {plan.peak_bytes / 1e9 + 0.05:.1f}GB"
    if room <= 0:
        return f"{said}; set {lower}, or take a smaller model"
    rows = int(config.train.per_device_train_batch_size * room / needed)
    if sizes.batches.largest.num_segments > 1 and rows >= 1:
        return f"{said}; per_device_train_batch_size: {rows} fits, or {lower}"
    return f"{said}; cutoff_len: {int(sizes.batches.largest.num_tokens * room / needed)} fits, or {lower}"


def say(plan: MemoryPlan, budget: int) -> None:
    """Log what was chosen."""
    logger.info(
        "memory: %d of %d layers recomputed, about %.1f of %.1f GB",
        plan.recomputed, plan.layers, plan.peak_bytes / 1e9, budget / 1e9,
    )  # fmt: skip
