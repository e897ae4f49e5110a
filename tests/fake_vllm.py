"""A stand-in that speaks vLLM's interface, as of 0.33, and answers with a small transformers model, token by token.

It keeps what the engine relies on: weights come by published names, dummy ones until then; log-probabilities are those
of the model, or of what is left of the distribution that draws; stop tokens stay in the answer; a seed grows with n.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

STOP_WITHOUT_TEXT = "stop strings are only supported when detokenize is True"


@dataclass
class SamplingParams:
    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_tokens: int = 16
    stop: list[str] | None = None
    stop_token_ids: list[int] | None = None
    seed: int | None = None
    logprobs: int | None = None
    detokenize: bool = True

    def __post_init__(self) -> None:
        if self.stop and not self.detokenize:
            raise ValueError(STOP_WITHOUT_TEXT)
        if self.temperature == 0:
            self.top_p, self.top_k, self.min_p = 1.0, 0, 0.0


@dataclass
class _Output:
    index: int
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[dict[int, Any]] = field(default_factory=list)
    finish_reason: str | None = None


@dataclass
class _Request:
    name: str
    prompt: list[int]
    params: SamplingParams
    outputs: list[_Output]


class LLM:
    """Takes the arguments that the engine gives; others are a mistake."""

    def __init__(
        self,
        model: str,
        *,
        load_format: str,
        dtype: str,
        max_num_seqs: int,
        max_model_len: int,
        gpu_memory_utilization: float,
        logprobs_mode: str,
        distributed_executor_backend: str | None,
    ) -> None:
        from helpers import byte_tokenizer
        from transformers import AutoConfig, AutoModelForCausalLM

        assert load_format == "dummy"
        assert max_model_len == -1
        assert 0 < gpu_memory_utilization < 1
        assert max_num_seqs >= 1
        assert distributed_executor_backend is None
        assert (Path(model) / "tokenizer_config.json").is_file()
        config = AutoConfig.from_pretrained(model)
        self.model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).eval()
        self.tokenizer, self.mode = byte_tokenizer(), logprobs_mode
        self.llm_engine: Any = self
        self.model_config = SimpleNamespace(max_model_len=config.max_position_embeddings)
        self.running: list[_Request] = []
        self.resets, self.names = 0, list[str]()

    # ---- weights

    def collective_rpc(self, method: str, kwargs: dict[str, Any]) -> list[None]:
        """Load weights under published names; transformers reads them into its own."""
        assert method == "reload_weights"
        weights = {name: tensor.clone() for name, tensor in kwargs["weights_iterator"]}
        self.names = list(weights)
        loaded = type(self.model).from_pretrained(
            None, config=self.model.config, state_dict=weights, dtype=self.model.dtype, output_loading_info=True
        )
        assert not loaded[1]["missing_keys"], loaded[1]
        assert not loaded[1]["unexpected_keys"], loaded[1]
        self.model = loaded[0].eval()
        return [None]

    def reset_prefix_cache(self) -> bool:
        self.resets += 1
        return True

    # ---- answers

    def generate(self, prompts: list[Any], params: list[SamplingParams], *, use_tqdm: bool) -> list[Any]:
        assert not use_tqdm
        names = [str(number) for number in range(len(prompts))]
        for name, prompt, each in zip(names, prompts, params, strict=True):
            self.add_request(name, prompt, each)
        finished: dict[str, Any] = {}
        while len(finished) < len(names):
            finished |= {result.request_id: result for result in self.step() if result.finished}
        return [finished[name] for name in names]

    def add_request(self, request_id: str, prompt: dict[str, list[int]], params: SamplingParams) -> str:
        outputs = [_Output(index) for index in range(params.n)]
        request = _Request(request_id, prompt["prompt_token_ids"], params, outputs)
        for output in outputs:
            seed = None if params.seed is None else params.seed + output.index
            output.draws = torch.Generator().manual_seed(seed) if seed is not None else None  # pyright: ignore[reportAttributeAccessIssue]
        self.running.append(request)
        return request_id + "-internal"

    def abort_request(self, request_ids: list[str]) -> None:
        self.running = [request for request in self.running if request.name not in request_ids]

    @torch.no_grad()
    def step(self) -> list[Any]:
        results = []
        for request in list(self.running):
            for output in request.outputs:
                if output.finish_reason is None:
                    self._grow(request, output)
            finished = all(output.finish_reason for output in request.outputs)
            if finished:
                self.running.remove(request)
            outputs = request.outputs[::-1]
            results.append(SimpleNamespace(request_id=request.name, outputs=outputs, finished=finished))
        return results

    def _grow(self, request: _Request, output: _Output) -> None:
        params, ids = request.params, [*request.prompt, *output.token_ids]
        raw = self.model(torch.tensor([ids]), use_cache=False).logits[0, -1].float()
        logits = raw.clone()
        if params.repetition_penalty != 1:
            seen = torch.tensor(sorted(set(ids)))
            part = logits[seen]
            logits[seen] = torch.where(part > 0, part / params.repetition_penalty, part * params.repetition_penalty)
        if params.temperature > 0:
            logits = _cut(logits / params.temperature, params)
            probs = torch.softmax(logits, -1)
            token = int(torch.multinomial(probs, 1, generator=output.draws))  # pyright: ignore[reportAttributeAccessIssue]
        else:
            token = int(logits.argmax())
        shown = torch.log_softmax(logits if self.mode == "processed_logprobs" else raw, -1)
        output.token_ids.append(token)
        output.logprobs.append({token: SimpleNamespace(logprob=float(shown[token]))})
        text = self.tokenizer.decode(output.token_ids, skip_special_tokens=True) if params.detokenize else ""
        full = len(output.token_ids) >= params.max_tokens or len(ids) + 1 >= self.model_config.max_model_len
        if token in (params.stop_token_ids or []) or any(stop in text for stop in params.stop or []):
            output.finish_reason = "stop"
        elif full:
            output.finish_reason = "length"


def _cut(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    if params.top_k:
        logits = logits.masked_fill(logits < logits.topk(params.top_k).values[-1], -math.inf)
    probs, order = torch.softmax(logits, -1).sort(descending=True)
    out = order[(probs.cumsum(-1) - probs) >= params.top_p]
    logits = logits.index_fill(0, out, -math.inf)
    return logits.masked_fill(torch.softmax(logits, -1) < params.min_p * torch.softmax(logits, -1).max(), -math.inf)
