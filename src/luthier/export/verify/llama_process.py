"""llama.cpp in a process of its own: answers one request a line until its input ends.

Started as `python -m luthier.export.verify.llama_process logits FILE` (cyllama: all logits of given ids) or `... serve
FILE` (xllamacpp: tokenizer, chat template, greedy answers). A request is a JSON object a line, {"do": name, ...}; the
answer is one too, {"result": ...} or {"error": ...}; with "bytes" it says how many raw bytes follow. It imports neither
torch nor transformers, so that it starts at once and has memory for the model only.
"""

from __future__ import annotations

import http.client
import json
import os
import secrets
import sys
from collections.abc import Callable
from typing import Any

CONTEXT = 1024
"""Tokens of one sequence at most."""
SLOTS = 4
"""Answers that grow together."""

_Answer = tuple[Any, bytes]
_Work = Callable[[dict[str, Any]], _Answer]


def _logits(path: str) -> dict[str, _Work]:
    import numpy as np
    from cyllama.llama import llama_cpp

    class Model(llama_cpp.LlamaModel):
        """cyllama's context asks its model for `n_vocab`, which the class has not."""

        @property
        def n_vocab(self) -> int:
            return self.get_vocab().n_vocab

    llama_cpp.disable_logging()
    params = llama_cpp.LlamaModelParams()
    params.n_gpu_layers = 0
    model = Model(path, params, verbose=False)
    vocab, context, cached = model.get_vocab(), None, list[int]()
    batch = llama_cpp.LlamaBatch(n_tokens=CONTEXT, embd=0, n_seq_max=1)

    def started() -> Any:
        nonlocal context
        if context is None:
            sizes = llama_cpp.LlamaContextParams()
            sizes.n_ctx = sizes.n_batch = CONTEXT
            sizes.n_threads = sizes.n_threads_batch = _threads()
            sizes.type_k = sizes.type_v = 0  # float32: keys and values are no part of what the file is measured by
            sizes.flash_attn_type = 0  # off: it keeps a mask and sums in half precision
            context = llama_cpp.LlamaContext(model, sizes, verbose=False)
        return context

    def logits(asked: dict[str, Any]) -> _Answer:
        """Return float32 logits behind each of `ids` from place `first` on; what the last ids began with is kept."""
        ids, first, reader = asked["ids"], asked["first"], started()
        same = next((i for i, (a, b) in enumerate(zip(ids, cached, strict=False)) if a != b), len(cached))
        known = min(same, first)
        if not (known and reader.memory_seq_rm(0, known, -1)):
            known = 0
            reader.kv_cache_clear()
        batch.clear()
        for place in range(known, len(ids)):
            batch.add(ids[place], place, [0], place >= first)
        reader.decode(batch)
        cached[:] = ids
        rows = [np.array(reader.get_logits_ith(i - known), dtype=np.float32) for i in range(first, len(ids))]
        return [len(rows), vocab.n_vocab], np.stack(rows).tobytes()

    def ends(asked: dict[str, Any]) -> _Answer:
        """Tell of each id whether llama.cpp ends an answer with it."""
        return [bool(vocab.is_eog(token)) for token in asked["ids"]], b""

    return {"logits": logits, "ends": ends}


def _serve(path: str) -> dict[str, _Work]:
    import xllamacpp as installed

    xllamacpp: Any = installed  # compiled, without types

    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_parallel, params.n_ctx = SLOTS, CONTEXT * SLOTS
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = _threads()
    params.n_gpu_layers, params.warmup, params.ui = 0, False, False
    params.prefill_assistant = False
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    key = secrets.token_hex(16)
    params.api_keys = [key]
    server = xllamacpp.Server(params)
    address = server.listening_address.removeprefix("http://")
    connection = http.client.HTTPConnection(address)

    def post(place: str, body: dict[str, Any]) -> Any:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
        connection.request("POST", place, json.dumps(body).encode(), headers)
        answer = connection.getresponse()
        found = json.loads(answer.read())
        if answer.status != 200:
            raise RuntimeError(str(found.get("error", {}).get("message", found)))
        return found

    def tokenize(asked: dict[str, Any]) -> _Answer:
        fixed = {"add_special": asked["add_special"], "parse_special": asked.get("parse_special", True)}
        return [post("/tokenize", {"content": text, **fixed})["tokens"] for text in asked["texts"]], b""

    def detokenize(asked: dict[str, Any]) -> _Answer:
        return [post("/detokenize", {"tokens": ids})["content"] for ids in asked["ids"]], b""

    def pieces(asked: dict[str, Any]) -> _Answer:
        """Return the bytes of each token of a text, in hexadecimal."""
        fixed = {"add_special": False, "parse_special": True, "with_pieces": True}
        found = [post("/tokenize", {"content": text, **fixed})["tokens"] for text in asked["texts"]]
        return [[_hexadecimal(token["piece"]) for token in tokens] for tokens in found], b""

    def template(asked: dict[str, Any]) -> _Answer:
        return post("/apply-template", asked["body"])["prompt"], b""

    def answer(asked: dict[str, Any]) -> _Answer:
        """Answer prompts of ids, each greedily: tokens, text, and whether the model ended it."""
        body = {"prompt": asked["prompts"], "n_predict": asked["most"], "temperature": 0, "return_tokens": True,
                "cache_prompt": True, "samplers": ["temperature"], "repeat_penalty": 1.0}  # fmt: skip
        found = post("/completion", body)
        found = sorted(found if isinstance(found, list) else [found], key=lambda each: each["index"])
        return [[each["tokens"], each["content"], each["stop_type"] == "eos"] for each in found], b""

    return {"tokenize": tokenize, "detokenize": detokenize, "pieces": pieces, "template": template, "answer": answer,
            "close": lambda _: (server.__class__.__name__, b"")}  # fmt: skip


def _hexadecimal(piece: str | list[int]) -> str:
    return (piece.encode() if isinstance(piece, str) else bytes(piece)).hex()


def _threads() -> int:
    return int(os.environ.get("OMP_NUM_THREADS") or max(1, (os.cpu_count() or 2) // 2))


_MODES = {"logits": _logits, "serve": _serve}


def main() -> None:
    """Answer requests on standard input; what libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    work = _MODES[sys.argv[1]](sys.argv[2])
    for line in sys.stdin.buffer:
        asked = json.loads(line)
        try:
            result, raw = work[asked.pop("do")](asked)
            head: dict[str, Any] = {"result": result, "bytes": len(raw)}
        except Exception as error:  # noqa: BLE001  it is the asker who knows what a failure means
            head, raw = {"error": f"{type(error).__name__}: {error}"}, b""
        answers.write(json.dumps(head).encode() + b"\n" + raw)
        answers.flush()


if __name__ == "__main__":
    main()
