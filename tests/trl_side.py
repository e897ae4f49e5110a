"""One loss computed twice: by TRL's trainer on its padded batch, and by ours on a packed one."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from helpers import VOCABULARY, byte_tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM

from luthier.core.batch import PackedBatch, Scores
from luthier.core.types import Segment
from luthier.data.pack import pack
from luthier.models.patch import FOREST, install, register_attention
from luthier.models.policy import Policy

WATCHED = ("layers.0.self_attn.q_proj.weight", "layers.1.mlp.down_proj.weight", "embed_tokens.weight")
Result = tuple[float, dict[str, Tensor]]


@dataclass
class Answer:
    """Tokens of a prompt and of an answer to it; streams have a number for each token of the answer."""

    prompt: list[int]
    tokens: list[int]
    streams: dict[str, list[float]] = field(default_factory=dict)
    tags: dict[str, float] = field(default_factory=dict)

    def segment(self) -> Segment:
        context = len(self.prompt)
        return Segment(
            tokens=[*self.prompt, *self.tokens],
            weight=[0.0] * context + [1.0] * len(self.tokens),
            streams={name: [0.0] * context + x for name, x in self.streams.items()},
            tags=self.tags,
        )


def answers_of(*lengths: tuple[int, int], shared: bool = False) -> list[Answer]:
    """Random tokens; (tokens of the prompt, tokens of the answer) each, answers two by two to one prompt if shared."""
    draw = random.Random(5)

    def some(count: int) -> list[int]:
        return [draw.randrange(VOCABULARY - 4) for _ in range(count)]

    made = [Answer(some(prompt), some(answer)) for prompt, answer in lengths]
    for one, other in zip(made[::2], made[1::2], strict=False):
        if shared:
            other.prompt = one.prompt
    return made


def logps_of(folder: Path, answers: Sequence[Answer]) -> list[Tensor]:
    """Log-probability of every token of each answer, by transformers, one answer at a time."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found = []
    for answer in answers:
        tokens = torch.tensor([*answer.prompt, *answer.tokens])
        with torch.no_grad():
            logp_TV = model(tokens[None]).logits[0].log_softmax(-1)
        found.append(logp_TV[:-1].gather(1, tokens[1:, None])[len(answer.prompt) - 1 :, 0])
    return found


def near(folder: Path, answers: Sequence[Answer], spread: float, seed: int) -> list[list[float]]:
    """Log-probabilities of a policy that is not far from that of the folder."""
    draw = torch.Generator().manual_seed(seed)
    return [(x + spread * torch.randn(len(x), generator=draw)).tolist() for x in logps_of(folder, answers)]


def ours(folder: Path, objective: Any, units: Sequence[list[Segment]], head: Tensor | None = None) -> Result:
    """Mean loss, and gradients of some weights."""
    register_attention()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=FOREST)
    install(model)
    value_head = None
    if head is not None:
        value_head = torch.nn.Linear(head.shape[1], 1, bias=False)
        value_head.weight.data.copy_(head)
    batch: PackedBatch = pack(list(units))
    scores: Scores = Policy(model.train(), value_head=value_head)(batch, reads=objective.reads)
    loss = objective(scores, batch).total / objective.count(batch)
    loss.backward()
    found = gradients(model)
    if value_head is not None and value_head.weight.grad is not None:
        found["score"] = value_head.weight.grad
    return float(loss.detach()), found


def theirs(trainer: Any, inputs: dict[str, Tensor]) -> Result:
    """Mean loss, and gradients of some weights."""
    trainer.model.train().zero_grad()
    trainer.current_gradient_accumulation_steps = 1
    loss = trainer.compute_loss(trainer.model, inputs)
    loss.backward()
    found = gradients(trainer.model)
    if getattr(trainer.model, "score", None) is not None:
        found["score"] = trainer.model.score.weight.grad
    return float(loss.detach()), found


def gradients(model: Any) -> dict[str, Tensor]:
    parameters = {name.removeprefix("model."): p for name, p in model.named_parameters()}
    found = {name: parameters[name].grad for name in WATCHED}
    if "lm_head.weight" in parameters and parameters["lm_head.weight"].grad is not None:
        found["lm_head.weight"] = parameters["lm_head.weight"].grad
    return found


def assert_same(have: Result, expected: Result, *, value: bool = True) -> None:
    """Loss and gradients agree within 1e-4."""
    if value:
        torch.testing.assert_close(have[0], expected[0], rtol=1e-4, atol=1e-6)
    for name, gradient in expected[1].items():
        largest = float(gradient.abs().max())
        assert largest > 1e-6, f"{name} has no gradient to compare"
        torch.testing.assert_close(have[1][name], gradient, rtol=1e-4, atol=1e-4 * largest)


def trainer_of(
    cls: Callable[..., Any], config: Callable[..., Any], folder: Path, rows: dict[str, Any], **settings: Any
) -> Any:
    """A trainer of TRL around the model of the folder; `rows` only lets it be built."""
    from datasets import Dataset

    more = settings.pop("trainer", {})
    model = settings.pop("model", None) or AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    args = config(
        output_dir=str(folder.parent / "trl"),
        report_to=[],
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        **settings,
    )
    return cls(model=model, args=args, train_dataset=Dataset.from_dict(rows), processing_class=byte_tokenizer(), **more)


def padded(rows: Sequence[Sequence[float]], value: float, *, left: bool = False) -> Tensor:
    width = max(map(len, rows))
    fill = [[value] * (width - len(row)) for row in rows]
    return torch.tensor([[*f, *row] if left else [*row, *f] for row, f in zip(rows, fill, strict=True)])
