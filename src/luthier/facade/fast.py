"""fast_generate: our own decoder over the weights as they are, with an adapter or without."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch

from luthier.config.schema import RunConfig
from luthier.core.anatomy import plain_model
from luthier.core.errors import ModelError
from luthier.core.log import say_once
from luthier.core.types import Completion, Sampling
from luthier.engines.local import LocalEngine
from luthier.facade.disk import LoraRequest
from luthier.facade.held import held_of
from luthier.facade.modes import answering
from luthier.models.adapters import (
    add_adapter,
    exchanged,
    has_adapter,
    load_adapter,
    switched_off,
)
from luthier.workflows.build import make_engine

if TYPE_CHECKING:
    from collections.abc import Generator

_ASKED = "asked for"
"""What an adapter is called while it answers."""
_engines: WeakKeyDictionary[Any, tuple[Any, LocalEngine]] = WeakKeyDictionary()
"""Model -> what its weights were when they were read last, and who read them."""


@dataclass(kw_only=True, slots=True)
class SamplingParams:
    """How answers are drawn, under the names that vLLM uses; its own class is read as well."""

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """Keep this many tokens; 0 and -1 keep all."""
    min_p: float = 0.0
    max_tokens: int | None = 512
    """Most tokens of an answer; None fills up to max_seq_length."""
    seed: int | None = None
    stop: str | Sequence[str] | None = None
    include_stop_str_in_output: bool = False
    repetition_penalty: float = 1.0


@dataclass(frozen=True, slots=True)
class Output:
    """One answer."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: str


@dataclass(frozen=True, slots=True)
class Answers:
    """The answers to one prompt."""

    prompt: str | None
    prompt_token_ids: tuple[int, ...]
    outputs: list[Output] = field(default_factory=list[Output])
    lora_request: LoraRequest | None = None
    finished: bool = True


def fast_generate(
    self: Any, prompts: Any = None, sampling_params: Any = None, *, lora_request: Any = None, **kwargs: Any
) -> Any:
    """Answer texts with our own decoder on the weights as they are now; tensors and encodings go to `generate`.

    `prompts`: a text, token ids, {"prompt": …} or {"prompt_token_ids": …}, or a list of them. `sampling_params`: an
    object or a mapping with the names of `SamplingParams`. `lora_request`: None answers without any adapter, what
    `load_lora` returned with that one. Returns an object for each prompt, with `.outputs[i].text` and `.token_ids`.
    Raises ModelError for a prompt that leaves no room for an answer.
    """
    if prompts is None or isinstance(prompts, torch.Tensor) or hasattr(prompts, "input_ids"):
        return self.generate(*(() if prompts is None else (prompts,)), **kwargs)
    for name in kwargs:
        say_once(f"fast_generate: {name} is not used")
    held, asked = held_of(self), _read_params(sampling_params)
    several = prompts if isinstance(prompts, Sequence) and not _is_one(prompts) else [prompts]
    read = [_read_prompt(held.tokenizer, prompt) for prompt in several]
    room = held.max_seq_length if asked.max_tokens is None else asked.max_tokens
    how = Sampling(
        max_new_tokens=room,
        temperature=asked.temperature,
        top_p=asked.top_p,
        top_k=max(0, asked.top_k),
        min_p=asked.min_p,
        repetition_penalty=asked.repetition_penalty,
        stop=tuple([asked.stop] if isinstance(asked.stop, str) else asked.stop or ()),
        sampling_seed=asked.seed,
    )
    with answering(self), _at_work(self, lora_request) as model:
        found = _engine(model, held, lora_request).generate([ids for _, ids in read], how, asked.n)
    return [
        Answers(
            text,
            tuple(ids),
            [_output(*each, asked, how.stop, held.tokenizer) for each in enumerate(answers)],
            lora_request,
        )
        for (text, ids), answers in zip(read, found, strict=True)
    ]


