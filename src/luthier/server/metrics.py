"""Numbers for Prometheus; a registry of its own for each server."""

from __future__ import annotations

import resource
import sys
from typing import TYPE_CHECKING

import psutil
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

if TYPE_CHECKING:
    from collections.abc import Callable

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_RATES = (1, 2, 5, 10, 20, 50, 100, 200, 500)


class Metrics:
    """Counts and times of a server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        new = self.registry
        self.requests = Counter("luthier_requests", "Replies by path and status code.", ["path", "code"], registry=new)
        self.tokens_in = Counter("luthier_prompt_tokens", "Tokens of prompts.", registry=new)
        self.tokens_out = Counter("luthier_completion_tokens", "Tokens of answers.", registry=new)
        self.cancelled = Counter(
            "luthier_cancelled_requests", "Requests given up, by reason.", ["reason"], registry=new
        )
        self.first_token = Histogram(
            "luthier_time_to_first_token_seconds", "From a request to its first token.", buckets=_SECONDS, registry=new
        )
        self.rate = Histogram(
            "luthier_answer_tokens_per_second",
            "Speed of one answer behind its first token.",
            buckets=_RATES,
            registry=new,
        )
        memory = Gauge("luthier_resident_memory_bytes", "Memory of the process.", registry=new)
        memory.set_function(lambda: psutil.Process().memory_info().rss)
        peak = Gauge("luthier_peak_memory_bytes", "Most memory that the process had.", registry=new)
        unit = 1 if sys.platform == "darwin" else 1024
        peak.set_function(lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)

    def watch(self, name: str, about: str, read: Callable[[], float]) -> None:
        """Report a number that is read when it is asked for."""
        Gauge(f"luthier_{name}", about, registry=self.registry).set_function(read)

    def text(self) -> bytes:
        """Return everything in Prometheus' text form."""
        return generate_latest(self.registry)
