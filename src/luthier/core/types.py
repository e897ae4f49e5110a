"""Plain records that cross every border: rows become examples, examples become segments. No torch here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

Role = Literal["system", "user", "assistant", "tool"]
Prompt = Sequence[int]
"""Token ids to continue."""
RowKind = Literal["text", "answer", "pair", "tagged", "prompt"]
"""What a row holds: plain text, one answer, a chosen and a rejected one, an answer that is tagged good or bad, or a
prompt that is answered while training."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str
    tool_calls: tuple[Mapping[str, object], ...] = ()
    """Calls of an assistant turn, each {"name": ..., "arguments": ...}."""
    reasoning: str = ""
    """What an assistant turn thought before it answered."""

    def as_dict(self) -> dict[str, object]:
        """Return the form that chat templates read."""
        plain: dict[str, object] = {"role": self.role, "content": self.content}
        if self.tool_calls:
            plain["tool_calls"] = [{"type": "function", "function": dict(call)} for call in self.tool_calls]
        if self.reasoning:
            plain["reasoning_content"] = self.reasoning
        return plain


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One dataset row after conversion. The number of endings says what it is for."""

    context: tuple[Message, ...] = ()
    """The conversation so far, earlier answers included."""
    endings: tuple[tuple[Message, ...], ...] = ()
    """() prompt only; (a,) sft and kto; (chosen, rejected) preference pairs."""
    text: str | None = None
    """Plain text for pretraining; then context and endings are empty."""
    desirable: bool | None = None
    """kto: is endings[0] a good answer?"""
    tools: str | None = None
    """JSON list of tool schemas."""
    extra: Mapping[str, object] = field(default_factory=dict[str, object])
    """Columns kept for rewards, such as "answer"."""
    origin: str = ""
    """Where the row stands, as file:line."""


@dataclass(slots=True, kw_only=True)
class Segment:
    """One tokenized sequence. Every list has len(tokens); entry i belongs to tokens[i]."""

    tokens: list[int]
    weight: list[float]
    """1.0 learn to produce this token; 0.0 context."""
    streams: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    """"ref_logp", "old_logp", "advantage" and the like, one number a token."""
    tags: dict[str, float] = field(default_factory=dict[str, float])
    """One number a segment: "desirable", "group" and the like."""
    aside: bool = False
    """Scored beside the others and never learned from: kto's mismatched answers."""
    origin: str = ""
    """Where the row stands, as file:line."""


Unit = list[Segment]
"""What one row becomes; the segments of a unit are never split over batches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How answers are drawn."""

    max_new_tokens: Annotated[int, Field(ge=1)] = 512
    """Most tokens of one answer, end-of-turn included."""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    """0 takes the most probable token; higher is more random."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Keep the smallest set of tokens whose probability reaches this share."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Keep this many tokens; 0 keeps all."""
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Keep tokens at least this times as probable as the most probable one; 0 keeps all."""
    repetition_penalty: Annotated[float, Field(gt=0)] = 1.0
    """Divide the logits of tokens already seen by this number; 1 changes nothing."""
    stop: tuple[str, ...] = ()
    """An answer ends before any of these texts."""
    sampling_seed: int | None = None
    """Seed of the draw; none draws differently each time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One generated answer."""

    prompt_tokens: tuple[int, ...]
    tokens: tuple[int, ...]
    """Generated ids, end-of-turn included when it was produced."""
    text: str = ""
    """What the tokens say, special ones left out, cut in front of a stop text."""
    logp: tuple[float, ...] | None = None
    """Per token, in nats, under the model itself; None if the engine does not report them."""
    drawn_logp: tuple[float, ...] | None = None
    """Per token, in nats, under softmax(logits / temperature), which drew them; None where `logp` is that."""
    learned: tuple[bool, ...] | None = None
    """Per token: False for what an environment wrote between the model's turns; None means all were produced."""
    finish_reason: Literal["stop", "length", "abort"] = "stop"
    version: int = 0
    """Weights that produced it; grows by one per update."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A completion to grade, beside the row that its prompt came from."""

    example: Example
    completion: Completion
    turns: tuple[Message, ...] = ()
    """Turns behind the prompt where there were several, the model's and the environment's."""
    written: str = ""
    """Prompt and answer as the model saw them, template and special tokens included; for rewards that read it."""
