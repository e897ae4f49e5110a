"""Memory and time before training, with what each number rests on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from luthier.core.anatomy import plain_model
from luthier.core.errors import ConfigError
from luthier.kernels.cpu import prepare_process, processor_name
from luthier.models.device import place
from luthier.models.foreign import read_layout
from luthier.models.load import load_tokenizer, parameter_counts, resolve
from luthier.models.quantized import quantize
from luthier.models.value import only_grades, only_values
from luthier.training.metrics import clock
from luthier.training.optim import warmup_steps
from luthier.training.trainer import total_steps
from luthier.workflows.build import make_layout, make_loaders, make_preparer, read_data
from luthier.workflows.memory import MemoryPlan, Sizes, look_at, plan_memory

if TYPE_CHECKING:
    from luthier.config.schema import RunConfig


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
    recomputed: int
    """Layers whose activations are computed again in the backward pass."""
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
            f"memory: about {self.peak_bytes / 1e9:.1f} GB ({parts}); {self.recomputed} layers recomputed",
            f"time: about {clock(self.seconds)} for {self.steps} steps, {self.tokens} tokens",
            *(f"based on: {line}" for line in self.basis),
        ]


def estimate(config: RunConfig) -> Estimate:
    """Return memory and time for `config`, from real token counts and from steps of a short model of the same kind.

    Raises ConfigError when `memory_budget` cannot be met, and for rollouts, whose rows are not there yet.
    """
    if "rollouts" in config.objective.needs:
        raise ConfigError(
            "answers are not known beforehand, so memory and time of rollouts cannot be estimated; run two steps "
            "(max_steps=2) and read seconds and peak_memory_bytes in events.jsonl"
        )
    prepare_process(config.model.threads)
    placement = place(config.model, base_learns=config.tuning.base_learns)
    files = resolve(config.model.model_name_or_path)
    model = _shell(files.base, config)
    every, learning = parameter_counts(model)
    preparer = make_preparer(load_tokenizer(files, config.model), config, plain_model(model).config.model_type)
    data = read_data(config, preparer)
    loader, _ = make_loaders(config, data, preparer, make_layout(config))
    sizes, steps = look_at(config, loader), total_steps(config.train, loader)
    warmup_steps(config.train, steps)
    plan = plan_memory(config, placement, files.base, model, sizes, learning=learning, every=every)
    tokens = steps * config.train.gradient_accumulation_steps * sizes.mean_tokens
    return Estimate(
        every, learning, steps, int(tokens), plan.parts, plan.recomputed, _seconds(config, plan, sizes, steps),
        basis=(
            f"{'all rows' if sizes.counted else 'the first rows of the stream'}: largest batch "
            f"{plan.probe.largest_tokens} tokens, mean {sizes.mean_tokens:.0f}",
            "steps of a short model of this kind, measured here",
            f"{processor_name()}; {placement.reason}",
        ),
    )  # fmt: skip


def _shell(base: str, config: RunConfig) -> Any:
    from transformers import AutoModelForCausalLM

    layout = read_layout(base, allow_remote_code=config.model.allow_remote_code)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(layout.config, trust_remote_code=layout.remote)
    model.name_or_path = base
    if config.model.quantization != "none":
        # Codes and scales take as much room whosever they are.
        double = config.model.double_quantization
        quantize(model, config.model.quantization, double=double, dtype=torch.float32)
    if only_grades(config.objective.needs):
        only_values(model)
    with torch.device("meta"):
        return config.tuning.apply(model.requires_grad_(False))


def _seconds(config: RunConfig, plan: MemoryPlan, sizes: Sizes, steps: int) -> float:
    """Return the seconds of all steps, and of the reference's pass where the objective needs one."""
    share = sizes.mean_tokens / plan.probe.typical_tokens
    batch = plan.probe.batch_seconds(plan.layers, plan.recomputed) * share
    batches = steps * config.train.gradient_accumulation_steps
    # A forward pass is a third of forward and backward.
    scored = min(batches, sizes.batches_per_epoch or batches) if "reference" in config.objective.needs else 0
    return batches * batch + scored * batch / 3 + steps * plan.probe.update_seconds.at(plan.layers)
