"""Models at work: asked through the page byte by byte, stopped when the asker leaves, their key kept here."""

import asyncio
import hashlib
import json
import shutil
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from asking import Page, asking
from serving import Running, plan_of, running, until

from luthier.runs.job_files import JobFile, JobSpec
from luthier.server.keys import Keys
from luthier.server.listen import listening_socket
from luthier.server.ui.app import make_app
from luthier.server.ui.pass_on import _bytes
from luthier.server.ui.said import speaking
from luthier.server.ui.serving import parts_of

SECRET = "lk-canary-of-the-page"


@pytest.fixture(scope="module")
def model(tiny: Path) -> Iterator[Running]:
    with running(plan_of(tiny), keys=Keys([SECRET]), key=SECRET) as found:
        yield found


@pytest.fixture
def page(tmp_path: Path, tiny: Path, model: Running) -> Iterator[Page]:
    with asking(tmp_path) as found:
        shutil.copytree(tiny, tmp_path / "models/tiny")
        serve_as(found, "job-at-work", model.port, str(tmp_path / "models/tiny"))
        yield found


def serve_as(page: Page, job: str, port: int, source: str, state: str = "running") -> None:
    """A job whose process is the server of this test."""
    from luthier.runs.begin import claim
    from luthier.runs.process import Identity

    page.state.jobs.change_queue(holding=True)
    keys = {"keys": {"page": hashlib.sha256(SECRET.encode()).hexdigest()}}
    command = ("python", "-m", "luthier", "serve", source, "model.threads=1", "serve.port={port}")
    files = {"key": SECRET, "keys.json": json.dumps(keys)}
    page.state.jobs.add(JobSpec(request_id=job, kind="serve", command=command, name="tickets", files=files))
    file = JobFile(page.state.jobs.path(job))
    now = file.now
    now.state, now.port, now.process = state, port, Identity.here().as_dict()  # pyright: ignore
    file.write(now)
    assert claim(file.folder)


def ask(page: Page, status: int = 200, job: str = "job-at-work", **more: Any) -> httpx.Response:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8, **more}
    reply = page.http.post(f"/api/serving/{job}/v1/chat/completions", json=body)
    assert reply.status_code == status, reply.text
    return reply  # pyright: ignore[reportReturnType]


def test_the_list(page: Page, model: Running) -> None:
    (found,) = page.get("/serving")["servings"]
    assert (found["job"], found["name"], found["state"], found["models"]) == (
        "job-at-work",
        "tickets",
        "ready",
        ["tiny"],
    )
    assert found["context"] > 0
    assert found["curl"].startswith(f"curl http://127.0.0.1:{model.port}/v1/chat/completions")
    assert SECRET not in page.http.get("/api/serving").text
    assert str(page.state.jobs.path("job-at-work") / "key") in found["curl"]


def test_answers_pass_as_they_are(page: Page, model: Running) -> None:
    reply = ask(page, seed=1)
    direct = httpx.post(
        f"{model.url}/v1/chat/completions",
        headers={"authorization": f"Bearer {SECRET}"},
        json={"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8, "seed": 1},
    )
    assert reply.json()["choices"] == direct.json()["choices"]
    assert reply.json()["usage"] == direct.json()["usage"]
    assert SECRET not in str(reply.headers) + reply.text
    assert page.get("/serving/job-at-work/v1/models")["data"][0]["id"] == "tiny"
    text = page.http.post(
        "/api/serving/job-at-work/v1/completions", json={"model": "tiny", "prompt": "a", "max_tokens": 3}
    )
    assert text.json()["object"] == "text_completion"


def test_streams(page: Page) -> None:
    reply = ask(page, stream=True)
    assert reply.headers["content-type"].startswith("text/event-stream")
    events = [line for line in reply.text.split("\n\n") if line]
    assert events[-1] == "data: [DONE]"
    assert len(events) > 4


def test_refusals_of_the_model_are_handed_on(page: Page) -> None:
    assert ask(page, 404, model="other").json()["error"]["code"]
    assert ask(page, 400, temperature="hot").json()["error"]["param"] == "temperature"
    body = {"model": "<b>{0}", "messages": [{"role": "user", "content": "hello"}]}
    asked = {"Accept-Language": "zh-CN"}
    reply = page.http.post("/api/serving/job-at-work/v1/chat/completions", json=body, headers=asked)
    assert reply.status_code == 404
    assert reply.json()["error"]["message"] == "这里没有模型 '<b>{0}'；现有：tiny"


def test_an_answer_that_ends_in_the_middle_says_so() -> None:
    async def parts() -> AsyncIterator[bytes]:
        yield b"data: 1\n\n"
        raise httpx.ReadError("gone")

    async def heard() -> list[bytes]:
        reply = httpx.Response(200, headers={"content-type": "text/event-stream"}, content=parts())
        with speaking("zh"):
            return [part async for part in _bytes(reply)]

    first, last = asyncio.run(heard())
    assert first == b"data: 1\n\n"
    assert last.startswith(b"data: ")
    assert last.endswith(b"\n\n")
    error = json.loads(last.removeprefix(b"data: "))["error"]
    assert (error["message"], error["code"]) == ("模型中途结束：'gone'", "serving_away")


def test_who_does_not_serve(page: Page, tmp_path: Path) -> None:
    assert page.http.post("/api/serving/no-such-job/v1/chat/completions", json={}).status_code in (404, 422)
    assert page.http.post("/api/serving/..%2F..%2Fetc/v1/chat/completions", json={}).status_code in (404, 422)
    serve_as(page, "job-that-died", 1, "m")
    reply = page.http.post("/api/serving/job-that-died/v1/chat/completions", json={})
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "serving_away")
    found = {each["job"]: each for each in page.get("/serving")["servings"]}
    assert found["job-that-died"]["state"] == "starting"


