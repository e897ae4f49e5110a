"""A server with a tiny random model for all tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import OpenAI
from serving import Running, plan_of, running


@pytest.fixture(scope="session")
def live(tiny: Path) -> Iterator[Running]:
    """The tiny model, for every test that does not change the server."""
    with running(plan_of(tiny)) as found:
        yield found


@pytest.fixture(scope="session")
def client(live: Running) -> Iterator[OpenAI]:
    with live.client() as found:
        yield found
