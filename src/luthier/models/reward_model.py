"""A reward model at work: answers in, one number each out, read at the last token of the answer.

Shapes: N answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from luthier.core.anatomy import family_of, plain_model
from luthier.core.errors import DataError, ModelError
from luthier.core.findings import RowError
from luthier.core.log import logger, say_once
from luthier.core.types import Example, Message, Segment
from luthier.data.pack import pack, plan_batches
from luthier.data.template import ChatTemplate
from luthier.data.template_shelf import apply_named_template
from luthier.models.adapters import has_adapter, load_adapter
from luthier.models.load import ModelFiles, load_tokenizer, put_kernels, resolve
from luthier.models.policy import Policy
from luthier.models.reward_files import distinct_pad, drop_output_head, read_head
from luthier.models.value import frozen_base

if TYPE_CHECKING:
    from collections.abc import Sequence

    from luthier.config.schema import ModelConfig
    from luthier.models.device import Placement

TOKENS_AT_A_TIME = 8192
"""Of prompts and answers; a longer answer is scored alone."""


@dataclass(slots=True)
class RewardModel:
    """A frozen model with a value head."""

    policy: Policy
    tokenizer: Any
    """Its own; the tokens of others mean something else to it (`takes_tokens_of`)."""
    template: ChatTemplate
    name: str
    tokens_at_a_time: int = TOKENS_AT_A_TIME
    compared: Any = None
    """The tokenizer that this one was compared with last, which takes a moment; and what came out."""
    same_tokens: bool = False

    def takes_tokens_of(self, tokenizer: Any) -> bool:
        """Tell whether a token of `tokenizer` is the same token here; if not, answers must come as text."""
        if self.compared is tokenizer:
            return self.same_tokens
        self.compared, self.same_tokens = tokenizer, self.tokenizer.get_vocab() == tokenizer.get_vocab()
        if self.same_tokens:
            return True
        sizes = f"{len(self.tokenizer)} tokens, the policy has {len(tokenizer)}"
        say_once(f"reward model {self.name} has another tokenizer ({sizes}): answers are re-tokenized through text")
        return False

    def score(self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> Tensor:
        """Return the reward of each answer to the prompt beside it, [N], float32.

        A prompt that several answers share is computed once. Raises ModelError when one is empty.
        """
        rows = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
        if not all(rows):
            raise ModelError(f"answer {rows.index([])} is empty, prompt included: there is no token to grade it at")
        order = sorted(range(len(rows)), key=lambda i: tuple(prompts[i]))
        lengths = [len(rows[i]) for i in order]
        found_N = torch.zeros(len(rows))
        for batch in plan_batches(lengths, 1, self.tokens_at_a_time):
            here = [order[place] for place in batch]
            found_N[here] = self._read([rows[i] for i in here])
        return found_N

    @torch.no_grad()
    def _read(self, rows: Sequence[Sequence[int]]) -> Tensor:
        # A value is read where a prediction is made, so one token behind the answer makes it its last token's.
        units = [[Segment(tokens=[*row, 0], weight=[0.0] * len(row) + [1.0])] for row in rows]
        batch = pack(units).to(plain_model(self.policy.model).device)
        self.policy.eval()
        value_N = self.policy(batch, reads=frozenset({"value"})).value
        assert value_N is not None
        return value_N.float().cpu()

    def score_text(
        self, contexts: Sequence[Sequence[Message]], answers: Sequence[str], tools: Sequence[str | None] | None = None
    ) -> Tensor:
        """Return the reward of each answer to the conversation beside it, [N], in this model's own words.

        `tools`: JSON lists of tool schemas. Raises DataError when the chat template refuses a conversation, and
        ConfigError when there is none.
        """
        apply_named_template(
            self.tokenizer, None, family_of(plain_model(self.policy.model).config.model_type).templates
        )
        tools = tools or [None] * len(answers)
        rows = [self._tokens(*each) for each in zip(contexts, answers, tools, strict=True)]
        return self.score([row[:first] for row, first in rows], [row[first:] for row, first in rows])

    def _tokens(self, context: Sequence[Message], answer: str, tools: str | None) -> tuple[list[int], int]:
        """Return the tokens of a conversation up to the end of its last answer, and where that one begins."""
        ending = (Message(role="assistant", content=answer),)
        try:
            segment = self.template.render(Example(context=tuple(context), endings=(ending,), tools=tools)).unit[-1]
        except RowError as error:
            raise DataError(f"reward model {self.name}: {error}", code="data_bad_row") from error
        last = max((i for i, weight in enumerate(segment.weight) if weight), default=len(segment.tokens) - 1)
        first = last
        while first > 0 and segment.weight[first - 1]:
            first -= 1
        return segment.tokens[: last + 1], first


def load_reward_model(
    name: str, config: ModelConfig, placement: Placement, *, shared: tuple[Any, ModelFiles] | None = None
) -> RewardModel:
    """Load a reward model from a run directory, folder, alias or hub name, frozen, with kernels.

    It may come from this package, from plain transformers or peft (one label, `score`), or hold a TRL value head.
    `config` says how it is kept and computed (quantization, kernels); `shared`: a frozen model without adapter and what
    it was loaded from, whose tensors are used again where the reward model is an adapter on the same one. Raises
    ModelError when there is no head.
    """
    files = resolve(name)
    head = next((h for place in (*reversed(files.adapters), files.base) if (h := read_head(place, config))), None)
    if head is None:
        raise ModelError(
            f"{name} has no value head (no score.weight in {_tried(files)}), so it grades nothing; train one with "
            "stage: rm, or name a folder that AutoModelForSequenceClassification loads with num_labels=1",
            code="model_reward",
        )
    tokenizer = load_tokenizer(files, config)
    model = drop_output_head(frozen_base(files.below, config, placement, shared))
    if files.adapter is not None:
        model = load_adapter(model, files.adapter, trainable=False)
    put_kernels(model, config, quiet=True)
    kind = "an adapter on " + files.below.public_base if has_adapter(model) else "a whole model"
    logger.info("reward model: %s, %s", name, kind)
    policy = Policy(model, autocast=placement.autocast, value_head=head.to(plain_model(model).device))
    return RewardModel(policy.requires_grad_(False).eval(), tokenizer, ChatTemplate(tokenizer), name)


def _tried(files: ModelFiles) -> str:
    places = [*(str(folder) for folder in reversed(files.adapters)), files.base]
    inside = sorted(p.name for p in Path(places[0]).iterdir()) if Path(places[0]).is_dir() else []
    return " or ".join(places) + (f"; there are: {', '.join(inside[:12])}" if inside else "")


def give_padding(template: ChatTemplate) -> None:
    """Give the tokenizer of a reward model a padding token that its answers do not end with."""
    example = Example(
        context=(Message(role="user", content="a"),), endings=((Message(role="assistant", content="b"),),)
    )
    try:
        segment = template.render(example).unit[-1]
    except RowError:
        distinct_pad(template.tokenizer)
        return
    learned = [token for token, weight in zip(segment.tokens, segment.weight, strict=True) if weight]
    distinct_pad(template.tokenizer, learned[-1:])
