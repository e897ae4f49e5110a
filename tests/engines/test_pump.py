"""Clients are served in turn, and the thread that steps for them goes on whatever a step or a client does."""

from collections import defaultdict
from threading import Event, Thread
from time import sleep
from typing import Any

import pytest
from helpers import wait_for
from torch import Tensor

from luthier.core.errors import ModelError, RunError
from luthier.core.types import Sampling
from luthier.engines.local import LocalEngine
from luthier.engines.pump import Pump
from luthier.engines.requests import Queue, Request
from luthier.engines.shaping import Shaping

PROMPTS = [[(7 * i + j) % 90 + 33 for j in range(3 + i % 11)] for i in range(32)]
GREEDY = Sampling(max_new_tokens=12)


def test_clients_are_served_in_turn() -> None:
    queue = Queue()
    made = {name: Request(prompt=(1,), how=GREEDY, answers=[None], client=name[0]) for name in ("a1", "a2", "a3", "b1")}
    for request in made.values():
        queue.push(request)
    taken = [queue.take(lambda _: True) for _ in range(4)]
    assert taken == [made["a1"], made["b1"], made["a2"], made["a3"]]
    assert queue.take(lambda _: True) is None


def test_a_pump_answers_many_threads(engine: LocalEngine, model: Any, tokenizer: Any) -> None:
    expected = [answers[0].tokens for answers in LocalEngine(model, tokenizer).generate(PROMPTS, GREEDY)]
    pump = Pump(engine)
    found: dict[int, Request] = {}

    def client(number: int) -> None:
        done = Event()
        found[number] = pump.submit(
            PROMPTS[number], GREEDY, reader=lambda p: done.set() if p.finish_reason else None, client=str(number % 5)
        )
        assert done.wait(60)

    threads = [Thread(target=client, args=(i,)) for i in range(len(PROMPTS))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[i].answers[0].tokens for i in range(len(PROMPTS))] == expected  # type: ignore[union-attr]
    wait_for(lambda: pump.running == 0 and pump.waiting == 0)
    pump.close()
    assert not pump.alive


def test_a_pump_goes_on_after_a_step_that_failed(engine: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    pump = Pump(engine)
    assert engine._batch is not None
    real, calls = engine._batch.decoder.hidden, defaultdict(int)

    def fails_once(*args: Any) -> Tensor:
        calls["n"] += 1
        if calls["n"] == 2:
            raise RuntimeError("a bit flipped")
        return real(*args)

    monkeypatch.setattr(engine._batch.decoder, "hidden", fails_once)
    first = pump.submit(PROMPTS[0], GREEDY)
    wait_for(lambda: first.done)
    assert str(first.error) == "a bit flipped"
    second = pump.submit(PROMPTS[0], GREEDY)
    wait_for(lambda: second.done)
    assert second.error is None
    assert len(second.answers[0].tokens) > 0  # type: ignore[union-attr]
    assert pump.failures == 1
    pump.close()


def test_nothing_is_taken_that_nobody_would_answer(engine: LocalEngine, model: Any) -> None:
    pump = Pump(engine)
    engine.rest()
    with pytest.raises(ModelError, match="the engine rests"):
        pump.submit(PROMPTS[0], GREEDY)
    engine.sync(model, 1)
    request = pump.submit(PROMPTS[0], GREEDY)
    wait_for(lambda: request.done)
    assert pump.counts == pump.counts | {"running": 0, "waiting": 0, "failures": 0, "prompt_tokens": len(PROMPTS[0])}
    assert pump.counts["new_tokens"] == len(request.answers[0].tokens)  # type: ignore[union-attr]
    pump.close()
    with pytest.raises(RunError, match="answers no more requests"):
        pump.submit(PROMPTS[0], GREEDY)


def test_what_fails_for_ever_does_not_spin(engine: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        raise RuntimeError("broken for good")

    pump = Pump(engine)
    monkeypatch.setattr(engine._batch, "sweep", fails)
    pump.submit(PROMPTS[0], GREEDY)
    wait_for(lambda: pump.failures > 1)
    before = pump.failures
    sleep(0.3)
    assert pump.failures - before < 10
    pump.close()


def test_closing_gives_up_after_the_grace_time(engine: LocalEngine) -> None:
    pump = Pump(engine)
    long = Sampling(max_new_tokens=400)
    quick = pump.submit(PROMPTS[0], Sampling(max_new_tokens=2))
    pump.close(grace_seconds=20)
    assert quick.answers[0].finish_reason in ("stop", "length")  # type: ignore[union-attr]
    pump = Pump(engine)
    slow = [pump.submit(prompt, long, 8, shaping=Shaping(logit_bias=dict.fromkeys(engine.end_ids, -100.0)))
            for prompt in PROMPTS]  # fmt: skip
    pump.close()
    assert all(request.done for request in slow)
    assert any(answer.finish_reason == "abort" for request in slow for answer in request.answers if answer)
    assert engine._batch is not None
    assert engine._batch.pages.num_used == 0


def test_submitting_does_not_wait_for_a_step(engine: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    assert engine._batch is not None
    inside, go_on, real = Event(), Event(), engine._batch.decoder.hidden

    def waits(*args: Any) -> Tensor:
        inside.set()
        assert go_on.wait(30)
        return real(*args)

    monkeypatch.setattr(engine._batch.decoder, "hidden", waits)
    pump = Pump(engine)
    first = pump.submit(PROMPTS[0], GREEDY)
    assert inside.wait(30)
    second = pump.submit(PROMPTS[1], GREEDY)  # would hang here if it waited for the step
    pump.cancel(first)
    go_on.set()
    wait_for(lambda: first.done and second.done)
    assert second.error is None
    pump.close()
