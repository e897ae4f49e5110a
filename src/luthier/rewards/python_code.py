"""Does the program in the answer pass its tests? Runs what a model wrote, so it is off unless it is allowed."""

from __future__ import annotations

import ast
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from luthier.config.values import Bytes, Positive
from luthier.core.errors import DataError
from luthier.core.registry import REWARDS
from luthier.rewards.sandbox import Limits, Ran, run_program, run_tests
from luthier.rewards.texts import column, last_block

if TYPE_CHECKING:
    from collections.abc import Sequence

    from luthier.core.types import Answer

_LANGUAGES = ("python", "py", "python3")
LONGEST_ANSWER = 1 << 20


@REWARDS.register("python_code")
@dataclass(frozen=True, kw_only=True, slots=True)
class PythonCode:
    """The share of the tests that the last ``` block of the answer passes, or whether it passes all."""

    may_hang: ClassVar[bool] = False
    allow_execution: bool = False
    """Run programs that the model writes on this machine, in a process with limits. docs/rewards.md says which."""
    column: str = "tests"
    """Column with the tests: Python text, a list of such texts, or a list of {input, output} for whole programs."""
    partial: bool = False
    """Give the share of passed tests; otherwise 1 for all of them, and 0."""
    seconds: Annotated[float, Field(gt=0, le=300)] = 5.0
    """Longest time of one answer's tests, or of one {input, output}."""
    memory: Bytes = 1 << 29
    """Most memory of a program, such as 512MiB."""
    parallel_programs: Positive = 2
    """Programs that run at the same time."""

    def __post_init__(self) -> None:
        if not self.allow_execution:
            raise ValueError(
                "python_code runs programs that the model writes on this machine. Its limits stop accidents, not "
                "attacks (docs/rewards.md); set allow_execution: true if that is what you want"
            )

    @property
    def columns(self) -> tuple[str, ...]:
        """Return what a row must have."""
        return (self.column,)

    def __call__(self, answer: Answer) -> float | None:
        """Return a number in 0 .. 1; None where there are no tests."""
        tests = self._tests(answer)
        if not tests:
            return None
        program = program_in(answer.completion.text)
        if not program.strip() or len(program) > LONGEST_ANSWER or "\0" in program:
            return 0.0
        limits = Limits(seconds=self.seconds, memory=self.memory)
        if isinstance(tests[0], str):
            report = run_tests(program, [str(test) for test in tests], limits).report
            passed = [bool(each) for each in report] if isinstance(report, list) else [False] * len(tests)
        else:
            passed = []
            for test in tests:
                ran = run_program(program, limits, stdin=str(test["input"]))
                passed.append(_prints(ran, str(test["output"])))
                if not passed[-1] and not self.partial:
                    return 0.0
        return sum(passed) / len(tests) if self.partial else float(all(passed))

    def many(self, answers: Sequence[Answer]) -> list[Any]:
        """Return what every answer gets, or the exception that it met."""
        with ThreadPoolExecutor(self.parallel_programs) as pool:
            waiting = [pool.submit(self, answer) for answer in answers]
            errors = [each.exception() for each in waiting]
        for error in errors:
            if isinstance(error, DataError):
                raise error
        return [each.result() if error is None else error for each, error in zip(waiting, errors, strict=True)]

    def _tests(self, answer: Answer) -> list[Any]:
        found = column(answer.example, self.column)
        if isinstance(found, str) and found.lstrip().startswith("["):
            found = _as_list(found)
        tests: Any = [] if found is None else [found] if isinstance(found, str) else found
        is_fit = isinstance(tests, (list, tuple)) and (
            all(isinstance(test, str) for test in tests)
            or all(isinstance(test, dict) and {"input", "output"} <= test.keys() for test in tests)
        )
        if not is_fit:
            raise DataError(
                f"{answer.example.origin or 'a row'}: column {self.column!r} must hold Python text, a list of such "
                "texts, or a list of {input, output}",
                code="reward_column",
            )
        return list(tests)


def program_in(text: str) -> str:
    """Return the last ``` block of an answer, one marked as Python if there is any; all of it where there is none."""
    block = last_block(text, _LANGUAGES)
    return text if block is None else block


def _as_list(text: str) -> object:
    """Return a list that a row holds as text; Python text that begins with a bracket stays text."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
    return value if isinstance(value, list) else text


def _prints(ran: Ran, expected: str) -> bool:
    lines = [line.rstrip() for line in ran.output.rstrip().splitlines()]
    return ran.exit_code == 0 and lines == [line.rstrip() for line in expected.rstrip().splitlines()]
