"""Scores of a reward server of the test's own."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
from score_server import Server, serving

from luthier.config.rollout import NamedPart
from luthier.core.errors import ConfigError
from luthier.core.types import Answer, Completion, Example, Message
from luthier.rewards.build import build_rewards
from luthier.rewards.endpoint import LARGEST_REPLY
from luthier.rewards.grading import Grader, NamedReward

KEY = "LUTHIER_TEST_SCORES_KEY"


def answer(text: str, **facts: Any) -> Answer:
    example = Example(context=(Message(role="system", content="Be short."), Message(role="user", content="3 + 4?")))
    return Answer(example=example, completion=Completion(prompt_tokens=(1,), tokens=(2,), text=text), **facts)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving() as made:
        yield made


def scores(server: Server, **settings: Any) -> Any:
    (named,) = build_rewards([NamedPart(name="scores", settings={"url": server.url, **settings})])
    return named.reward


def test_what_is_sent(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "of the test")
    made = scores(server, api_key_env=KEY)
    seen = answer("7", written="<|user|>3 + 4?<|assistant|>7<|end|>")
    assert made.many([seen, answer("\ud800")]) == [35.0, len("Be short.\n\n3 + 4?\n\n?")]
    ((path, authorization, body),) = server.seen
    assert (path, authorization) == ("/v1/score", "Bearer of the test")
    assert body == {"model": "model", "messages": [seen.written, "Be short.\n\n3 + 4?\n\n\ud800"]}
    assert made(seen) == 35.0
    assert "of the test" not in repr(made)


def test_many_answers_are_several_requests_in_their_order(server: Server) -> None:
    answers = [answer("7", written="x" * n) for n in range(1, 8)]
    assert scores(server, together=3).many(answers) == [1, 2, 3, 4, 5, 6, 7]
    assert [len(body["messages"]) for _, _, body in server.seen] == [3, 3, 1]


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ({"scores": [1.0]}, "gives 1 scores to 2 texts"),
        ({"scores": [1.0, "2"]}, "no number: '2'"),
        ({"scores": [1.0, True]}, "no number: 'True'"),
        ({"scores": [1.0, float("nan")]}, "no number: 'nan'"),
        ({"scores": {"a": 1}}, "expected {\"scores\""),
        ({"rewards": [1.0, 2.0]}, "expected {\"scores\""),
        ([1.0, 2.0], "expected {\"scores\""),
        ((200, b"1.0"), "expected {\"scores\""),
        ((200, b"<html>"), "something else than JSON"),
        ((200, b"\xff"), "something else than JSON"),
        ((500, b"out of order"), "answers 500: out of order"),
        ((302, b"http://127.0.0.1:9/"), "answers 302"),
        ((200, b"1" * (LARGEST_REPLY + 1)), "too large"),
    ],
)  # fmt: skip
def test_what_is_no_score(server: Server, reply: Any, message: str) -> None:
    server.reply = lambda texts: reply
    found = scores(server).many([answer("7"), answer("8")])
    assert [type(each) for each in found] == [ValueError] * 2
    assert all(message in str(each) for each in found)
    assert len(server.seen) == 1


def graded(made: Any, texts: list[str]) -> Any:
    grader = Grader([NamedReward("s", 1.0, made)], time_limit_seconds=60, written=lambda a: f"<{a.completion.text}>")
    try:
        return grader.grade([answer(text) for text in texts])
    finally:
        grader.close()


def test_a_request_that_fails_takes_its_own_answers_alone(server: Server) -> None:
    server.reply = lambda texts: (503, b"busy") if "<b>" in texts else {"scores": [len(text) for text in texts]}
    grades = graded(scores(server, together=2), ["aa", "b", "ccc", "d", "eeee"])
    assert grades.by_name["s"] == [None, None, 5.0, 3.0, 6.0]
    assert grades.failed == {"s": 2}
    assert "answers 503: busy" in (grades.first_error or "")


def test_slow_servers_do_not_hold_a_step(server: Server) -> None:
    def reply(texts: list[str]) -> Any:
        time.sleep(5 if "<slow>" in texts else 0)
        return {"scores": [1.0] * len(texts)}

    server.reply = reply
    began = time.monotonic()
    grades = graded(scores(server, together=1, time_limit_seconds=1.5), ["a", "slow", "b"])
    assert grades.by_name["s"] == [1.0, None, None]
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"url": "ftp://x/score"}, "url: expected an address"),
        ({"url": "file:///etc/passwd"}, "url: expected an address"),
        ({"url": "http://"}, "url: expected an address"),
        ({"api_key_env": "LUTHIER_TEST_NOT_SET"}, "LUTHIER_TEST_NOT_SET .api_key_env. is not set"),
        ({"together": 0}, "together"),
    ],
)
def test_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_rewards([NamedPart(name="scores", settings={"url": "http://127.0.0.1:9/score", **settings})])
