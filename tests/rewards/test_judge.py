"""A judge behind a server of the test's own."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from luthier.config.rollout import NamedPart
from luthier.core.errors import ConfigError
from luthier.core.types import Answer, Completion, Example, Message
from luthier.rewards.build import build_rewards
from luthier.rewards.grading import Grader, NamedReward

KEY = "LUTHIER_TEST_JUDGE_KEY"


def answer(text: str, **columns: object) -> Answer:
    example = Example(context=(Message(role="user", content="What is 3 + 4?"),), extra=columns)
    return Answer(example=example, completion=Completion(prompt_tokens=(1,), tokens=(2,), text=text))


class Server(ThreadingHTTPServer):
    """Replies what `reply` makes of a question, and keeps what it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.seen: list[tuple[str, str | None, dict[str, Any]]] = []
        self.reply: Callable[[str], str | tuple[int, str]] = lambda question: "Score: 5"
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.seen.append((self.path, self.headers["Authorization"], body))
            self.server.at_once += 1
            self.server.most_at_once = max(self.server.most_at_once, self.server.at_once)
        reply = self.server.reply(body["messages"][0]["content"])
        with self.server.lock:
            self.server.at_once -= 1
        status, text = (200, reply) if isinstance(reply, str) else reply
        message = {"choices": [{"message": {"role": "assistant", "content": text}}]}
        data = (json.dumps(message) if status == 200 else text).encode()
        self.send_response(status)
        if status == 302:
            self.send_header("Location", text)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as made:
        threading.Thread(target=made.serve_forever, args=(0.02,), daemon=True).start()
        yield made
        made.shutdown()


def judge(server: Server, **settings: Any) -> Any:
    (named,) = build_rewards([NamedPart(name="judge", settings={"base_url": server.url, "model": "m", **settings})])
    return named.reward


def test_what_is_asked(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "of the test")
    prompt = "Q {question} A {answer} R {reference} {other}"
    made = judge(server, prompt=prompt, reference_column="right", api_key_env=KEY, max_tokens=9)
    assert made(answer("{reference} \ud800", right=7)) == 0.5
    ((path, authorization, body),) = server.seen
    assert (path, authorization) == ("/v1/chat/completions", "Bearer of the test")
    content = "Q What is 3 + 4? A {reference} \ud800 R 7 {other}"
    assert body == {
        "model": "m", "messages": [{"role": "user", "content": content}], "max_tokens": 9, "temperature": 0,
    }  # fmt: skip
    assert "of the test" not in repr(made)
    assert made(answer("7", right=None)) is None


@pytest.mark.parametrize(
    ("settings", "reply", "reward"),
    [
        ({}, "At first score: 2.\n**Score:** 7.5", 0.75),
        ({}, "Score: 12", 1.0),
        ({}, "Score: -3", 0.0),
        ({"lowest": 1, "highest": 5}, "Score: 4", 0.75),
        ({"score_pattern": r"\[\[(\d)\]\]"}, "Score: 1 [[9]]", 0.9),
        ({"score_pattern": r"\d+"}, "3 of 4", 0.4),
    ],
)
def test_scores(server: Server, settings: dict[str, Any], reply: str, reward: float) -> None:
    server.reply = lambda question: reply
    assert judge(server, **settings)(answer("7")) == pytest.approx(reward)


@pytest.mark.parametrize(
    ("settings", "reply", "message"),
    [
        ({}, "I like it", "gave no score"),
        ({"score_pattern": "Score: (.+)"}, "Score: nan", "no number"),
        ({"score_pattern": "Score|(x)"}, "Score", "no number"),
        ({}, (500, "out of order"), "answers 500: out of order"),
        ({}, (302, "http://127.0.0.1:9/"), "answers 302"),
    ],
)
def test_what_is_no_score(server: Server, settings: dict[str, Any], reply: Any, message: str) -> None:
    server.reply = lambda question: reply
    with pytest.raises(ValueError, match=message):
        judge(server, **settings)(answer("7"))
    assert len(server.seen) == 1


def test_several_at_once_and_those_that_fail(server: Server) -> None:
    def reply(question: str) -> str | tuple[int, str]:
        time.sleep(0.1)
        if "slow" in question:
            time.sleep(3)
        return (503, "busy") if "busy" in question else "Score: 10" if "good" in question else "Score: 0"

    server.reply = reply
    made = judge(server, parallel=4, time_limit_seconds=1.5)
    grader = Grader([NamedReward("judge", 1.0, made)], time_limit_seconds=60)
    try:
        grades = grader.grade([answer(text) for text in ("good", "bad", "busy", "good", "slow", "good")])
    finally:
        grader.close()
    assert grades.by_name["judge"] == [1.0, 0.0, None, 1.0, None, 1.0]
    assert grades.failed["judge"] == 2
    assert len(server.seen) == 6
    assert 2 <= server.most_at_once <= 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base_url": "ftp://x"}, "base_url: expected an address"),
        ({"api_key_env": "LUTHIER_TEST_NOT_SET"}, "LUTHIER_TEST_NOT_SET .api_key_env. is not set"),
        ({"prompt": "grade it"}, "prompt needs {answer}"),
        ({"prompt": "{answer} {reference}"}, "go together"),
        ({"reference_column": "right"}, "go together"),
        ({"score_pattern": "("}, "score_pattern is no regular expression"),
        ({"lowest": 3, "highest": 3}, "highest must be above lowest"),
        ({"api_key": "secret"}, "unknown setting .*api_key_env"),
        ({"parallel": 0}, "parallel"),
    ],
)
def test_refused(settings: dict[str, Any], message: str) -> None:
    part = NamedPart(name="judge", settings={"base_url": "http://127.0.0.1:9/v1", "model": "m", **settings})
    with pytest.raises(ConfigError, match=message):
        build_rewards([part])
