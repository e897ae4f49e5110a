"""Example -> segments through the chat template, with exact loss weights.

An answer is what the template adds behind its own generation prompt, up to and including the end-of-turn token;
so the context of every learned token is what the model sees when it is used. A template that rewrites earlier
answers (thoughts removed from history, say) yields one segment an answer; they share their common prefix anyway.

Text inside a message that spells a special token stays text: a private-use character splits it before tokenizing, and
the tokens of that character are dropped. The same mark forces a token border where an answer begins.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import jinja2

from luthier.core.errors import DataError, ModelError
from luthier.core.findings import RowError, words
from luthier.core.log import say_once
from luthier.core.types import Example, Message, Segment, Unit
from luthier.data.template_input import Takes, check_tools, deep, guard, plain_messages, take, tools_of
from luthier.data.turns import split_thought

if TYPE_CHECKING:
    from collections.abc import Sequence

MARK = "\uf8fe"
"""A private-use character that stands in no text worth training on."""

STAND_IN = "\uf8fd"
"""Stands for an answer whose tokens are there already."""


@dataclass(slots=True)
class Rendered:
    """The segments of an example and what the audit wants to know about them."""

    unit: Unit
    special_text: tuple[str, ...] = ()
    """Special tokens that are spelled inside messages."""
    has_end: bool = True
    """Every answer ends with an end-of-turn token."""


@dataclass(frozen=True)
class ChatTemplate:
    """Renders conversations with a tokenizer's chat template."""

    tokenizer: Any
    train_on_prompt: bool = False
    mask_history: bool = False
    default_system: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    """Variables for the template, such as enable_thinking."""
    spelled: frozenset[str] | None = frozenset()
    """Special tokens that become tokens where a message spells them; None for all of them."""
    text_end: str | None = None
    """What ends a plain text, where that is not the tokenizer's end token."""

    def __post_init__(self) -> None:
        if not self.tokenizer.is_fast:
            raise ModelError(
                "this model has a slow tokenizer without character offsets; exact loss weights need a fast one"
            )

    @cached_property
    def control_tokens(self) -> dict[str, int]:
        """Text -> id of tokens that steer the model and must not be typed by users."""
        added = self.tokenizer.added_tokens_decoder
        return {token.content: i for i, token in added.items() if token.special and token.content.strip()}

    @cached_property
    def _typed(self) -> tuple[str, ...]:
        """The control tokens that stay text where a message spells them."""
        return () if self.spelled is None else tuple(t for t in self.control_tokens if t not in self.spelled)

    def prompt(self, messages: Sequence[Message], tools: str | None = None) -> list[int]:
        """Return the ids of a conversation up to where the next answer begins.

        Raises DataError when the template refuses the conversation.
        """
        try:
            guarded, described, _ = self._guard(self._with_system(messages), tools_of(tools))
            text = self._render(guarded, described, answer_next=True)
            return self._tokenize(text, _borders(text, self._prompts(guarded, described)))[0]
        except RowError as error:
            raise DataError(str(error), code="data_bad_row") from error

    def between(self, context: Sequence[Message], said: Message, tools: str | None, last: int) -> list[int]:
        """Return the ids between an answer, which ends with token `last`, and the next one: `said` in between.

        Raises DataError when the template does not take such a conversation.
        """
        answer = Message(role="assistant", content=STAND_IN)
        try:
            guarded, described, _ = self._guard(self._with_system([*context, answer, said]), tools_of(tools))
            text = self._render(guarded, described, answer_next=True)
            _, found, rest = text.rpartition(STAND_IN)
            if not found:
                wanted, there = "a template that keeps earlier answers", words("one that does not")
                raise RowError("template", "messages", wanted, there)
            ids = self._tokenize(rest, _borders(rest, []))[0]
        except RowError as error:
            raise DataError(str(error), code="data_bad_row") from error
        # The answer has ended already, with its own end token.
        return ids[1:] if ids and (ids[0] == last or {ids[0], last} <= self._end_ids) else ids

    def render(self, example: Example) -> Rendered:
        """Return one unit: the segments of each ending.

        Raises RowError when the template refuses the conversation.
        """
        if example.text is not None:
            return self._plain_text(example)
        rendered = Rendered([])
        # Of answers that are graded the earlier ones are no part.
        only_endings = len(example.endings) > 1 or example.desirable is not None
        for ending in example.endings:
            turns = self._with_system([*example.context, *ending])
            if self.options.get("enable_thinking") is False:
                kept = len(turns) - len(ending) if self.options.get("preserve_thinking") else 0
                turns = [*turns[:kept], *_without_thoughts(turns[kept:])]
            messages, tools, special = self._guard(turns, tools_of(example.tools))
            learned_from = len(messages) - len(ending) if only_endings or self.mask_history else 0
            segments, has_end = self._segments(messages, tools, learned_from=learned_from)
            if only_endings and len(segments) > 1:
                raise RowError(
                    "template",
                    "chosen or rejected" if len(example.endings) > 1 else "answer",
                    "one answer, because this template rewrites earlier ones",
                    words(f"{len(segments)} answers"),
                    "move all turns but the last into the prompt",
                )
            rendered.special_text = tuple(sorted({*rendered.special_text, *special}))
            rendered.has_end &= has_end
            rendered.unit += [replace(s, origin=example.origin) for s in segments]
        return rendered

    def _plain_text(self, example: Example) -> Rendered:
        """Render pretraining text: begin token where the tokenizer has the habit, text, end token. All learned."""
        assert example.text is not None
        special = tuple(token for token in self._typed if token in example.text)
        ids, _ = self._tokenize(self._split_special(example.text), (), add_special_tokens=True)
        end = self.tokenizer.eos_token_id if self.text_end is None else self.control_tokens[self.text_end]
        if end is not None and (not ids or ids[-1] != end):
            ids.append(end)
        unit = [Segment(tokens=ids, weight=[1.0] * len(ids), origin=example.origin)]
        return Rendered(unit, special, has_end=end is not None)

    def _with_system(self, messages: Sequence[Message]) -> list[Message]:
        if self.default_system and messages[0].role != "system":
            return [Message(role="system", content=self.default_system), *messages]
        return list(messages)

    def _guard(
        self, messages: Sequence[Message], tools: list[Any] | None
    ) -> tuple[list[Message], list[Any] | None, tuple[str, ...]]:
        """Split special tokens that are spelled inside messages, calls and descriptions of tools."""
        found: set[str] = set()

        def split(text: str) -> str:
            here = [token for token in self._typed if token in text]
            found.update(here)
            return self._split_special(text) if here else text

        return guard(messages, split), deep(tools, split), tuple(sorted(found))

    def _split_special(self, text: str) -> str:
        for token in self._typed:
            if len(token) > 1:
                text = text.replace(token, token[0] + MARK + token[1:])
        return text

    @cached_property
    def _takes(self) -> Takes:
        return take(self._apply)

    def _apply(self, plain: list[dict[str, Any]], tools: list[Any] | None, *, answer_next: bool = False) -> str:
        return self.tokenizer.apply_chat_template(
            plain, tools=tools, tokenize=False, add_generation_prompt=answer_next, **self.options
        )

    def _render(self, messages: Sequence[Message], tools: list[Any] | None, *, answer_next: bool = False) -> str:
        check_tools(tools, self._takes)
        plain = plain_messages(messages, self._takes)
        try:
            return self._apply(plain, tools, answer_next=answer_next)
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise RowError(
                "template", "messages", "a conversation that the chat template takes", words(str(error))
            ) from error

    def _segments(
        self, messages: Sequence[Message], tools: list[Any] | None, *, learned_from: int
    ) -> tuple[list[Segment], bool]:
        """Return one segment, or one for each answer where the template rewrites history.

        Answers before message `learned_from` are context.
        """
        turns = [i for i, m in enumerate(messages) if m.role == "assistant"]
        answers = [i for i in turns if i >= learned_from]
        prompts = self._prompts(messages, tools)
        texts = [self._render(messages[: i + 1], tools) for i in answers]
        asked = prompts[len(turns) - len(answers) :]
        starts = [_common(prompt, text) for prompt, text in zip(asked, texts, strict=True)]
        consistent = all(later.startswith(text) for text, later in pairwise(texts))
        if consistent:
            ends = [len(text) for text in texts]
            segment, has_end = self._weigh(texts[-1], list(zip(starts, ends, strict=True)), prompts)
            return [segment], has_end
        weighed = [
            self._weigh(text, [(start, len(text))], prompts[: turns.index(i)])
            for i, text, start in zip(answers, texts, starts, strict=True)
        ]
        return [segment for segment, _ in weighed], all(has_end for _, has_end in weighed)

    def _prompts(self, messages: Sequence[Message], tools: list[Any] | None) -> list[str]:
        """Return what the template writes when it is asked for each of the answers."""
        turns = (i for i, m in enumerate(messages) if m.role == "assistant")
        return [self._render(messages[:i], tools, answer_next=True) for i in turns]

    def _weigh(self, text: str, answers: list[tuple[int, int]], prompts: Sequence[str]) -> tuple[Segment, bool]:
        """Tokenize `text`; tokens inside an answer weigh 1, except what follows its end-of-turn token.

        A token begins where an answer does, and behind each of `prompts` in front of it.
        """
        ids, offsets = self._tokenize(text, sorted({*_borders(text, prompts), *(start for start, _ in answers)}))
        weight = [1.0 if self.train_on_prompt else 0.0] * len(ids)
        has_end = True
        for start, end in answers:
            inside = [i for i, (a, b) in enumerate(offsets) if start <= a and b <= end and b > a]
            last = next((n for n in reversed(range(len(inside))) if ids[inside[n]] in self._end_ids), None)
            if last is not None and not "".join(text[slice(*offsets[i])] for i in inside[last + 1 :]).strip():
                inside = inside[: last + 1]
            else:
                has_end = False
            for i in inside:
                weight[i] = 1.0
        return Segment(tokens=ids, weight=weight), has_end

    @cached_property
    def _end_ids(self) -> frozenset[int]:
        end = self.tokenizer.eos_token_id
        return frozenset([*self.control_tokens.values(), *([end] if end is not None else [])])

    def _tokenize(
        self, text: str, borders: Sequence[int], *, add_special_tokens: bool = False
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """Return ids and character ranges in `text`, with a token border at each of `borders`, without marks."""
        encoded = self.tokenizer(text, add_special_tokens=add_special_tokens, return_offsets_mapping=True)
        ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
        crossed = [border for border in borders if any(a < border < b for a, b in offsets)]
        if crossed:
            marked, last = "", 0
            for border in crossed:
                marked, last = marked + text[last:border] + MARK, border
            return self._unmarked(marked + text[last:], crossed, add_special_tokens=add_special_tokens)
        if MARK in text:
            return self._unmarked(text, (), add_special_tokens=add_special_tokens)
        return list(ids), list(offsets)

    def _unmarked(
        self, marked: str, borders: Sequence[int], *, add_special_tokens: bool
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """Tokenize text with marks and drop their tokens; ranges count characters without the `borders` marks."""
        encoded = self.tokenizer(marked, add_special_tokens=add_special_tokens, return_offsets_mapping=True)
        kept: list[tuple[int, tuple[int, int]]] = []
        for token, (a, b) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
            if b > a and not marked[a:b].strip(MARK):
                continue
            # Marks that stood in the text before still count as characters; only those set at borders do not.
            shift_a = sum(border + n < a for n, border in enumerate(borders))
            shift_b = sum(border + n < b for n, border in enumerate(borders))
            kept.append((token, (a - shift_a, b - shift_b)))
        return [token for token, _ in kept], [offset for _, offset in kept]


def _without_thoughts(turns: Sequence[Message]) -> list[Message]:
    """Return turns without thoughts: where thinking is off, the prompt has an empty one already."""
    plain = [
        replace(m, content=split_thought(m.content)[1], reasoning="") if m.role == "assistant" else m for m in turns
    ]
    if plain != list(turns):
        say_once("enable_thinking: false: thoughts in answers are left out of the rows")
    return plain


def _borders(text: str, prompts: Sequence[str]) -> list[int]:
    """Return where the answers to `prompts` begin in `text`, of those that it begins with."""
    return [len(prompt) for prompt in prompts if text.startswith(prompt)]


def _common(asked: str, text: str) -> int:
    """Return where the answer begins in `text`: behind what it shares with the prompt."""
    if text.startswith(asked):
        return len(asked)
    pairs = enumerate(zip(asked, text, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(asked), len(text)))