def test_the_answer_ends_when_the_asker_leaves(page: Page, model: Running) -> None:
    """Over a real socket, streamed and not: nothing is generated for nobody."""
    with listening_socket("127.0.0.1", 0) as listening:
        server = uvicorn.Server(uvicorn.Config(make_app(page.state), log_config=None, ws="none"))
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        until(lambda: server.started)
        address = f"http://127.0.0.1:{listening.getsockname()[1]}/api/serving/job-at-work/v1/chat/completions"
        headers = {"authorization": f"Bearer {page.state.token}", "x-luthier": "1"}
        body = {
            "model": "tiny",
            "messages": [{"role": "user", "content": "x"}],
            "max_tokens": 400,
            "n": 16,
            "temperature": 2,
        }

        async def leave(*, stream: bool) -> None:
            async with httpx.AsyncClient(timeout=30) as client:
                asked = client.build_request("POST", address, headers=headers, json={**body, "stream": stream})
                task = asyncio.ensure_future(client.send(asked, stream=True))
                end = time.monotonic() + 10
                while not busy():
                    assert time.monotonic() < end
                    await asyncio.sleep(0.005)
                if stream:
                    reply = await task
                    async for _ in reply.aiter_raw():
                        break
                    await reply.aclose()
                task.cancel()

        def busy() -> bool:
            return model.metric("luthier_running_requests") > 0

        times: list[float] = []
        try:
            began = time.monotonic()
            whole = httpx.post(address, headers=headers, json=body, timeout=60)
            assert whole.status_code == httpx.codes.OK
            alone = time.monotonic() - began
            for stream in (True, False):
                asyncio.run(leave(stream=stream))
                began = time.monotonic()
                until(lambda: not busy(), 5)
                times.append(time.monotonic() - began)
        finally:
            server.should_exit = True
            thread.join(10)
        assert max(times) < alone / 2


@pytest.mark.slow
def test_exact_tokens_of_a_prompt(page: Page) -> None:
    messages = [{"role": "user", "content": "你好 🙂"}]
    found = page.post("/serving/job-at-work/tokens", {"messages": messages})
    usage = ask(page, messages=messages).json()["usage"]
    assert len(found["pieces"]) == found["read"] == usage["prompt_tokens"]
    assert "你好 🙂" in "".join(piece["text"] for piece in found["pieces"])
    assert page.post("/serving/job-at-work/tokens", {"messages": [{"role": "nobody", "content": ""}]}, 422)["field"]


def test_parts_of_a_command() -> None:
    command = ["python", "-m", "luthier", "serve", "/m", "data.template=qwen", "--adapter", "a=/runs/a=b",
               "serve.host=127.0.0.1", "serve.port=1"]  # fmt: skip
    assert parts_of(command) == ("/m", ["data.template=qwen"], {"a": "/runs/a=b"})
