"""A server with a tiny random model, listening in a thread, for the official client and for raw sockets."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
from openai import OpenAI

from luthier.config.load import load_config
from luthier.server.keys import Keys
from luthier.server.listen import open_socket
from luthier.server.run import Server
from luthier.server.service import Service
from luthier.workflows.serve import Plan, plan_serving


@dataclass
class Running:
    """A server that listens."""

    server: Server
    service: Service
    port: int
    key: str

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, **options: Any) -> OpenAI:
        """The official client."""
        return OpenAI(**{"base_url": f"{self.url}/v1", "api_key": self.key or "none", "max_retries": 0, **options})

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        return httpx.post(f"{self.url}{path}", json=body, timeout=60, **options)

    def metric(self, name: str, **labels: str) -> float:
        """A number of the server's own registry."""
        return self.service.metrics.registry.get_sample_value(name, labels) or 0.0


def plan_of(folder: Path, *overrides: str, **adapters: Any) -> Plan:
    """What is served, from a folder and settings."""
    settings = ["threads=1", "max_new_tokens=12", "temperature=0", "served_model_name=tiny", *overrides]
    return plan_serving(load_config({"model_name_or_path": str(folder)}, settings).config, adapters)


@contextmanager
def running(plan: Plan, *, keys: Keys | None = None, key: str = "", wait: bool = True) -> Generator[Running]:
    """Listen on a free port in a thread."""
    service = Service(plan, plan.config.serve)
    with open_socket("127.0.0.1", 0) as listening:
        server = Server(service, keys or Keys())
        thread = Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        try:
            if wait:
                until(lambda: service.state != "loading")
            yield Running(server, service, listening.getsockname()[1], key)
        finally:
            server.stop()
            thread.join(30)
            assert not thread.is_alive(), "the server does not end"


def until(true: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait for a condition."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.005)
