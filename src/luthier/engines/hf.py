"""Generation through transformers: the slow, plain engine that others are compared with."""

from __future__ import annotations

from dataclasses import replace
from threading import Thread
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from luthier.core.errors import ModelError
from luthier.core.progress import within
from luthier.core.registry import ENGINES
from luthier.core.types import Completion, Prompt, Sampling
from luthier.engines.sample import is_tempered, logp_of
from luthier.engines.text import TextStream, cut_at
from luthier.models.virtual import virtual_tokens

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


def end_ids(model: Any, tokenizer: Any) -> list[int]:
    """Return the ids that end an answer: the model's own and the tokenizer's."""
    own = model.generation_config.eos_token_id
    ids = own if isinstance(own, list) else [own]
    return sorted({i for i in (*ids, tokenizer.eos_token_id) if i is not None})


def one_each(how: Sampling | Sequence[Sampling], count: int) -> list[Sampling]:
    """Return how each of `count` prompts is answered."""
    return [how] * count if isinstance(how, Sampling) else list(how)


def check_prompt(prompt: Prompt, most: int, name: str) -> None:
    """Raise ModelError when a prompt is empty or leaves no room for an answer among `most` tokens."""
    if not prompt:
        raise ModelError("the prompt is empty: there is nothing to continue", code="prompt_empty")
    if len(prompt) >= most:
        raise ModelError(
            f"the prompt has {len(prompt)} tokens, but this {name} model sees at most {most} with the answer; "
            "shorten the prompt",
            code="prompt_too_long",
        )


class _Watch:
    """Sees the logits of each step before anything changes them, and keeps what they say of the token that was taken.

    One step's logits are held at a time. Shapes: B rows, L tokens so far, V vocabulary.
    """

    def __init__(self, temperature: float | None) -> None:
        self.temperature = temperature
        self.logp: list[list[float]] = []
        self.drawn_logp: list[list[float]] = []
        self._waiting: tuple[int, Tensor] | None = None

    def __call__(self, input_ids_BL: Tensor, logits_BV: Tensor) -> Tensor:
        """Return the logits as they are."""
        self.read(input_ids_BL)
        self._waiting = input_ids_BL.shape[1], logits_BV
        return logits_BV

    def read(self, ids_BL: Tensor) -> None:
        """Take in what followed the logits that were seen last."""
        if self._waiting is None or ids_BL.shape[1] <= self._waiting[0]:
            return
        column, logits_BV = self._waiting
        tokens_B = ids_BL[:, column]
        self.logp.append(logp_of(logits_BV, tokens_B).tolist())
        if self.temperature is not None:
            self.drawn_logp.append(logp_of(logits_BV / self.temperature, tokens_B).tolist())
        self._waiting = None


def _row(steps: list[list[float]], place: int, count: int) -> tuple[float, ...]:
    return tuple(step[place] for step in steps[:count])


