"""Each reward by hand: what an answer gets, and which settings are refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from luthier.config.rollout import NamedPart
from luthier.core.errors import ConfigError, DataError, DependencyError
from luthier.core.types import Answer, Completion, Example
from luthier.rewards.build import build_rewards
from luthier.rewards.grading import Grader, NamedReward
from luthier.rewards.texts import last_block


def answer(text: str, *, tokens: int = 3, **columns: object) -> Answer:
    return Answer(
        example=Example(extra=columns, origin="rows.jsonl:7"),
        completion=Completion(prompt_tokens=(1,), tokens=tuple(range(tokens)), text=text),
    )


def built(name: str, *, folder: Path | None = None, **settings: Any) -> Any:
    (named,) = build_rewards([NamedPart(name=name, settings=settings)], folder=folder)
    return named.reward


@pytest.mark.parametrize(
    ("settings", "text", "reward"),
    [
        ({"pattern": r"\d+"}, "so 12", 1.0),
        ({"pattern": r"\d+"}, "none", 0.0),
        ({"pattern": "a.b"}, "a\nb", 1.0),
        ({"pattern": "(?i)YES", "where": "full"}, " yes\n", 1.0),
        ({"pattern": "yes", "where": "full"}, "yes, sir", 0.0),
        ({"pattern": r"= (\d+)", "column": "right"}, "1 + 1 = 2, 3 + 4 = 7", 1.0),
        ({"pattern": r"= (\d+)", "column": "right"}, "3 + 4 = 7, 1 + 1 = 2", 0.0),
        ({"pattern": r"\d", "column": "right"}, "7", 1.0),
        ({"pattern": r"x|(7)", "column": "right"}, "x", 0.0),
    ],
)
def test_regex(settings: dict[str, Any], text: str, reward: float) -> None:
    assert built("regex", **settings)(answer(text, right=" 7 ")) == reward


def test_a_pattern_that_never_ends_is_ended() -> None:
    grader = Grader([NamedReward("regex", 1.0, built("regex", pattern="(a+)+b"))], time_limit_seconds=0.5)
    try:
        grades = grader.grade([answer("a" * 40), answer("aab")])
    finally:
        grader.close()
    assert grades.by_name["regex"] == [None, 1.0]
    assert "longer than 0.5 s" in str(grades.first_error)


@pytest.mark.parametrize(
    ("name", "text", "right", "reward"),
    [
        ("math", r"so \boxed{\frac{1}{2}}", "0.5", 1.0),
        ("math", "5 apples and 3 pears are 8", "8", 1.0),
        ("math", "5 apples and 3 pears are 8", "5", 0.0),
        ("math", r"\boxed{3}, and not 4", "3", 1.0),
        ("math", "$x + 1$", "1+x", 1.0),
        ("math", "1,000", "1000", 1.0),
        ("math", "no idea", "8", 0.0),
        ("boxed", r"\boxed{8}", "8", 1.0),
        ("boxed", "8", "8", 0.0),
        ("boxed", r"\boxed{8} or \boxed{9}", "8", 0.0),
    ],
)
def test_math(name: str, text: str, right: str, reward: float) -> None:
    assert built(name)(answer(text, answer=right)) == reward


def test_math_behind_a_mark_and_without_a_right_answer() -> None:
    marked = built("math", after="####")
    assert marked(answer("6 + 1 #### 7", answer="2 * 3 = 6, and one\n#### 7")) == 1.0
    assert marked(answer("7", answer="#### 7")) == 0.0
    assert built("math")(answer("7", answer=None)) is None
    assert built("math")(answer("7", answer="")) is None
    with pytest.raises(DataError, match="needs the column 'answer'"):
        built("math")(answer("7", solution="7"))


@pytest.mark.parametrize(
    ("settings", "text", "reward"),
    [
        ({}, "<think>a</think>\n<answer>b</answer>\n", 1.0),
        ({}, "<answer>b</answer><think>a</think>", 0.0),
        ({}, "well <think>a</think><answer>b</answer>", 0.0),
        ({}, "<think>a</think><answer>b</answer> done", 0.0),
        ({}, "<think>a</think><answer>b</answer><answer>c</answer>", 0.0),
        ({}, "<think> </think><answer>b</answer>", 0.0),
        ({}, "<think>a</think><answer>b", 0.0),
        ({"not_empty": False}, "<think></think><answer>b</answer>", 1.0),
        ({"opened": True}, "a</think><answer>b</answer>", 1.0),
        ({"opened": True}, "<think>a</think><answer>b</answer>", 0.0),
        ({"tags": "think", "text_after": True}, "<think>a</think> b", 1.0),
        ({"tags": "think", "text_after": True}, "<think>a</think> ", 0.0),
        ({"pattern": "Reason: .+ Answer: .+"}, "Reason: a\nb Answer: c", 1.0),
        ({"pattern": "Reason: .+ Answer: .+"}, "so: Reason: a Answer: c", 0.0),
    ],
)
def test_format(settings: dict[str, Any], text: str, reward: float) -> None:
    made = built("format", **settings)
    assert made(answer(text)) == reward
    assert made.may_hang == ("pattern" in settings)


def test_length() -> None:
    near = built("length", target_tokens=10)
    assert [near(answer("", tokens=count)) for count in (0, 5, 10, 15, 20, 99)] == [0.0, 0.5, 1.0, 0.5, 0.0, 0.0]
    most = built("length", most_tokens=4)
    assert [most(answer("", tokens=count)) for count in (0, 4, 5)] == [1.0, 1.0, 0.0]


SCHEMA = {"type": "object", "required": ["a"], "properties": {"a": {"type": "number", "multipleOf": 0.5}}}


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ('{"a": 1}', 1.0),
        ('so:\n```json\n{"a": 1}\n```\nand\n```\nother\n```', 1.0),
        ('```\n{"a": "x"}\n```\n```\n{"a": 1}\n```', 1.0),
        ('{"a": "x"}', 0.25),
        ("[]", 0.25),
        ('{"a": 1', 0.0),
        ('{"a": NaN}', 0.0),
        ('{"a": 1} and more', 0.0),
        ('{"a": 1' + "0" * 400 + "}", 0.25),
        ("[" * 100_000, 0.0),
    ],
)
def test_json_schema(text: str, reward: float) -> None:
    assert built("json_schema", schema=SCHEMA, any_json=0.25)(answer(text)) == reward


def test_where_a_schema_comes_from(tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    from_file = built("json_schema", schema_file="schema.json", folder=tmp_path)
    assert [from_file(answer(text)) for text in ('{"a": 1}', "[]")] == [1.0, 0.0]
    from_row = built("json_schema", schema_column="schema")
    assert from_row(answer('"x"', schema='{"type": "string"}')) == 1.0
    assert from_row(answer('"x"', schema={"type": "number"})) == 0.0
    assert from_row(answer('"x"', schema=None)) is None
    with pytest.raises(DataError, match=r"rows\.jsonl:7: column 'schema' is no JSON schema"):
        from_row(answer('"x"', schema={"type": "strnig"}))
    assert built("json_schema")(answer("[1]")) == 1.0


def test_a_schema_fetches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[object] = []
    monkeypatch.setattr("urllib.request.urlopen", lambda *asked, **_: fetched.append(asked))
    far = built("json_schema", schema={"$ref": "http://127.0.0.1:9/schema.json"})
    with pytest.raises(Exception, match="Unresolvable"):
        far(answer("1"))
    assert fetched == []


RIGHT = "Here:\n```python\ndef double(x):\n    return 2 * x\n```\nIt prints\n```\nnothing\n```"


def test_python_code() -> None:
    code = built("python_code", allow_execution=True)
    tests = ["assert double(2) == 4", "assert double('a') == 'aa'", "assert double(1) == 3"]
    assert code(answer(RIGHT, tests=tests[:2])) == 1.0
    assert code(answer(RIGHT, tests=repr(tests[:2]))) == 1.0
    assert code(answer(RIGHT, tests="\n".join(tests[:2]))) == 1.0
    assert code(answer(RIGHT, tests=tests)) == 0.0
    assert built("python_code", allow_execution=True, partial=True)(answer(RIGHT, tests=tests)) == pytest.approx(2 / 3)
    assert code(answer("no program", tests=tests)) == 0.0
    assert code(answer(RIGHT, tests=None)) is None
    reading = answer(
        "print(int(input()) + 1)", tests=[{"input": "1", "output": "2"}, {"input": "2\n", "output": "3\n"}]
    )
    assert code.many([answer(RIGHT, tests=tests), reading]) == [0.0, 1.0]
    with pytest.raises(DataError, match=r"rows\.jsonl:7: column 'tests' must hold"):
        code.many([answer(RIGHT, tests=5)])


@pytest.mark.parametrize(
    ("text", "block"),
    [
        ("no block", None),
        ("```python\nopen", None),
        ("```\na\n```", "a\n"),
        ("```c++\na\n``` then ```\nb\n```", "b\n"),
        ("```json\n{}\n```\ntext\n```Python\ncode\n```", "code\n"),
        ("```python\ncode\n```\n```text\nits output\n```", "code\n"),
    ],
)
def test_last_block(text: str, block: str | None) -> None:
    assert last_block(text, ("python", "py")) == block


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("regex", {}, "pattern is required"),
        ("regex", {"pattern": "("}, "pattern is no regular expression"),
        ("format", {"pattern": "["}, "pattern is no regular expression"),
        ("format", {"tags": ()}, "needs tags or a pattern"),
        ("length", {}, "one of target_tokens and most_tokens"),
        ("length", {"target_tokens": 3, "most_tokens": 3}, "one of target_tokens and most_tokens"),
        ("math", {"time_limit_seconds": 0}, "time_limit_seconds"),
        ("json_schema", {"schema": {"type": "strnig"}}, "is no JSON schema"),
        ("json_schema", {"schema_file": "there_is_none.json"}, "there is no file there_is_none.json"),
        ("json_schema", {"schema": SCHEMA, "schema_column": "c"}, "one of schema, schema_file and schema_column"),
        ("python_code", {}, "set allow_execution: true"),
    ],
)
def test_refused(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s)reward {name}.*{message}"):
        built(name, **settings)


@pytest.mark.parametrize(("name", "package"), [("math", "math_verify"), ("json_schema", "jsonschema")])
def test_a_missing_package_is_told(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda each: None if each == package else object())
    with pytest.raises(DependencyError, match=rf"{package}; run: pip install 'luthier\[rl\]'"):
        built(name)
