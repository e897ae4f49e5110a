"""Ids and labels as LLaMA-Factory makes them, written from a description of its format: pieces, one after the other.

A piece is tokenized alone and without added special tokens; «name» in it is a special token by role or by name. The side
of the user is masked, the side of the assistant is learned, what its template writes behind the end token included.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

IGNORED = -100


@dataclass(frozen=True)
class Facts:
    """One template, as a row of facts."""

    system: str
    user: str
    assistant: str
    prefix: str = ""
    observation: str = ""
    default_system: str = ""
    end: str = ""
    """What becomes the end token (replace_eos)."""
    efficient_eos: bool = False
    system_in_user: bool = False
    thought: tuple[str, str] | None = None
    call: str = ""
    calls_as_list: bool = False


QWEN_CALL = '<tool_call>\n{"name": "%s", "arguments": %s}\n</tool_call>'
_THOUGHT = ("<think>\n", "\n</think>\n\n")
_CHATML = Facts(
    system="<|im_start|>system\n{{content}}<|im_end|>\n",
    user="<|im_start|>user\n{{content}}<|im_end|>\n<|im_start|>assistant\n",
    assistant="{{content}}<|im_end|>\n",
    observation="<|im_start|>user\n<tool_response>\n{{content}}\n</tool_response><|im_end|>\n<|im_start|>assistant\n",
    end="<|im_end|>",
    call=QWEN_CALL,
)
FACTS: dict[str, Facts] = {
    "qwen3_nothink": _CHATML,
    "qwen3": Facts(**{**_CHATML.__dict__, "thought": _THOUGHT}),
    "qwen": Facts(**{
        **_CHATML.__dict__,
        "default_system": "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
    }),
    "llama3": Facts(
        prefix="«bos_token»",
        system="<|start_header_id|>system<|end_header_id|>\n\n{{content}}<|eot_id|>",
        user="<|start_header_id|>user<|end_header_id|>\n\n{{content}}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        assistant="{{content}}<|eot_id|>",
        observation="<|start_header_id|>ipython<|end_header_id|>\n\n{{content}}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        end="<|eot_id|>",
        call='{"name": "%s", "parameters": %s}',
        calls_as_list=True,
    ),
    "gemma3": Facts(
        prefix="«bos_token»",
        system="{{content}}\n\n",
        user="<start_of_turn>user\n{{content}}<end_of_turn>\n<start_of_turn>model\n",
        assistant="{{content}}<end_of_turn>\n",
        observation="<start_of_turn>tool\n{{content}}<end_of_turn>\n<start_of_turn>model\n",
        end="<end_of_turn>",
        system_in_user=True,
        call="Action: %s\nAction Input: %s",
    ),
    "deepseek3": Facts(
        prefix="«bos_token»",
        system="{{content}}",
        user="<｜User｜>{{content}}<｜Assistant｜>",
        assistant="{{content}}«eos_token»",
    ),
    "deepseekr1": Facts(
        prefix="«bos_token»",
        system="{{content}}",
        user="<｜User｜>{{content}}<｜Assistant｜>",
        assistant="{{content}}«eos_token»",
        thought=_THOUGHT,
    ),
    "llama2": Facts(
        system="<<SYS>>\n{{content}}\n<</SYS>>\n\n",
        user="«bos_token»[INST] {{content}} [/INST]",
        assistant="{{content}}«eos_token»",
        system_in_user=True,
    ),
    "gpt_oss": Facts(
        system="<|start|>system<|message|>{{content}}<|end|>",
        user="<|start|>user<|message|>{{content}}<|end|><|start|>assistant",
        assistant="{{content}}",
        default_system="You are ChatGPT, a large language model trained by OpenAI.",
        efficient_eos=True,
        thought=("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
    ),
    "chatml": Facts(**{
        **_CHATML.__dict__,
        "observation": "<|im_start|>tool\n{{content}}<|im_end|>\n<|im_start|>assistant\n",
        "call": "Action: %s\nAction Input: %s",
    }),
}  # fmt: skip


@dataclass(frozen=True)
class Turn:
    """role is user, assistant, observation or function; the text of a function turn is a list of calls as JSON."""

    role: str
    text: str


@dataclass
class Dialect:
    """Encodes rows with one tokenizer and one row of facts."""

    tokenizer: Any
    facts: Facts
    train_on_prompt: bool = False
    mask_history: bool = False
    enable_thinking: bool | None = True
    preserve_thinking: bool = False

    @property
    def eos(self) -> int:
        end = self.facts.end or self.tokenizer.eos_token
        return self.tokenizer.convert_tokens_to_ids(end)

    def pieces(self, text: str) -> list[int]:
        ids: list[int] = []
        for part in re.split("(«[^»]*»)", text):
            if part.startswith("«"):
                name = {
                    "«bos_token»": self.tokenizer.bos_token,
                    "«eos_token»": self.facts.end or self.tokenizer.eos_token,
                }
                ids.append(self.tokenizer.convert_tokens_to_ids(name[part]))
            elif part:
                ids += self.tokenizer(part, add_special_tokens=False)["input_ids"]
        return ids

    def pairs(self, turns: Sequence[Turn], system: str = "", described: str = "") -> list[tuple[list[int], list[int]]]:
        """Return (source, target) ids of each turn pair, thoughts and empty thoughts in their places."""
        facts, texts = self.facts, [self._text(turn) for turn in turns]
        if facts.thought and self.mask_history and not self.preserve_thinking:
            texts = [self._without_thought(t) if i % 2 and i + 1 < len(texts) else t for i, t in enumerate(texts)]
        encoded: list[list[int]] = []
        for number, (turn, text) in enumerate(zip(turns, texts, strict=True)):
            before = ""
            head: list[int] = []
            if number == 0:
                head = self.pieces(facts.prefix)
                said = (system or facts.default_system) + described
                in_front = facts.system.replace("{{content}}", said) if said else ""
                if facts.system_in_user:
                    before = in_front
                else:
                    head += self.pieces(in_front)
            slot = {"user": facts.user, "observation": facts.observation}.get(turn.role, facts.assistant)
            encoded.append(head + self.pieces(slot.replace("{{content}}", before + text)))
        if facts.thought and facts.thought[0].strip() not in texts[-1] and self.enable_thinking is not None:
            empty = self.pieces("".join(facts.thought))
            if self.enable_thinking:
                encoded[-1] = empty + encoded[-1]
            else:
                encoded[-2] = encoded[-2] + empty
        return list(zip(encoded[::2], encoded[1::2], strict=True))

    def row(self, turns: Sequence[Turn], system: str = "", described: str = "") -> tuple[list[int], list[int]]:
        """Return ids and labels of a row."""
        ids: list[int] = []
        labels: list[int] = []
        pairs = self.pairs(turns, system, described)
        for number, (source, target) in enumerate(pairs):
            masked = [IGNORED] * len(source)
            if self.train_on_prompt:
                masked = source
            elif self.facts.efficient_eos and number:
                masked = [self.eos, *masked[1:]]
            learned = target if not self.mask_history or number + 1 == len(pairs) else [IGNORED] * len(target)
            ids, labels = ids + source + target, labels + masked + learned
        if self.facts.efficient_eos:
            ids, labels = [*ids, self.eos], [*labels, self.eos]
        return ids, labels

    def answer(self, turns: Sequence[Turn], system: str = "") -> tuple[list[int], list[int]]:
        """Return ids and labels of a row whose last answer alone counts: one side of a pair, or a tagged answer."""
        pairs = self.pairs(turns, system)
        prompt = [token for source, target in pairs[:-1] for token in source + target] + pairs[-1][0]
        target = pairs[-1][1] + ([self.eos] if self.facts.efficient_eos else [])
        return prompt + target, [IGNORED] * len(prompt) + target

    def _text(self, turn: Turn) -> str:
        if turn.role != "function":
            return turn.text
        dumped = [(call["name"], json.dumps(call["arguments"], ensure_ascii=False)) for call in json.loads(turn.text)]
        calls = [self.facts.call % each for each in dumped]
        return f"[{', '.join(calls)}]" if self.facts.calls_as_list and len(calls) > 1 else "\n".join(calls)

    def _without_thought(self, text: str) -> str:
        opening, closing = self.facts.thought or ("", "")
        return re.sub(re.escape(opening) + ".*?" + re.escape(closing), "", text, flags=re.DOTALL).lstrip("\n")


def unlearn_behind_end(ids: list[int], labels: list[int], end: int) -> list[int]:
    """Return labels without what an answer's template writes behind its end token."""
    found, inside = list(labels), False
    for place, token in enumerate(ids):
        if labels[place] == IGNORED:
            inside = False
        elif inside:
            found[place] = IGNORED
        inside = inside or (token == end and labels[place] != IGNORED)
    return found


def lost_ends(pairs: Sequence[tuple[int, int]], limit: int) -> list[tuple[int, int]]:
    """Return what is left of turn pairs of (source, target) lengths under its rule of truncation."""
    left: list[tuple[int, int]] = []
    used = 0
    for source, target in pairs:
        room = limit - used
        if room <= 0:
            break
        if 2 * target < room:
            keep = room
        elif 2 * source < room:
            keep = room - source
        else:
            keep = int(room * target / (source + target))
        kept_target = min(target, keep)
        kept_source = min(source, max(room - kept_target, 0))
        left.append((kept_source, kept_target))
        used += kept_source + kept_target
    return left
