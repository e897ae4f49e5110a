"""The process beside training in which rewards run that may hang. Requests are pickles, replies are lines of JSON.

A request: number of the reward, its pickle at the first time, answers, whether they are graded in one call, how many at
once, seconds of one. Replies: {"ready"}, then {"begin": i} and {"end": i, "outcomes": [...]} for each, then {"done"}.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import struct
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

from luthier.core.errors import LuthierError
from luthier.core.types import Answer
from luthier.rewards.outcomes import Failure, as_outcome, failure_of, grade_together


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be graded; pickled as a tuple of its fields."""

    number: int
    reward: bytes | None
    units: Sequence[Sequence[Answer]]
    """Answers that one call grades: one each, or all at once."""
    together: bool
    parallel: int
    seconds: float


class _Replies:
    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._lock, self._owner = descriptor, threading.Lock(), os.getpid()

    def send(self, **reply: Any) -> None:
        if os.getpid() != self._owner:  # a reward forked and came back twice
            os._exit(0)
        with self._lock:
            line = memoryview(json.dumps(reply).encode() + b"\n")
            while line:
                line = line[os.write(self._descriptor, line) :]


def main(requests: int, replies: int) -> None:
    """Answer requests until the other side is gone."""
    channel, known = _Replies(replies), {}
    with open(requests, "rb") as stream:
        while header := stream.read(8):
            paths, *fields = pickle.loads(stream.read(struct.unpack("<Q", header)[0]))
            sys.path += [path for path in paths if path not in sys.path]
            request = Request(*fields)
            try:
                if request.reward is not None:
                    known[request.number] = pickle.loads(request.reward)
            except Exception as error:  # noqa: BLE001  unpickling imports the user's code
                channel.send(broken=failure_of(error).message)
                continue
            channel.send(ready=True)
            _grade_all(known[request.number], request, channel)
            _limit(0)
            channel.send(done=True)


def _grade_all(reward: Any, request: Request, channel: _Replies) -> None:
    if request.parallel == 1:
        for number in range(len(request.units)):
            # Should the other side be killed, nobody else would end a hanging reward.
            _limit(2 * request.seconds + 10)
            _grade(reward, request, number, channel)
        return
    _limit(2 * request.seconds * len(request.units) + 10)
    waiting: SimpleQueue[int] = SimpleQueue()
    for number in range(len(request.units)):
        waiting.put(number)

    def work() -> None:
        try:
            while True:
                _grade(reward, request, waiting.get_nowait(), channel)
        except Empty:
            return

    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(request.parallel, len(request.units)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _limit(seconds: float) -> None:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds)


def _grade(reward: Any, request: Request, number: int, channel: _Replies) -> None:
    channel.send(begin=number)
    answers = request.units[number]
    try:
        outcomes = grade_together(reward, answers) if request.together else [as_outcome(reward(answers[0]))]
    except LuthierError as error:
        channel.send(end=number, fatal=[type(error).__name__, str(error), error.code])
        return
    except Exception as error:  # noqa: BLE001  a reward is foreign code; its failures are counted
        outcomes = [failure_of(error)] * len(answers)
    shown = [[each.kind, each.message] if isinstance(each, Failure) else each for each in outcomes]
    channel.send(end=number, outcomes=shown)
