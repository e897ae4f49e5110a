"""Generation through vLLM: the fast engine on GPUs, with weights of its own in the same process.

It is started without weights and gets those of the model at once, and again at each `sync`, so adapters, runs and
architectures that are re-laid while they are loaded are answered with like any other model.
"""

from __future__ import annotations

import math
import os
import tempfile
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from luthier.core.anatomy import plain_model
from luthier.core.errors import DependencyError, ModelError
from luthier.core.registry import ENGINES
from luthier.core.types import Completion, Prompt, Sampling
from luthier.engines.hf import check_prompt, end_ids, one_each
from luthier.engines.sample import is_tempered, not_finite
from luthier.engines.text import TextStream, cut_at
from luthier.engines.weights import obstacle, published_weights

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

OLDEST = (0, 19)
"""Older versions cannot take weights from the same process, or do not know transformers 5."""
_REASONS = {"stop": "stop", "length": "length", "abort": "abort"}


def library() -> Any:
    """Return the module `vllm`. Raises DependencyError where it is missing or too old."""
    # A second process of vLLM's own could not be handed tensors; read when it is imported.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    install = "run: pip install 'luthier[vllm]'"
    try:
        import vllm  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise DependencyError(f"engine: vllm needs vLLM, which cannot be imported ({error}); {install}") from error
    try:
        found = tuple(int(part) for part in version("vllm").split(".")[:2])
    except (PackageNotFoundError, ValueError):
        return vllm
    if found < OLDEST:
        wanted = ".".join(map(str, OLDEST))
        raise DependencyError(f"engine: vllm needs vLLM {wanted} or newer, found {version('vllm')}; {install}")
    return vllm


@ENGINES.register("vllm")
class VllmEngine:
    """Answers with vLLM's offline engine on the GPU of this process.

    `batch_size`: most answers that grow together; `kind`: number format, None keeps the model's; `memory_fraction`:
    share of the GPU's memory for weights and pages; `temperature`: that of the draws whose log-probabilities are asked
    for. vLLM reports either those of the model, which holds for answers at temperature 1 and 0, or those of the draw,
    which is `drawn_logp` as long as nothing is left out of it (top_p, top_k, min_p) and nothing penalized. Answers
    drawn in any other way come without.
    """

    keeps_weights: ClassVar[bool] = True

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        batch_size: int = 128,
        kind: str | None = None,
        memory_fraction: float = 0.3,
        temperature: float = 1.0,
    ) -> None:
        self._vllm, self.tokenizer = library(), tokenizer
        reason = obstacle(model)
        if reason is not None:
            raise ModelError(f"engine: vllm cannot run this model: {reason}", code="model_engine")
        self._of_the_draw = temperature not in (0.0, 1.0)
        self._ids = count()
        kind = kind or str(next(p.dtype for p in model.parameters() if p.is_floating_point())).removeprefix("torch.")
        self.llm: Any = self._start(plain_model(model), batch_size, kind, memory_fraction)
        self._name = plain_model(model).config.model_type
        self.description = f"vLLM, {kind} weights"
        self.sync(model, 0)

    def _start(self, model: Any, batch_size: int, kind: str, memory_fraction: float) -> Any:
        several = torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1
        with tempfile.TemporaryDirectory() as folder:
            model.config.save_pretrained(folder)
            model.generation_config.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)
            return self._vllm.LLM(
                model=folder,
                load_format="dummy",
                dtype=kind,
                max_num_seqs=batch_size,
                max_model_len=-1,
                gpu_memory_utilization=memory_fraction,
                logprobs_mode="processed_logprobs" if self._of_the_draw else "raw_logprobs",
                # Each process of a training run has an engine on its own GPU.
                distributed_executor_backend="external_launcher" if several else None,
            )

    def sync(self, model: nn.Module, version: int) -> None:
        """Adopt the weights of `model`, with its adapters merged in, layer by layer."""
        self.version, self.end_ids = version, end_ids(model, self.tokenizer)
        with torch.inference_mode():
            weights = published_weights(model)
            self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
        # Pages of earlier prompts hold what the old weights made of them.
        self.llm.reset_prefix_cache()

    def rest(self) -> None:
        """Do nothing: vLLM reserves its share of the memory once and keeps it."""

    def generate(
        self, prompts: Sequence[Prompt], how: Sampling | Sequence[Sampling], n: int = 1
    ) -> list[list[Completion]]:
        """Return `n` completions for each prompt, in the order of the prompts."""
        hows = one_each(how, len(prompts))
        asked = [self._asked(prompt) for prompt in prompts]
        results = self.llm.generate(asked, [self._params(each, n) for each in hows], use_tqdm=False)
        return [
            [self._completion(prompt, output, each) for output in sorted(result.outputs, key=lambda out: out.index)]
            for prompt, each, result in zip(prompts, hows, results, strict=True)
        ]

    def stream(self, prompt: Prompt, how: Sampling) -> Iterator[str]:
        """Yield the text of one completion as it grows; closing the iterator cancels it."""
        engine, name = self.llm.llm_engine, f"stream-{next(self._ids)}"
        text, read, done = TextStream(self.tokenizer, how.stop), 0, False
        engine.add_request(name, self._asked(prompt), self._params(how, 1))
        try:
            while not done:
                for result in engine.step():
                    tokens = list(result.outputs[0].token_ids)
                    parts = [text.push(token) for token in tokens[read:]]
                    read, done = len(tokens), bool(result.finished)
                    yield from (part for part in [*parts, text.finish() if done else ""] if part)
        finally:
            if not done:
                engine.abort_request([name])

    def _asked(self, prompt: Prompt) -> dict[str, list[int]]:
        check_prompt(prompt, int(self.llm.llm_engine.model_config.max_model_len), self._name)
        return {"prompt_token_ids": list(prompt)}

    def _params(self, how: Sampling, n: int) -> Any:
        return self._vllm.SamplingParams(
            n=n,
            temperature=how.temperature,
            top_p=how.top_p,
            top_k=how.top_k,
            min_p=how.min_p,
            repetition_penalty=how.repetition_penalty,
            max_tokens=how.max_new_tokens,
            stop=list(how.stop) or None,
            stop_token_ids=self.end_ids,
            seed=how.sampling_seed,
            logprobs=0,
            # Our own text is made from the tokens; vLLM's is what it looks for stop texts in.
            detokenize=bool(how.stop),
        )

    def _completion(self, prompt: Prompt, output: Any, how: Sampling) -> Completion:
        tokens = tuple(output.token_ids)
        values = tuple(float(each[token].logprob) for token, each in zip(tokens, output.logprobs, strict=True))
        if not all(math.isfinite(value) for value in values):
            raise not_finite()
        logp, drawn_logp = self._reported(values, how)
        return Completion(
            prompt_tokens=tuple(prompt),
            tokens=tokens,
            text=cut_at(self.tokenizer.decode(tokens, skip_special_tokens=True), how.stop),
            logp=logp,
            drawn_logp=drawn_logp,
            finish_reason=_REASONS[output.finish_reason],  # pyright: ignore[reportArgumentType]
            version=self.version,
        )

    def _reported(
        self, values: tuple[float, ...], how: Sampling
    ) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
        """Return what vLLM's numbers are: those of the model, those of the draw, or neither."""
        if not self._of_the_draw:
            return (None if is_tempered(how) else values), None
        cut = how.temperature > 0 and (how.top_p < 1 or how.top_k > 0 or how.min_p > 0)
        if cut or how.repetition_penalty != 1.0:
            return None, None
        return (None, values) if is_tempered(how) else (values, None)
