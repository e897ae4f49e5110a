"""Odd requests: bytes that are no HTTP, schemas that allow nothing, errors of the engine, the page for people."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import BadRequestError, InternalServerError, OpenAI
from serving import Running, plan_of, running

from luthier.core.errors import ModelError

CHAT: Any = {"model": "tiny", "messages": [{"role": "user", "content": "Kö 🙂?"}], "max_tokens": 3}


@pytest.fixture
def own(tiny: Path) -> Iterator[Running]:
    with running(plan_of(tiny)) as found:
        yield found


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
    ],
)
def test_bytes_that_are_no_http(live: Running, data: bytes) -> None:
    with socket.create_connection(("127.0.0.1", live.port), timeout=10) as connection:
        connection.sendall(data)
        found = b""
        while part := connection.recv(4096):
            found += part
    head, _, body = found.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"x-request-id: req_" in head
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == "invalid_http"


@pytest.mark.parametrize("origin", ["http://[", "http://a b", "é", "http://localhost@evil.example"])
def test_origins_that_are_none(live: Running, origin: str) -> None:
    reply = httpx.get(f"{live.url}/v1/models", headers={"Origin": origin.encode()})
    assert reply.status_code == 403
    assert reply.json()["error"]["code"] == "origin"


@pytest.mark.parametrize("port", ["", ":3", ":8000"])
def test_this_machine_under_its_other_names(live: Running, port: str) -> None:
    for name in ("localhost", "127.0.0.1", "[::1]"):
        assert httpx.get(f"{live.url}/v1/models", headers={"Origin": f"http://{name}{port}"}).status_code == 200


def test_a_schema_that_no_text_follows(client: OpenAI) -> None:
    schema = {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}
    given: Any = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    with pytest.raises(BadRequestError) as refused:
        client.chat.completions.create(**CHAT, response_format=given)
    assert refused.value.param == "response_format"


def test_an_error_that_is_meant_for_people_is_told(own: Running) -> None:
    engine: Any = own.service.voices["tiny"].served.engine
    secret = "a text of the program"

    def fail(error: Exception) -> None:
        def advance() -> None:
            raise error

        engine._batch.advance = advance

    fail(ModelError("the weights are broken", code="model_nan"))
    with pytest.raises(InternalServerError, match="the weights are broken") as told:
        own.client().chat.completions.create(**CHAT)
    assert told.value.code == "model_nan"
    fail(RuntimeError(secret))
    with pytest.raises(InternalServerError) as hidden:
        own.client().chat.completions.create(**CHAT)
    assert secret not in hidden.value.message


def test_a_place_deep_inside_is_named_in_short(live: Running) -> None:
    deep: Any = {"a": 1}
    for _ in range(900):
        deep = {"a": deep}
    reply = live.post("/v1/chat/completions", {**CHAT, "metadata": deep})
    assert reply.status_code == 400
    assert reply.json()["error"]["param"].startswith("metadata.a.a")
    assert len(reply.text) < 400


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.to: set[str] = set()
        self.ids: set[str] = set()
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        given = dict(attrs)
        self.tags.add(tag)
        self.ids |= {given["id"]} if "id" in given else set()
        self.to |= {given["href"]} if "href" in given else set()


def test_the_page_names_everything_and_fetches_nothing(live: Running) -> None:
    reply = httpx.get(f"{live.url}/docs")
    assert reply.status_code == 200
    assert reply.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in reply.headers["content-security-policy"]
    schema = httpx.get(f"{live.url}/openapi.json").json()
    for path, operations in schema["paths"].items():
        for method in operations:
            assert f"{method.upper()} {path}" in reply.text
    for field in schema["components"]["schemas"]["ChatRequest"]["properties"]:
        assert f"<code>{field}</code>" in reply.text
    found = _Links()
    found.feed(reply.text)
    assert {each.removeprefix("#") for each in found.to if each.startswith("#")} <= found.ids
    assert all(each.startswith(("#", "/")) for each in found.to)
    assert not {"script", "img", "link", "iframe"} & found.tags
    assert not re.search(r"https?://", reply.text)