def fast_generate_batches(self: Any, prompts: Sequence[Any], n_batches: int | None = None, **kwargs: Any) -> list[Any]:
    """Answer as `fast_generate` does. The decoder forms batches itself, so `n_batches` is not used."""
    if n_batches is not None:
        say_once("fast_generate_batches: n_batches is not used; the decoder forms batches itself")
    return self.fast_generate(list(prompts), **kwargs)


# ---- what is asked


def _read_params(params: Any) -> SamplingParams:
    """Return sampling parameters of any class, by attribute, or of a mapping. Raises TypeError for unknown keys."""
    if params is None or isinstance(params, Mapping):
        return SamplingParams(**(params or {}))
    usual = SamplingParams()
    return SamplingParams(**{name: getattr(params, name, getattr(usual, name)) for name in SamplingParams.__slots__})


def _is_one(prompts: Any) -> bool:
    return isinstance(prompts, str) or (bool(prompts) and isinstance(prompts[0], int))


def _read_prompt(tokenizer: Any, prompt: Any) -> tuple[str | None, list[int]]:
    """Return a prompt's text and tokens; a text that begins with the first token's word gets no second one."""
    if isinstance(prompt, Mapping):
        prompt = prompt["prompt_token_ids"] if "prompt_token_ids" in prompt else prompt["prompt"]
    if not isinstance(prompt, str):
        return None, list(prompt)
    ids = list(tokenizer(prompt)["input_ids"])
    twice = tokenizer.bos_token_id is not None and ids[:2] == [tokenizer.bos_token_id] * 2
    return prompt, ids[1:] if twice else ids


def _output(index: int, answer: Completion, asked: SamplingParams, stops: tuple[str, ...], tokenizer: Any) -> Output:
    text = answer.text
    if asked.include_stop_str_in_output and answer.finish_reason == "stop":
        whole = tokenizer.decode(answer.tokens, skip_special_tokens=True)
        text += next((stop for stop in stops if whole.startswith(stop, len(text))), "")
    return Output(index, text, answer.tokens, answer.finish_reason)


# ---- which weights


@contextmanager
def _at_work(model: Any, request: Any) -> Generator[Any]:
    """Yield the model with the adapter that `request` names, or with none; what learns goes on learning."""
    if any(getattr(module, "merged", False) for module in model.modules()):
        raise ModelError("an adapter is merged into this model; take it out with unmerge_adapter() first",
                         code="model_adapter")  # fmt: skip
    learns = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        if request is None:
            with switched_off(model) if has_adapter(model) else nullcontext():
                yield model
        elif has_adapter(model):
            add_adapter(model, Path(request.lora_path), _ASKED)
            try:
                with exchanged(model, _ASKED):
                    yield model
            finally:
                model.delete_adapter(_ASKED)
        else:
            tuned = load_adapter(model, Path(request.lora_path), trainable=False)
            try:
                yield tuned
            finally:
                tuned.unload()
    finally:
        for parameter in learns:
            parameter.requires_grad_(True)


def _engine(model: Any, held: Any, request: Any) -> Any:
    """Return an engine that has read the weights as they are now; it reads them again only where they changed."""
    plain, state = plain_model(model), _state(model, request)
    known = _engines.get(plain)
    if known is None:
        engine: Any = make_engine(model, held.tokenizer, RunConfig(model=held.model))
        if isinstance(engine, LocalEngine):
            _engines[plain] = state, engine
        return engine
    before, engine = known
    if before != state:
        engine.sync(model, engine.version + 1)
        _engines[plain] = state, engine
    return engine


def _state(model: Any, request: Any) -> Any:
    """Return what tells whether the weights are others than before: versions, and sums of those that may learn."""
    parameters = list(model.parameters())
    files = [] if request is None else [p.stat().st_mtime_ns for p in sorted(Path(request.lora_path).iterdir())]
    sums = [float(p.detach().float().sum()) for p in parameters if p.requires_grad or request is not None]
    versions = [(p.data_ptr(), p._version) for p in parameters]
    return (request and request.lora_path, files, versions, sums)
