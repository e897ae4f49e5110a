"""A model as lm-evaluation-harness wants it, answering through our decoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from luthier.core.errors import DataError
from luthier.core.types import Sampling
from luthier.evaluation.logprobs import logprobs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from luthier.evaluation.subject import Subject

MOST_NEW_TOKENS = 256
"""Of an answer whose task does not say."""


class HarnessModel(TemplateLM):
    """Scores and answers requests of tasks; they are sorted by the decoder, not here."""

    def __init__(self, subject: Subject) -> None:
        super().__init__()
        self._subject = subject
        self.tokenizer: Any = subject.tokenizer

    @property
    def eot_token_id(self) -> int:
        """Return the token that ends a text."""
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """Return what stands in front of a text without a beginning."""
        start = self.tokenizer.bos_token_id
        return self.eot_token_id if start is None else start

    @property
    def tokenizer_name(self) -> str:
        """Return a name for caches."""
        return self._subject.name

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:  # noqa: FBT001
        """Return tokens; a start token only where the tokenizer adds it and the text has none."""
        start = self.tokenizer.bos_token
        special = (add_special_tokens is not False) and not (start and string.startswith(start))
        return self.tokenizer(string, add_special_tokens=special).input_ids

    def apply_chat_template(self, chat_history: list[dict[str, Any]], add_generation_prompt: bool = True) -> str:  # noqa: FBT001
        """Return a conversation as text."""
        return self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def _loglikelihood_tokens(self, requests: Sequence[Any], **kwargs: Any) -> list[tuple[float, bool]]:
        pairs = [self._fitting(context, ending) for _, context, ending in requests]
        return [
            (sum(logp for logp, _ in row), all(best for _, best in row))
            for row in logprobs(self._subject, pairs, top=1)
        ]

    def _fitting(self, context: list[int], ending: list[int]) -> tuple[list[int], list[int]]:
        """Cut a beginning from the left where it does not fit; raises DataError where not even the ending does."""
        room = self._subject.max_tokens - len(ending)
        if room < 1:
            raise DataError(
                f"harness: an ending of {len(ending)} tokens is longer than the {self._subject.max_tokens} that "
                f"{self._subject.name} sees; take its task out of eval_tasks",
                code="data_too_long",
            )
        return context[-room:], ending

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:  # noqa: FBT001
        """Return the log-probability of whole texts, in windows of the context."""
        found: list[float] = []
        for request in requests:
            (text,) = request.args
            windows = get_rolling_token_windows(
                self.tok_encode(text), self.prefix_token_id, max_seq_len=self._subject.max_tokens - 1, context_len=1
            )
            pairs = [make_disjoint_window(window) for window in windows]
            found.append(sum(logp for row in logprobs(self._subject, pairs) for logp, _ in row))
        return found

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:  # noqa: FBT001
        """Return answers up to a stop text."""
        prompts, hows = [], []
        for request in requests:
            context, given = request.args
            asked = normalize_gen_kwargs(dict(given), MOST_NEW_TOKENS)
            new = int(asked.get("max_gen_toks") or asked.get("max_new_tokens") or MOST_NEW_TOKENS)
            room = max(1, self._subject.max_tokens - new)
            prompts.append(self.tok_encode(context)[-room:])
            hows.append(
                Sampling(
                    max_new_tokens=new,
                    temperature=float(asked.get("temperature") or 0.0) if asked.get("do_sample") else 0.0,
                    top_p=float(asked.get("top_p") or 1.0),
                    stop=tuple(text for text in asked.get("until") or () if text),
                )
            )
        return [answers[0].text for answers in self._subject.engine.generate(prompts, hows)]
