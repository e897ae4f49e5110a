"""The contracts of the shelves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor, nn

    from luthier.core.batch import Loss, PackedBatch, Scores
    from luthier.core.types import Answer, Completion, Example, Message, Prompt, RowKind, Sampling

Need = Literal["reference", "distribution", "value", "baseline", "center", "rollouts"]
"""reference: the stream "ref_logp"; distribution: the stream "ref_hidden", and the reference's head beside the policy;
value: a value head; baseline: the tag "baseline", the mean log-ratio of mismatched answers; center: the tag "center",
that of the answers of one update themselves; rollouts: rows are prompts, answered while training."""
Read = Literal["logp", "entropy", "value", "mean_logp", "top_entropy", "divergence", "correct"]
"""What of the policy's scores an objective looks at."""
Packing = Literal["forest", "mask", "alone"]
"""forest: our attention reads the spans; mask: the model's own attention gets a dense mask; alone: each segment is a
forward pass of its own, for models whose attention depends on more than a mask and positions."""


class Objective(Protocol):
    """A frozen dataclass whose fields are the hyper-parameters and whose call is the mathematics."""

    @property
    def needs(self) -> frozenset[Need]:
        """What the trainer must prepare."""
        ...

    @property
    def reads(self) -> frozenset[Read]:
        """What the policy must compute."""
        ...

    rows: ClassVar[RowKind]
    """What it learns from."""
    segments_per_unit: ClassVar[int]
    """1 when segments stand alone, 2 for (chosen, rejected)."""
    rate_factor: ClassVar[float]
    """Its usual learning rate over that of supervised rows under the same tuning."""

    def count(self, batch: PackedBatch) -> Tensor:
        """Return the denominator of the loss, a scalar, from the batch alone."""
        ...

    def __call__(self, scores: Scores, batch: PackedBatch) -> Loss:
        """Return the loss summed over the batch."""
        ...


