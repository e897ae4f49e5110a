"""What a step of a model costs, measured on two models of the same kind with few layers, on real batches.

A step's memory and time grow by the same amount with every layer. So two short models tell what any number of layers
takes, whatever the family, the tuning, the kernels and the number format are.
"""

from __future__ import annotations

import copy
import math
import os
import time
from dataclasses import dataclass, fields, replace
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from luthier.core.batch import PackedBatch
from luthier.models.distribution import Head
from luthier.models.foreign import is_own_code, read_layout
from luthier.models.load import put_kernels
from luthier.models.patch import attention_for, register_attention
from luthier.models.policy import Policy
from luthier.models.quantized_load import choose, make_narrow
from luthier.models.recompute import recompute_layers
from luthier.models.value import make_head, only_grades, only_values
from luthier.models.whole import learn_in_float32
from luthier.training.optim import learning_parameters, make_optimizer
from luthier.tuning.parts.blocks import MARK

if TYPE_CHECKING:
    from collections.abc import Callable

    from luthier.config.schema import RunConfig
    from luthier.core.protocols import Tuning
    from luthier.models.device import Placement

ROUNDS = 3
OUT_OF_CACHE_BYTES = 128 * 2**20


@dataclass(frozen=True, slots=True)
class Line:
    """A quantity that grows by `layer` with every layer."""

    fixed: float
    layer: float

    @classmethod
    def through(cls, layers: tuple[int, int], values: tuple[float, float]) -> Line:
        """Return the line through two measured points."""
        slope = max(0.0, (values[1] - values[0]) / (layers[1] - layers[0]))
        return cls(max(0.0, values[0] - slope * layers[0]), slope)

    def at(self, layers: int) -> float:
        """Return the quantity of a model with so many layers."""
        return self.fixed + self.layer * layers


@dataclass(frozen=True, slots=True)
class Cost:
    """Of a step, as functions of the number of layers."""

    bytes: Line
    """Tensors alive at the peak of a step, without weights and optimizer."""
    forward_backward_seconds: Line


@dataclass(frozen=True, slots=True)
class Probe:
    """Measured costs of the layers that keep their activations, and of those that recompute them."""

    keep: Cost
    recompute: Cost
    optimizer_bytes: Line
    update_seconds: Line
    largest_tokens: int
    typical_tokens: int

    def peak_bytes(self, layers: int, recomputed: int) -> float:
        """Return the bytes of tensors at the peak when the first `recomputed` layers keep only their input."""
        kept = max(self.keep.bytes.fixed, self.recompute.bytes.fixed if recomputed else 0.0)
        return kept + self.keep.bytes.layer * (layers - recomputed) + self.recompute.bytes.layer * recomputed

    def batch_seconds(self, layers: int, recomputed: int) -> float:
        """Return the seconds of forward and backward of the typical batch."""
        more = self.recompute.forward_backward_seconds.layer - self.keep.forward_backward_seconds.layer
        return self.keep.forward_backward_seconds.at(layers) + max(0.0, more) * recomputed


@dataclass(frozen=True, slots=True)
class Batches:
    """The batch that takes most memory, and one of usual size."""

    largest: PackedBatch
    typical: PackedBatch


@dataclass(frozen=True, slots=True)
class _Measured:
    bytes: float
    seconds: float
    optimizer_bytes: float
    update_seconds: float


def probe(config: RunConfig, placement: Placement, base: str, batches: Batches, chunk_bytes: int) -> Probe:
    """Measure; takes a few steps of models with few layers."""
    facts, may_recompute = _facts(base, config), config.train.gradient_checkpointing or bool(config.train.memory_budget)
    layers = _lengths(facts, config)
    # What is drawn here must not move what training draws.
    with torch.random.fork_rng():
        found = {
            (number, again): _measure(config, placement, facts, number, batches, chunk_bytes, recompute=again)
            for again in {False, may_recompute}
            for number in layers
        }

    def line(name: str, *, again: bool = False) -> Line:
        return Line.through(layers, (getattr(found[layers[0], again], name), getattr(found[layers[1], again], name)))

    return Probe(
        keep=Cost(line("bytes"), line("seconds")),
        recompute=Cost(line("bytes", again=may_recompute), line("seconds", again=may_recompute)),
        optimizer_bytes=line("optimizer_bytes"),
        update_seconds=line("update_seconds"),
        largest_tokens=batches.largest.num_tokens,
        typical_tokens=batches.typical.num_tokens,
    )


def _facts(base: str, config: RunConfig) -> Any:
    return read_layout(base, allow_remote_code=config.model.allow_remote_code).config


def _period(facts: Any) -> int:
    """Return after how many layers their kinds repeat: 1 where all are alike."""
    kinds = list(getattr(facts, "layer_types", None) or [])
    return next((p for p in range(1, len(kinds)) if all(a == b for a, b in zip(kinds, kinds[p:], strict=False))), 1)


