"""What `luthier serve` does under load: many clients at once, memory, throughput, and llama.cpp's server beside it.

python benchmarks/serve.py [--model smollm2-135m] [--clients 200] [--bursts 3] [--tokens 64] [--rounds 3] [--threads N]

Clients, luthier and llama.cpp (xllamacpp, on a Q8_0 file that luthier writes of the same model) are processes of their
own; clients keep their connections. Answers have exactly `tokens` tokens, because the end of turn is forbidden, and
are greedy, so that each can be compared with the answer to the same prompt alone. Throughput counts tokens of answers
over the whole time, prompts included. Both servers use 8-bit weights for speed; luthier answers in float32 where
answers are compared.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import report

from luthier.export.gguf.write import write_gguf
from luthier.export.source import folder_source
from luthier.kernels.cpu import processor_name
from luthier.models.load import load_tokenizer, resolve

if TYPE_CHECKING:
    from collections.abc import Generator

TOGETHER = 32
BATCHING_TARGET, PEER_TARGET, MEMORY_TARGET = 4.0, 1.0, 1.05
PEER = """
import json, sys, threading
import xllamacpp
path, threads, slots = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
params = xllamacpp.CommonParams()
params.model.path = path
params.n_parallel, params.n_ctx = slots, slots * 1024
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
params.n_gpu_layers, params.ui = 0, False
server = xllamacpp.Server(params)
print("listening on " + server.listening_address + "/v1", file=sys.stderr, flush=True)
threading.Event().wait()
"""
_WORDS = ("rivers", "bread", "clocks", "winter", "chess", "maps", "bees", "glass", "trains", "paper", "stars", "salt")


@dataclass(frozen=True)
class Listening:
    """A server in a process of its own."""

    url: str
    process: psutil.Process

    @property
    def megabytes(self) -> float:
        """Return its resident memory."""
        return self.process.memory_info().rss / 1e6


@contextmanager
def listening(command: list[str], log: Path) -> Generator[Listening]:
    """Start a server and wait until it answers."""
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file)
    try:
        url = ""
        while not url or httpx.get(f"{url}/v1/models").status_code != 200 or not ready(url):
            if process.poll() is not None:
                raise SystemExit(log.read_text())
            found = re.search(r"listening on (http://\S+)/v1", log.read_text())
            url = found[1] if found else ""
            time.sleep(0.2)
        yield Listening(url, psutil.Process(process.pid))
    finally:
        process.terminate()
        process.wait(60)


def ready(url: str) -> bool:
    """Tell whether the model answers; llama.cpp says so under another path."""
    return any(httpx.get(url + path).status_code == 200 for path in ("/ready", "/v1/health"))


def prompts(count: int) -> list[str]:
    """Return questions, each different from the others from its first words on."""
    return [
        f"{number} facts about {_WORDS[number % len(_WORDS)]}, please. Begin with number {number}."
        for number in range(count)
    ]


@dataclass(frozen=True)
class Asking:
    """How both servers are asked."""

    model: str
    tokens: int
    ends: tuple[int, ...]

    async def one(self, client: httpx.AsyncClient, text: str) -> tuple[str, int]:
        """Return an answer and its number of tokens."""
        body = {"model": self.model, "messages": [{"role": "user", "content": text}], "max_tokens": self.tokens,
                "temperature": 0, "logit_bias": {str(token): -100 for token in self.ends}}  # fmt: skip
        reply = await client.post("/v1/chat/completions", json=body)
        reply.raise_for_status()
        found = reply.json()
        return found["choices"][0]["message"]["content"], found["usage"]["completion_tokens"]

    async def _all(self, url: str, texts: list[str], at_once: int) -> list[tuple[str, int]]:
        places = asyncio.Semaphore(at_once)
        limits = httpx.Limits(max_connections=at_once, max_keepalive_connections=at_once)
        async with httpx.AsyncClient(base_url=url, timeout=1800, limits=limits) as client:

            async def ask(text: str) -> tuple[str, int]:
                async with places:
                    return await self.one(client, text)

            return await asyncio.gather(*map(ask, texts))

    def answers(self, url: str, texts: list[str], at_once: int) -> tuple[list[str], float]:
        """Ask all, `at_once` together; return the answers and tokens per second."""
        began = time.perf_counter()
        found = asyncio.run(self._all(url, texts, at_once))
        return [text for text, _ in found], sum(count for _, count in found) / (time.perf_counter() - began)


def crowd(server: Listening, asking: Asking, asked: argparse.Namespace) -> None:
    """Print whether many clients at once get what each of them gets alone, and what memory does meanwhile."""
    texts = prompts(asked.clients)
    alone, _ = asking.answers(server.url, texts, 1)
    memory: list[float] = []
    different, lost = 0, 0
    for _ in range(asked.bursts):
        found, _ = asking.answers(server.url, texts, len(texts))
        different += sum(a != b for a, b in zip(alone, found, strict=True))
        lost += sum(not text for text in found)
        memory.append(server.megabytes)
    print(json.dumps({
        "measure": f"{len(texts)} clients at once, {asked.bursts} times: answers other than alone",
        "luthier": different, "target": 0, "lost": lost, "form": "float32",
        "memory_mb": [round(each) for each in memory],
        "memory_ratio": round(memory[-1] / memory[0], 3), "memory_target": MEMORY_TARGET, "processor": processor_name(),
    }), flush=True)  # fmt: skip


def throughput(ours: Listening, peer: Listening, asking: Asking, asked: argparse.Namespace) -> None:
    """Print tokens per second one at a time and together, of both servers in turns."""
    texts = prompts(TOGETHER)
    speeds: dict[tuple[str, int], list[float]] = {}
    for number in range(asked.rounds + 1):
        for at_once, some in ((1, texts[:4]), (TOGETHER, texts)):
            for name, server in (("luthier", ours), ("peer", peer)):
                _, speed = asking.answers(server.url, some, at_once)
                if number:  # the first round is a warm-up
                    speeds.setdefault((name, at_once), []).append(speed)
    together, single = speeds["luthier", TOGETHER], speeds["luthier", 1]
    gain = [a / b for a, b in zip(together, single, strict=True)]
    print(json.dumps({
        "measure": f"tokens per second, {TOGETHER} clients at once over one at a time",
        "luthier": round(sorted(gain)[len(gain) // 2], 2), "target": BATCHING_TARGET,
        "spread": [round(min(gain), 2), round(max(gain), 2)], "processor": processor_name(),
    }), flush=True)  # fmt: skip
    for at_once in (1, TOGETHER):
        measure = f"tokens per second over HTTP, {at_once} at once, 8-bit weights, llama.cpp Q8_0 as peer"
        facts = {"tokens": asked.tokens, "threads": asked.threads, "processor": processor_name()}
        print(
            report.line(measure, speeds["luthier", at_once], speeds["peer", at_once], PEER_TARGET, **facts), flush=True
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--bursts", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    asked = parser.parse_args()
    base = Path(resolve(asked.model).base)
    ends = _ends(base, resolve(asked.model))
    asking = Asking("model", asked.tokens, ends)

    def ours(form: str) -> list[str]:
        return [sys.executable, "-m", "luthier", "serve", asked.model, "--port", "0", f"decode_dtype={form}",
                "served_model_name=model", f"threads={asked.threads}", f"max_concurrent={TOGETHER}",
                f"max_queue={asked.clients}"]  # fmt: skip

    with tempfile.TemporaryDirectory(prefix="serve-") as temporary:
        folder = Path(temporary)
        with listening(ours("float32"), folder / "crowd.log") as server:
            crowd(server, asking, asked)
        file = write_gguf(folder_source(base), folder / "model.gguf", form="q8_0")
        peer = [sys.executable, "-c", PEER, str(file), str(asked.threads), str(TOGETHER)]
        with (
            listening(ours("int8"), folder / "ours.log") as server,
            listening(peer, folder / "peer.log") as other,
        ):
            throughput(server, other, asking, asked)


def _ends(base: Path, files: Any) -> tuple[int, ...]:
    """Return the tokens that end an answer."""
    from luthier.config.schema import ModelConfig

    tokenizer = load_tokenizer(files, ModelConfig(model_name_or_path=str(base)))
    found = json.loads((base / "generation_config.json").read_text()).get("eos_token_id")
    more = found if isinstance(found, list) else [found]
    return tuple(sorted({tokenizer.eos_token_id, *(token for token in more if token is not None)}))


if __name__ == "__main__":
    main()
