"""What comes in over raw sockets and beyond the limits: refused in the shape of errors, and nobody else waits."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import (
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    InternalServerError,
    NotFoundError,
    OpenAI,
    RateLimitError,
)
from serving import Running, plan_of, running, until

from luthier.core.errors import ConfigError
from luthier.server import job as job_module
from luthier.server import stream as stream_module
from luthier.server.keys import Keys, add_key, remove_key
from luthier.server.run import check_open

ASKED: Any = [{"role": "user", "content": "Kö 🙂?"}]
CHAT = {"model": "tiny", "messages": ASKED, "max_tokens": 5}
LONG = {**CHAT, "max_tokens": 400, "logit_bias": {"258": -100}, "stream": True}
PATH = "/v1/chat/completions"


def shaped(reply: httpx.Response, status: int) -> dict[str, Any]:
    """The error of a reply, which has exactly OpenAI's shape."""
    assert reply.status_code == status, reply.text
    body = reply.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert reply.headers["x-request-id"]
    return body["error"]


def send(live: Running, data: bytes, *, seconds: float = 20.0) -> bytes:
    """What comes back for bytes that are no request of a well-behaved client."""
    with socket.create_connection(("127.0.0.1", live.port), timeout=seconds) as connection:
        connection.sendall(data)
        found = b""
        while part := connection.recv(65536):
            found += part
        return found


def request_of(body: bytes, *, headers: str = "", length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {size}\r\n{headers}\r\n"
    return head.encode() + body


@pytest.fixture
def small(tiny: Path) -> Iterator[Running]:
    """A server with few places."""
    with running(plan_of(tiny, "max_concurrent=2", "max_queue=1", "shutdown_grace_seconds=0.2")) as found:
        yield found


def idle(server: Running) -> None:
    pump = server.service.voices["tiny"].pump
    until(lambda: server.service.taken == 0 and not pump.running and not pump.waiting)


# ---- shapes


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("POST", "/v1/responses", 404),
        ("GET", "/v1/models/gpt-4", 404),
        ("GET", "/v1/models/..%2f..%2fetc%2fpasswd", 404),
        ("GET", PATH, 405),
        ("DELETE", "/v1/models", 405),
        ("GET", "/v1/models/", 404),
    ],
)
def test_paths_that_are_not_there(live: Running, method: str, path: str, status: int) -> None:
    error = shaped(httpx.request(method, live.url + path), status)
    assert error["type"] == "invalid_request_error"
    if path == "/v1/responses":
        assert "/v1/chat/completions" in error["message"]


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'{"a":' * 5000, b"\xff\xfe", b'{"model": NaN}', b'{"model": "\\ud800"}', b"1" * 5000],
)
def test_broken_bodies(live: Running, body: bytes) -> None:
    reply = httpx.post(live.url + PATH, content=body, headers={"content-type": "application/json"})
    shaped(reply, 400)


def test_other_kinds_of_bodies(live: Running) -> None:
    shaped(httpx.post(live.url + PATH, data={"a": "b"}), 400)
    shaped(httpx.post(live.url + PATH, content=json.dumps(CHAT), headers={"content-type": "text/plain"}), 400)


def test_a_surrogate_in_a_message_is_refused(live: Running) -> None:
    body = b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud800"}], "max_tokens": 2}'
    shaped(httpx.post(live.url + PATH, content=body, headers={"content-type": "application/json"}), 400)


def test_a_body_that_is_too_large(live: Running) -> None:
    big = json.dumps({**CHAT, "user": "x" * 11_000_000}).encode()
    assert shaped(httpx.post(live.url + PATH, content=big, headers={"content-type": "application/json"}), 413)
    parts = (big[i : i + 65536] for i in range(0, len(big), 65536))
    chunked = httpx.post(live.url + PATH, content=parts, headers={"content-type": "application/json"})
    assert shaped(chunked, 413)["code"] == "body_too_large"
    assert b" 413 " in send(live, request_of(b"{}", length=10**12)).split(b"\r\n")[0]
    assert live.post(PATH, CHAT).status_code == 200


# ---- connections


def test_a_request_that_is_never_finished_holds_nothing(live: Running) -> None:
    with socket.create_connection(("127.0.0.1", live.port)) as connection:
        connection.sendall(request_of(b'{"model"', length=500))
        assert live.post(PATH, CHAT).status_code == 200
        assert live.service.taken == 0
    idle(live)


