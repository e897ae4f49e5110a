"""A trained run, held-out rows, and a judge over HTTP."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from luthier.config.load import load_config
from luthier.workflows.train import train


@pytest.fixture(scope="session")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("held-out") / "held.jsonl"
    words = ["tea", "你好", "🙂 ok", "stone"]
    lines = [{"instruction": f"say {words[i % 4]} {i}", "output": f"{words[(i * 3) % 4]} {i}"} for i in range(10)]
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def run(tiny: Path, rows: Path, held_out: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished LoRA run; its last eval_loss is on `held_out`. Tests that write into it take a copy."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    settings = {"model_name_or_path": str(tiny), "dataset": str(rows), "eval_dataset": str(held_out), "dtype": "float32",
                "output_dir": str(folder), "max_steps": 4, "learning_rate": 1e-2, "lora_rank": 4, "plot_loss": False,
                "max_new_tokens": 6, "eval_steps": 4}  # fmt: skip
    train(load_config(settings).config, quiet=True)
    return folder


class JudgeServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.reply: Callable[[str], str] = lambda text: "Verdict: tie"
        self.seen: list[dict[str, Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: JudgeServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append(body)
        text = self.server.reply(body["messages"][0]["content"])
        data = json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None: ...


@pytest.fixture
def judge_server() -> Iterator[JudgeServer]:
    server = JudgeServer()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()