@ENGINES.register("hf")
class HfEngine:
    """Shares the module that it is given; left-pads prompts of a batch."""

    keeps_weights: ClassVar[bool] = False

    def __init__(self, model: Any, tokenizer: Any, *, batch_size: int = 32) -> None:
        self.model: Any = model
        self.tokenizer, self.batch_size = tokenizer, batch_size
        self.end_ids = end_ids(model, tokenizer)
        self.version = 0

    def sync(self, model: nn.Module, version: int) -> None:
        """Adopt new weights; the module is shared, so only the version moves."""
        self.model, self.version = model, version

    def rest(self) -> None:
        """Do nothing: the module is shared, so there is no memory of its own."""

    def generate(
        self, prompts: Sequence[Prompt], how: Sampling | Sequence[Sampling], n: int = 1
    ) -> list[list[Completion]]:
        """Return `n` completions for each prompt, in the order of the prompts; longest prompts run first.

        Prompts that are answered in one way but for the seed run together; the seed of the first one counts.
        """
        answers: list[list[Completion]] = [[] for _ in prompts]
        done = 0
        alike: dict[Sampling, list[int]] = {}
        hows = one_each(how, len(prompts))
        for index, each in enumerate(hows):
            alike.setdefault(replace(each, sampling_seed=None), []).append(index)
        for places in alike.values():
            order = sorted(places, key=lambda i: -len(prompts[i]))
            for chosen in self._batches(order, prompts):
                rows = [(i, prompts[i]) for i in chosen for _ in range(n)]
                for index, completion in self._batch(rows, hows[chosen[0]]):
                    answers[index].append(completion)
                done += len(chosen)
                within(done, len(prompts))
        return answers

    def _batches(self, order: list[int], prompts: Sequence[Prompt]) -> Iterator[list[int]]:
        """Yield prompts of one batch; padding would stand between virtual tokens and shorter prompts."""
        padded = virtual_tokens(self.model) is None
        start = 0
        while start < len(order):
            group = order[start : start + self.batch_size]
            chosen = group if padded else [i for i in group if len(prompts[i]) == len(prompts[group[0]])]
            yield chosen
            start += len(chosen)

    @torch.inference_mode()
    def _batch(self, prompts: list[tuple[int, Prompt]], how: Sampling) -> list[tuple[int, Completion]]:
        width = max(len(prompt) for _, prompt in prompts)
        pad = self.tokenizer.pad_token_id or 0
        ids = torch.tensor([[pad] * (width - len(p)) + list(p) for _, p in prompts], device=self.model.device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for _, p in prompts], device=self.model.device)
        options, watch = self._options(how), _Watch(how.temperature if is_tempered(how) else None)
        options["logits_processor"].insert(0, watch)
        out = self.model.generate(input_ids=ids, attention_mask=mask, **options)
        watch.read(out)
        rows = [row[width:].tolist() for row in out]
        return [
            (i, self._completion(prompt, row, how, watch, place))
            for place, ((i, prompt), row) in enumerate(zip(prompts, rows, strict=True))
        ]

    def _completion(self, prompt: Prompt, tokens: list[int], how: Sampling, watch: _Watch, place: int) -> Completion:
        """Cut what generation went on with behind the end of this answer."""
        stream = TextStream(self.tokenizer, how.stop)
        kept: list[int] = []
        for token in tokens:
            kept.append(token)
            if token in self.end_ids:
                break
            if how.stop:
                stream.push(token)
            if stream.stopped:
                break
        ended = kept[-1] in self.end_ids or stream.stopped
        return Completion(
            prompt_tokens=tuple(prompt),
            tokens=tuple(kept),
            text=cut_at(self.tokenizer.decode(kept, skip_special_tokens=True), how.stop),
            logp=_row(watch.logp, place, len(kept)),
            drawn_logp=_row(watch.drawn_logp, place, len(kept)) if watch.temperature else None,
            finish_reason="stop" if ended else "length",
            version=self.version,
        )

    def _options(self, how: Sampling) -> dict[str, Any]:
        from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor

        if how.sampling_seed is not None:
            torch.manual_seed(how.sampling_seed)
        options: dict[str, Any] = {"do_sample": how.temperature > 0}
        if how.temperature > 0:
            options |= {"temperature": how.temperature, "top_p": how.top_p, "top_k": how.top_k, "min_p": how.min_p}
        if how.stop:
            options |= {"stop_strings": list(how.stop), "tokenizer": self.tokenizer}
        # Handed over as a processor, so that what watches the logits can stand in front of it.
        penalty = [] if how.repetition_penalty == 1.0 else [RepetitionPenaltyLogitsProcessor(how.repetition_penalty)]
        return {
            **options,
            "max_new_tokens": how.max_new_tokens,
            "repetition_penalty": 1.0,
            "logits_processor": LogitsProcessorList(penalty),
            "eos_token_id": self.end_ids,
            "pad_token_id": self.tokenizer.pad_token_id or 0,
            "use_cache": True,
        }

    def stream(self, prompt: Prompt, how: Sampling) -> Iterator[str]:
        """Yield the text of one completion as it grows. An error of the model is raised here, not lost in a thread."""
        from transformers import TextIteratorStreamer

        streamer = TextIteratorStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        ids = torch.tensor([list(prompt)], device=self.model.device)
        failure: list[BaseException] = []

        def work() -> None:
            try:
                with torch.inference_mode():
                    mask = torch.ones_like(ids)
                    self.model.generate(input_ids=ids, attention_mask=mask, streamer=streamer, **self._options(how))
            except BaseException as error:  # noqa: BLE001  handed to the reader below
                failure.append(error)
                streamer.end()

        thread = Thread(target=work, daemon=True)
        thread.start()
        yield from (text for text in streamer if text)
        thread.join()
        if failure:
            raise failure[0]