@pytest.mark.parametrize("more", [{}, {"stream": False}])
@pytest.mark.parametrize("half", [True, False])
def test_a_client_that_leaves_frees_its_place(live: Running, more: dict[str, Any], half: bool) -> None:
    before = live.metric("luthier_completion_tokens_total")
    connection = socket.create_connection(("127.0.0.1", live.port))
    connection.sendall(request_of(json.dumps({**LONG, **more}).encode()))
    until(lambda: live.service.taken == 1)
    connection.shutdown(socket.SHUT_WR) if half else connection.close()
    idle(live)
    connection.close()
    assert live.metric("luthier_completion_tokens_total") - before < 400
    assert live.metric("luthier_cancelled_requests_total", reason="disconnect") > 0


def test_a_slow_reader_is_given_up_and_nobody_waits_for_it(small: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "SEND_SECONDS", 0.5)
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    connection.connect(("127.0.0.1", small.port))
    body = {**LONG, "logprobs": True, "top_logprobs": 20, "n": 2}
    for _ in range(3):
        connection.sendall(request_of(json.dumps(body).encode()))
    until(lambda: small.service.taken > 0)
    began = time.monotonic()
    assert small.post(PATH, CHAT).status_code == 200
    assert time.monotonic() - began < 10
    idle(small)
    connection.close()


def test_the_inbox_is_bounded(small: Running) -> None:
    import asyncio

    from luthier.engines.shaping import Piece, ScoredToken
    from luthier.server.inbox import Inbox

    async def fill() -> int:
        over: list[bool] = []
        inbox = Inbox(lambda: over.append(True), most=10)
        for _ in range(12):
            inbox.put(0, Piece(0, "x", (ScoredToken(1, 0.0),)))
        await asyncio.sleep(0)
        return len(over)

    assert asyncio.run(fill()) >= 1


# ---- places


def test_a_full_queue(small: Running) -> None:
    client = small.client()
    streams = [client.chat.completions.create(**LONG) for _ in range(3)]
    with pytest.raises(RateLimitError) as refused:
        client.chat.completions.create(**CHAT)
    assert refused.value.response.headers["retry-after"] == "1"
    assert refused.value.code == "queue_full"
    for each in streams:
        each.close()
    idle(small)
    assert client.chat.completions.create(**CHAT).choices
    too_many = small.post(PATH, {**CHAT, "n": 4})
    assert shaped(too_many, 400)["param"] == "n"


def test_an_answer_that_takes_too_long(tiny: Path) -> None:
    with running(plan_of(tiny, "request_timeout_seconds=0.05")) as server:
        error = shaped(server.post(PATH, {**LONG, "stream": False}), 504)
        assert error["code"] == "timeout"
        pieces = server.client().chat.completions.create(**LONG)
        with pytest.raises(Exception, match="longer than"):
            list(pieces)
        idle(server)


# ---- who may ask


def test_keys_are_needed_known_and_revocable(tiny: Path, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    secret = add_key(file, "ann")
    assert secret not in file.read_text()
    with running(plan_of(tiny), keys=Keys(["given"], file)) as server:
        for key in (secret, "given"):
            assert server.client(api_key=key).models.list().data
        for key in ("wrong", secret[:-1], secret + "x", "é"):
            reply = httpx.get(f"{server.url}/v1/models", headers={"Authorization": f"Bearer {key}".encode()})
            assert shaped(reply, 401)["code"] == "invalid_api_key"
        with pytest.raises(AuthenticationError):
            server.client(api_key="wrong").chat.completions.create(**CHAT)
        shaped(httpx.get(f"{server.url}/v1/models"), 401)
        shaped(httpx.get(f"{server.url}/metrics"), 401)
        assert httpx.get(f"{server.url}/health").status_code == 200
        remove_key(file, "ann")
        with pytest.raises(AuthenticationError):
            server.client(api_key=secret).models.list()


def test_other_addresses_need_a_key(tiny: Path) -> None:
    plan = plan_of(tiny, "serve.host=0.0.0.0")
    with pytest.raises(ConfigError, match="no key"):
        check_open(plan.config.serve, Keys())
    check_open(plan.config.serve, Keys(["k"]))
    check_open(plan_of(tiny, "serve.host=0.0.0.0", "allow_without_key=true").config.serve, Keys())


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "[::1"])
def test_foreign_names_are_refused(live: Running, host: str) -> None:
    shaped(httpx.get(f"{live.url}/v1/models", headers={"Host": host}), 403)


def test_pages_of_others_may_not_ask(live: Running) -> None:
    for origin in ("https://evil.example", "null", "http://localhost.evil.example"):
        error = shaped(httpx.post(live.url + PATH, json=CHAT, headers={"Origin": origin}), 403)
        assert error["code"] == "origin"
    near = httpx.post(live.url + PATH, json=CHAT, headers={"Origin": "http://localhost:3000"})
    assert near.status_code == 200
    assert near.headers["access-control-allow-origin"] == "http://localhost:3000"
    asked = {"Origin": "http://localhost:3000", "Access-Control-Request-Method": "POST"}
    assert httpx.options(live.url + PATH, headers=asked).status_code == 204


