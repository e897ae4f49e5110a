"""`luthier serve` as people run it: a process with keys, an adapter beside its base, and a signal that ends it."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from helpers import Jobs, make_folder, wait_for
from openai import APIError, AuthenticationError, NotFoundError, OpenAI
from tunings import fresh

ASKED: Any = [{"role": "user", "content": "Kö 🙂?"}]


@contextmanager
def served(jobs: Jobs, *words: object, cwd: Path) -> Iterator[tuple[Any, str]]:
    """A process that serves, and its address."""
    process = jobs.start("serve", *words, "--port", "0", cwd=cwd)
    log = process.files[1]
    try:
        found = wait_for(lambda: log.exists() and re.search(r"listening on (http://\S+)/v1", log.read_text()))
        yield process, found[1]
    finally:
        process.kill()


def ready(url: str) -> None:
    """Wait until the model answers; until then the server is alive and says why it does not."""
    end = time.monotonic() + 60
    while (found := httpx.get(f"{url}/ready")).status_code == 503:
        assert httpx.get(f"{url}/health").status_code == 200
        assert found.json()["error"]["code"] == "model_loading"
        assert time.monotonic() < end
        time.sleep(0.05)
    assert found.json()["status"] == "ready"


@pytest.fixture
def adapter(tiny: Path, tmp_path: Path) -> Path:
    """A LoRA adapter on the tiny model that changes its answers."""
    import torch
    from peft import LoraConfig, get_peft_model

    tuned = get_peft_model(fresh(tiny), LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.mul_(20)
    tuned.peft_config["default"].base_model_name_or_path = str(tiny)
    tuned.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_serve_answer_and_stop(tiny: Path, adapter: Path, tmp_path: Path, jobs: Jobs) -> None:
    key = jobs.run("keys", "add", "ann", "--file", tmp_path / "keys.json", cwd=tmp_path).out.strip()
    settings = [f"serve.api_keys={tmp_path / 'keys.json'}", "served_model_name=base", "threads=1", "temperature=0"]
    with served(jobs, tiny, *settings, "--adapter", f"tuned={adapter}", cwd=tmp_path) as (process, url):
        ready(url)
        client = OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)
        cards = {card.id: card.model_extra for card in client.models.list()}
        assert {name: extra["parent"] for name, extra in cards.items()} == {"base": None, "tuned": "base"}
        answers = {
            name: client.chat.completions.create(model=name, messages=ASKED, max_tokens=12).choices[0].message.content
            for name in cards
        }
        assert answers["base"] != answers["tuned"]
        with pytest.raises(AuthenticationError):
            OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0).models.list()
        with pytest.raises(NotFoundError):
            client.chat.completions.create(model="gpt", messages=ASKED)
        stream = client.chat.completions.create(
            model="base", messages=ASKED, max_tokens=300, stream=True, logit_bias={"258": -100}
        )
        first = next(iter(stream))
        process.terminate()
        rest = [chunk.choices[0] for chunk in stream]
        assert first.choices[0].delta.role == "assistant"
        assert rest[-1].finish_reason == "length", "what runs may end"
        process.join(30)
        assert process.exitcode == 0
    said = process.files[1].read_text()
    assert "stopped: 3 requests were answered, 0 were given up" in said
    assert key not in said
    assert key not in (tmp_path / "keys.json").read_text()
    assert "Traceback" not in said
    # What is promised of the file of keys: others on this machine cannot read it.
    assert (tmp_path / "keys.json").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["serve.host=0.0.0.0"], "reached from other machines"),
        (["--adapter", "x"], "--adapter takes name=RUN"),
        (["engine=hf"], "engine: hf does not serve"),
        (["served_model_name=a/b"], "no name for clients"),
    ],
)
def test_what_cannot_be_served_is_said_at_once(
    tiny: Path, jobs: Jobs, tmp_path: Path, words: list[str], told: str
) -> None:
    found = jobs.run("serve", tiny, *words, cwd=tmp_path)
    assert found.code == 2
    assert told in found.err
    assert "Traceback" not in found.err


def test_a_model_that_the_decoder_does_not_run(tmp_path: Path, jobs: Jobs) -> None:
    found = jobs.run("serve", make_folder("falcon_alibi", tmp_path / "m"), "--port", "0", "threads=1", cwd=tmp_path)
    assert found.code == 2
    assert "cannot be served" in found.err
    assert "Traceback" not in found.err


def test_a_signal_while_it_loads_ends_it_at_once(tiny: Path, jobs: Jobs, tmp_path: Path) -> None:
    with served(jobs, tiny, "threads=1", cwd=tmp_path) as (process, url):
        assert httpx.get(f"{url}/health").status_code == 200
        process.terminate()
        process.join(10)
        assert process.exitcode == 0
    said = process.files[1].read_text()
    assert "stopped: 0 requests were answered, 0 were given up" in said
    assert "Traceback" not in said


def test_a_second_signal_does_not_wait(jobs: Jobs, tmp_path: Path) -> None:
    settings = ["threads=1", "served_model_name=base", "shutdown_grace_seconds=60"]
    longer = make_folder("llama", tmp_path / "longer")
    config = longer / "config.json"
    config.write_text(config.read_text().replace('"max_position_embeddings": 512', '"max_position_embeddings": 100000'))
    with served(jobs, longer, *settings, cwd=tmp_path) as (process, url):
        ready(url)
        client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        stream = client.chat.completions.create(
            model="base", messages=ASKED, max_tokens=90_000, stream=True, logit_bias={"258": -100}
        )
        next(iter(stream))
        process.terminate()
        wait_for(lambda: "stopping: 1 requests may go on for 60 s" in process.files[1].read_text())
        process.terminate()
        with pytest.raises(APIError, match="stopped before this answer was done"):
            list(stream)
        process.join(10)
        assert process.exitcode == 0
    said = process.files[1].read_text()
    assert "stopped: 0 requests were answered, 1 were given up" in said
    assert "Traceback" not in said