class RolloutObjective(Objective, Protocol):
    """An objective over answers that the policy gave itself.

    Its batches have the streams "advantage" and, where several updates follow one rollout, "old_logp"; "correction"
    where importance weights against the engine are asked for; "return" and "old_value" where it needs a value; and the
    tag "limit", the most tokens that an answer may have.
    """

    smallest_group: ClassVar[int]
    """Answers to one prompt that its advantages need."""
    usual_epochs: ClassVar[int]
    """Passes over a rollout where the settings give none."""
    usual_minibatches: ClassVar[int]
    """Updates of one pass where the settings give none."""
    whitens: ClassVar[bool]
    """Advantages of all learned tokens of a rollout are brought to mean 0 and deviation 1."""

    @property
    def whiten_rewards(self) -> bool:
        """Tell whether rewards of all learned tokens of a rollout are brought to deviation 1 before credit is given."""
        ...

    @property
    def on_equal_rewards(self) -> Literal["keep", "drop", "resample", "duplicate"]:
        """What becomes of groups whose rewards do not differ."""
        ...

    @property
    def penalty(self) -> Literal["none", "answer", "token"]:
        """Where kl_coef x (log p - log ref) is taken from the reward: nowhere, once an answer, or token by token."""
        ...

    kl_coef: float

    def next_kl_coef(self, current: float, measured: float, num_answers: int) -> float:
        """Return the coefficient of the step after one in which answers had a KL of `measured` nats on average."""
        ...

    def advantages(self, rewards_G: Tensor) -> Tensor:
        """Return the advantage of each answer of one group, [G], float64."""
        ...

    def credit(self, advantage: Tensor, penalty_T: Tensor, value_T: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return advantage and, where it needs a value, return of each learned token of one answer, [T] both.

        `advantage`: scalar of the whole answer; `penalty_T`: kl_coef x (log p - log ref), zeros if not by token.
        """
        ...


class Reward(Protocol):
    """A frozen dataclass of settings whose call grades one answer."""

    def __call__(self, answer: Answer) -> float | None:
        """Return the reward; None, NaN or an exception mean that this answer has none."""
        ...


class Environment(Protocol):
    """Where prompts come from, and what answers to an answer."""

    def examples(self) -> Sequence[Example]:
        """Return the prompts; none where the rows of a data set are used."""
        ...

    def step(self, example: Example, turns: Sequence[Message]) -> Message | None:
        """Return what follows the last answer in `turns`, a message of role tool or user; None ends the episode."""
        ...


class Tuning(Protocol):
    """Decides which parameters learn; also a frozen dataclass of its hyper-parameters."""

    base_learns: ClassVar[bool]
    """True: weights of the model itself move; False: an adapter on top of it does."""
    mergeable: ClassVar[bool]
    """False: cannot become part of the base weights."""
    usual_rate: ClassVar[float]
    """Peak learning rate for supervised rows and a model of width 2000, where the settings give none."""

    def apply(self, model: nn.Module) -> nn.Module:
        """Return `model` with only the wanted parameters learning."""
        ...

    def rate_factor(self) -> float:
        """Return what these settings make of `usual_rate`."""
        return 1.0

    def learning_rate(self, parameter: str, usual: float) -> float:
        """Return the peak learning rate of a parameter by its name."""
        return usual


class Engine(Protocol):
    """The only way anything generates text: rollouts, chat, server, evaluation."""

    keeps_weights: ClassVar[bool]
    """True: answers come from a copy of the weights as they were at the last `sync`; False: from the module itself."""

    @property
    def version(self) -> int:
        """Which weights answer: the number given to the last `sync`."""
        ...

    @version.setter
    def version(self, number: int) -> None: ...

    def generate(
        self, prompts: Sequence[Prompt], how: Sampling | Sequence[Sampling], n: int = 1
    ) -> list[list[Completion]]:
        """Return `n` completions for each prompt; `how` is one for all, or one for each."""
        ...

    def stream(self, prompt: Prompt, how: Sampling) -> Iterator[str]:
        """Yield the text of one completion as it grows."""
        ...

    def sync(self, model: nn.Module, version: int) -> None:
        """Adopt new weights."""
        ...

    def rest(self) -> None:
        """Give back the memory that only answering needs, until the next `sync`."""
        ...


class Format(Protocol):
    """Turns one row of a data set into an example: with one ending on FORMATS, chosen and rejected on PAIR_FORMATS."""

    def __call__(self, row: Mapping[str, object], columns: Mapping[str, str], tags: Mapping[str, str]) -> Example:
        """Convert; raises RowError naming the field, what was found and what to do."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What must be known about an architecture that transformers does not tell. A value, not a class hierarchy."""

    model_types: tuple[str, ...]
    """`model_type` values of config.json."""
    models: str
    """Published models that are built so."""
    lora_targets: tuple[str, ...]
    """Names of the linear layers that `lora_target: all` means."""
    templates: tuple[str, ...] = ()
    """Names of chat templates that fit, the most usual first; "default" is the tokenizer's own."""
    layers: str = "layers"
    """Path of the decoder layers below the backbone."""
    attention: str = "self_attn"
    """Name of the attention inside a layer."""
    mlp: str = "mlp"
    """Name of the feed-forward block, or of the mixture of experts, inside a layer."""
    experts: tuple[str, ...] = ()
    """Parameters that hold the weights of all experts of a layer, by path inside the layer."""
    router: str = ""
    """Path of the router inside a layer of a mixture of experts; frozen unless everything learns."""
    balance_loss: bool = False
    """Experts are kept evenly used by a loss (arXiv:2101.03961); others have a bias for it, or nothing."""
    gguf: str = ""
    """Name of the architecture in GGUF files; empty where that format has none."""
    quirks: str = ""
    """What is unlike other families, in a sentence for the page of models."""
    norm_offset: float = 0.0
    """Added to a norm's weight before it multiplies: 1.0 in Gemma."""
    packing: Packing = "forest"
    """How rows that hold several segments are computed."""
    kernels: tuple[str, ...] = ("rms_norm", "gated_mlp", "attention", "lora_linear")
    """Kernels that are exact for this architecture; "decoder": our engine reads its layers."""