# ---- life


def test_alive_before_it_is_ready(tiny: Path) -> None:
    plan = plan_of(tiny)
    may_go = threading.Event()
    original = plan.load

    class Slow:
        config, adapters = plan.config, plan.adapters

        def load(self, tell: Any) -> Any:
            tell("reading the weights")
            assert may_go.wait(20)
            return original(tell)

    with running(Slow(), wait=False) as server:  # type: ignore[arg-type]
        until(lambda: server.service.progress == "reading the weights")
        assert httpx.get(f"{server.url}/health").status_code == 200
        error = shaped(httpx.get(f"{server.url}/ready"), 503)
        assert "reading the weights" in error["message"]
        with pytest.raises(InternalServerError) as refused:
            server.client().chat.completions.create(**CHAT)
        assert refused.value.response.headers["retry-after"]
        assert server.client().models.list().data[0].id == "tiny"
        may_go.set()
        until(lambda: server.service.state == "ready")
        assert httpx.get(f"{server.url}/ready").status_code == 200
        assert server.client().chat.completions.create(**CHAT).choices


def test_a_stop_ends_what_runs_within_the_grace_time(small: Running) -> None:
    from luthier.engines.local import LocalEngine

    engine: LocalEngine = small.service.voices["tiny"].served.engine
    original = engine.step
    engine.step = lambda: (time.sleep(0.05), original())[1]  # type: ignore[method-assign]
    pieces = small.client().chat.completions.create(**LONG)
    next(iter(pieces))
    began = time.monotonic()
    small.server.stop()
    with pytest.raises(Exception, match="stopped before"):
        list(pieces)
    assert time.monotonic() - began < 5
    until(lambda: small.service.given_up == 1)


def test_a_failing_step_is_told_and_the_next_request_is_answered(small: Running) -> None:
    engine: Any = small.service.voices["tiny"].served.engine
    original, engine._batch.advance = engine._batch.advance, lambda: 1 / 0
    shaped(small.post(PATH, CHAT), 500)
    with pytest.raises(Exception, match="gave this answer up"):
        list(small.client().chat.completions.create(**LONG))
    engine._batch.advance = original
    assert small.client().chat.completions.create(**CHAT).choices
    idle(small)


def test_numbers_for_prometheus(live: Running, client: OpenAI) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    before = live.metric("luthier_requests_total", path=PATH, code="200")
    client.chat.completions.create(**CHAT)
    with pytest.raises(NotFoundError):
        client.chat.completions.create(**{**CHAT, "model": "gpt"})
    with pytest.raises(APIStatusError):
        client.get("/made/up", cast_to=object)
    text = httpx.get(f"{live.url}/metrics").text
    found = {f.name: f for f in text_string_to_metric_families(text)}
    assert {"luthier_running_requests", "luthier_waiting_requests", "luthier_prompt_tokens"} <= set(found)
    assert {"luthier_time_to_first_token_seconds", "luthier_resident_memory_bytes"} <= set(found)
    assert live.metric("luthier_requests_total", path=PATH, code="200") == before + 1
    assert live.metric("luthier_requests_total", path=PATH, code="404") >= 1
    assert "/made/up" not in text


def test_text_that_cannot_fit_is_refused_before_it_is_read(live: Running) -> None:
    began = time.monotonic()
    long = "x" * 9_000_000
    error = shaped(live.post(PATH, {**CHAT, "messages": [{"role": "user", "content": long}]}), 400)
    assert error["code"] == "context_length_exceeded"
    assert "at least" in error["message"]
    assert shaped(live.post("/v1/completions", {"model": "tiny", "prompt": long}), 400)["param"] == "prompt"
    assert time.monotonic() - began < 5


def test_silence_is_filled_and_a_client_that_waits_no_longer_is_noticed(
    small: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_module, "SILENCE_SECONDS", 0.05)
    engine: Any = small.service.voices["tiny"].served.engine
    original = engine.step
    engine.step = lambda: (time.sleep(0.2), original())[1]
    with httpx.stream("POST", small.url + PATH, json={**LONG, "max_tokens": 3}, timeout=20) as reply:
        lines = list(reply.iter_lines())
    assert ": still there" in lines
    assert lines[-2] == "data: [DONE]"
    with pytest.raises(APITimeoutError):
        small.client(timeout=0.3).chat.completions.create(**{**LONG, "stream": False})
    idle(small)
