"""llama.cpp in a process of its own, which answers one line of JSON with another: an abort there ends no test run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


class LlamaCpp:
    """Asks for logits, ids and pieces of a GGUF file. A crash is an AssertionError with what was printed."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None

    def ask(self, kind: str, file: Path, **what: Any) -> Any:
        if self.process is None or self.process.poll() is not None:
            # To a file: a pipe that nobody reads fills, and its writer waits.
            self.printed = tempfile.TemporaryFile("w+")  # noqa: SIM115
            self.process = subprocess.Popen(
                [sys.executable, __file__],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.printed, text=True,
                env={**os.environ, "GGML_NO_BACKTRACE": "1"},
            )  # fmt: skip
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"kind": kind, "file": str(file), **what}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        answer = json.loads(line) if line else {"error": "it ended"}
        assert "error" not in answer, f"{answer['error']}: {self._said()}"
        return answer["ok"]

    def _said(self) -> str:
        self.printed.seek(0)
        return self.printed.read()[-3000:]

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


def _answer(file: str, ids: list[int], count: int, adapter: str | None = None, context: int = 0) -> dict[str, Any]:
    """Write `count` tokens greedily: the tokens, and for each the log-probabilities of all tokens in front of it."""
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path, settings.n_ctx, settings.n_parallel, settings.warmup = file, context or 256, 1, False
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
    settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    if adapter is not None:
        settings.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(adapter, 1.0)]
    server = xllamacpp.Server(settings)
    said = server.handle_completions(
        {"prompt": ids, "n_predict": count, "temperature": 0.0, "n_probs": 1_000_000, "ignore_eos": True}
    )
    assert "error" not in said, said
    steps = said["choices"][0]["logprobs"]["content"]
    return {
        "tokens": [step["id"] for step in steps],
        "logprobs": [[one["logprob"] for one in sorted(step["top_logprobs"], key=lambda x: x["id"])] for step in steps],
    }


def _tokenize(file: str, texts: list[str], special: bool = False) -> list[list[int]]:
    model = _model(file)
    vocab = model.get_vocab()
    return [list(vocab.tokenize(text, add_special=special, parse_special=True)) for text in texts]


def _facts(file: str) -> dict[str, Any]:
    model = _model(file)
    vocab = model.get_vocab()
    return {
        "bos": vocab.token_bos(),
        "eos": vocab.token_eos(),
        "eot": vocab.token_eot(),
        "pad": vocab.token_pad(),
        "add_bos": bool(vocab.get_add_bos()),
        "add_eos": bool(vocab.get_add_eos()),
        "ends": [i for i in range(vocab.n_vocab) if vocab.is_eog(i)],
    }


def _model(file: str) -> Any:
    import cyllama.llama.llama_cpp as lc

    lc.disable_logging()
    settings = lc.LlamaModelParams()
    settings.n_gpu_layers = 0
    return lc.LlamaModel(file, settings)


def main() -> None:
    # The libraries print to standard output, too.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    kinds = {"answer": _answer, "tokenize": _tokenize, "facts": _facts}
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"ok": kinds[request.pop("kind")](request.pop("file"), **request)}
        except Exception as error:  # noqa: BLE001
            answer = {"error": repr(error)}
        out.write(json.dumps(answer) + "\n")
        out.flush()


if __name__ == "__main__":
    main()