def _lengths(facts: Any, config: RunConfig) -> tuple[int, int]:
    """Return the lengths of two short models whose difference is some layers that are not trained specially.

    The longer one is too large for caches, as whole models are.
    """
    # Tunings that name a number of layers train these in both; blocks that were added stand at the end of equal parts.
    part = _part(facts, config)
    first, period = (part, part) if part else (1 + abs(getattr(config.tuning, "layers", 0)), _period(facts))
    bytes_of_layer = 4 * 12 * facts.hidden_size**2
    wanted = math.ceil(OUT_OF_CACHE_BYTES / (bytes_of_layer * period))
    return first, first + period * max(1, min(wanted, facts.num_hidden_layers // period))


def _part(facts: Any, config: RunConfig) -> int:
    """Return to how many layers there is one that was added and learns (LLaMA Pro); 0 where none were."""
    expand, known = getattr(config.tuning, "expand", 0), len(getattr(facts, MARK, None) or ())
    if not (expand or getattr(config.tuning, "llama_pro", False)):
        return 0
    layers = facts.num_hidden_layers + (0 if known else expand)
    return layers // (expand or getattr(config.tuning, "layers", 0) or known)


def _tuning(facts: Any, config: RunConfig, layers: int) -> Tuning:
    """Return how a model of so many layers is tuned, so that one of its layers costs what one of the whole model does.

    Layers that are chosen by number are not there: then all are tuned, which takes no less.
    """
    part = _part(facts, config)
    changes: dict[str, Any] = {"llama_pro": True, "layers": layers // part, "expand": 0} if part else {}
    changes["layers_to_transform"] = ()
    known = {each.name for each in fields(config.tuning)}
    return replace(config.tuning, **{name: value for name, value in changes.items() if name in known})


def _measure(
    config: RunConfig,
    placement: Placement,
    facts: Any,
    layers: int,
    batches: Batches,
    chunk_bytes: int,
    *,
    recompute: bool,
) -> _Measured:
    model = _short_model(config, placement, facts, layers)
    recompute_layers(model, layers if recompute else 0)
    head = make_head(model, 0) if only_grades(config.objective.needs) else None
    policy = Policy(model, autocast=placement.autocast, chunk_bytes=chunk_bytes, value_head=head).train()
    if "distribution" in config.objective.needs:
        policy.compared = partial(Head.of, model)
    optimizer = make_optimizer(config.train, learning_parameters(policy), model=policy)
    both = {name: getattr(batches, name).to(placement.device) for name in ("largest", "typical")}
    here = {name: _annotated(batch, config, policy) for name, batch in both.items()}

    def forward_backward(name: str) -> None:
        config.objective(policy(here[name], reads=config.objective.reads), here[name]).total.backward()

    def update() -> None:
        nn.utils.clip_grad_norm_([p for p in policy.parameters() if p.requires_grad], 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def whole_step() -> None:
        forward_backward("largest")
        update()

    whole_step()
    seconds: list[float] = []
    update_seconds: list[float] = []
    for _ in range(ROUNDS):
        seconds.append(_seconds(lambda: forward_backward("typical")))
        update_seconds.append(_seconds(update))
    states = [v for values in optimizer.state.values() for v in values.values() if isinstance(v, torch.Tensor)]
    kept = sum({v.data_ptr(): v.nbytes for v in states}.values())
    return _Measured(_peak_bytes(whole_step, placement), median(seconds), kept, median(update_seconds))


def _short_model(config: RunConfig, placement: Placement, facts: Any, layers: int) -> Any:
    """Return a model of few layers under the tuning and kernels of `config`. What its weights are changes no cost."""
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    short = copy.deepcopy(facts)
    short.num_hidden_layers = layers
    setattr(short, MARK, None)
    if kinds := getattr(short, "layer_types", None):
        short.layer_types = [kinds[i % len(kinds)] for i in range(layers)]
    register_attention()
    # Drawing random weights for a large vocabulary takes longer than the probe.
    with no_init_weights():
        model: Any = AutoModelForCausalLM.from_config(
            short,
            dtype=placement.dtype,
            attn_implementation=attention_for(facts, config.model.kernels),
            trust_remote_code=is_own_code(facts),
        )
    model.tie_weights()
    model.name_or_path = facts.name_or_path
    for weight in model.requires_grad_(False).parameters():
        weight.fill_(0.01)
    model = make_narrow(model.to(placement.device), choose(config.model, placement), placement)
    if only_grades(config.objective.needs):
        only_values(model)
    model = _tuning(facts, config, layers).apply(model)
    learn_in_float32(model)
    put_kernels(model, config.model, quiet=True)
    return model


def _annotated(batch: PackedBatch, config: RunConfig, policy: Policy) -> PackedBatch:
    needs = config.objective.needs
    for tag in needs & {"baseline", "center"}:
        batch = batch.with_tag(tag, batch.weight.new_zeros(batch.num_segments))
    if "distribution" in needs:
        with torch.no_grad():
            batch = batch.with_stream("ref_hidden", policy.hidden(batch))
    if "reference" not in needs or "ref_logp" in batch.streams:
        return batch
    return batch.with_stream("ref_logp", torch.zeros_like(batch.weight))


def _seconds(step: Callable[[], None]) -> float:
    began = time.perf_counter()
    step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def _peak_bytes(step: Callable[[], None], placement: Placement) -> float:
    """Return the most bytes of tensors that `step` holds at a time, beyond those that are there before."""
    if placement.device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated() - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it announces each start and stop otherwise
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        step()
    events: Any = seen.profiler.kineto_results.events()  # pyright: ignore[reportOptionalMemberAccess]
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    live = peak = 0
    for _, change in changes:
        live += change
        peak = max(peak, live)
    return peak
