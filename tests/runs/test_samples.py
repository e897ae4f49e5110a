"""Answers of a run, chosen and read; and what `luthier runs show` and `samples` print."""

import json
from pathlib import Path
from typing import Any

import pytest
from curves import HEALTHY, flat, write
from typer.testing import CliRunner

from luthier.cli.runs import runs_app
from luthier.core.errors import ConfigError, RunError
from luthier.runs.samples import as_text, choose, read_groups


def group(step: int, prompt: str, rewards: list[float | None]) -> dict[str, Any]:
    completions = [
        {"text": f"answer {i}\nof {prompt}", "tokens": 3 + i, "finish_reason": "length" if i == 2 else "stop",
         "version": step, "rewards": {"right": reward, "short": 0.25}, "reward": reward,
         "advantage": None if reward is None else reward - 0.5, "learned": reward is not None}
        for i, reward in enumerate(rewards)
    ]  # fmt: skip
    return {"step": step, "origin": f"rows.jsonl:{step}", "prompt": f"user: {prompt}", "answer": "42",
            "completions": completions}  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = write(tmp_path / "run", "grpo", {**HEALTHY["grpo"], "rollout/cut_off": flat(0.4)})
    lines = [
        group(1, "a", [0.0, 1.0, None]), group(1, "b", [0.0, 0.0, 0.0]), group(2, "old", [1.0]),
        group(3, "old", [1.0]), group(2, "c", [0.5, 1.0]), group(3, "d", [1.0, 1.0]), group(3, "e", [None]),
    ]  # fmt: skip
    text = "\n".join(json.dumps(line) for line in lines)
    (folder / "samples.jsonl").write_text(text + '\n{"step": 4, "prompt": "half')
    return folder


def prompts(groups: list[dict[str, Any]]) -> list[str]:
    return [each["prompt"].removeprefix("user: ") for each in groups]


def test_a_repeated_step_replaces_the_one_before_and_half_a_line_is_left_out(run: Path) -> None:
    assert prompts(read_groups(run)) == ["a", "b", "c", "d", "e"]


def test_groups_are_chosen_by_step_and_by_reward(run: Path) -> None:
    groups = read_groups(run)
    assert prompts(choose(groups, step=None, order=None)) == ["d", "e"]
    assert prompts(choose(groups, step=1, order=None)) == ["a", "b"]
    assert prompts(choose(groups, step=None, order="best")) == ["d", "c", "a", "b"]
    assert prompts(choose(groups, step=None, order="worst")) == ["b", "a", "c", "d"]
    assert prompts(choose(groups, step=1, order="best")) == ["a", "b"]


def test_a_group_in_words(run: Path) -> None:
    assert as_text(read_groups(run)[0]) == (
        "step 1, mean reward 0.5  (rows.jsonl:1)\n"
        "  user: a\n"
        "  expected: 42\n"
        "  [1] reward 1 (right 1, short 0.25), advantage 0.5, 4 tokens, ended\n"
        "      answer 1\n"
        "      of a\n"
        "  [2] reward 0 (right 0, short 0.25), advantage -0.5, 3 tokens, ended\n"
        "      answer 0\n"
        "      of a\n"
        "  [3] reward missing (right missing, short 0.25), advantage missing, 5 tokens, cut off, not learned from\n"
        "      answer 2\n"
        "      of a"
    )


def test_turns_are_told_apart() -> None:
    turns = [{"role": "assistant", "content": "add(1, 2)"}, {"role": "tool", "content": "3"}]
    told = as_text({"step": 1, "prompt": "user: q", "completions": [{"text": "x", "turns": turns, "reward": 1}]})
    assert "      assistant: add(1, 2)\n      tool: 3" in told


def invoke(*argv: object) -> Any:
    done = CliRunner().invoke(runs_app, [str(each) for each in argv])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def test_show_prints_the_diagnosis(run: Path) -> None:
    out = invoke("show", run).output
    assert (
        "diagnosis\n  warning: rollout/cut_off is 0.4 (healthy: at most 0.1): answers are cut before they end, and graded "
        "as they stand; raise max_completion_length, or set cut_off: mask or penalize\n\n"
        f"samples: 5 groups of answers; read them with luthier runs samples {run}\n"
    ) in out
    assert "policy/entropy" not in out
    assert "\n23 metrics; --metrics shows them\n" in out
    assert [
        line.split()[:3] for line in invoke("show", run, "--metrics").output.splitlines() if "policy/entropy" in line
    ] == [["policy/entropy", "1.177", "0.7227"]]
    facts = json.loads(invoke("show", run, "--json").output)
    assert facts["samples"] == 5
    assert facts["metrics"]["rollout/cut_off"] == {"first": 0.4, "last": 0.4, "healthy": "at most 0.1"}
    assert [(f["level"], f["metric"]) for f in facts["diagnosis"]] == [("warning", "rollout/cut_off")]


def test_show_of_a_healthy_run(tmp_path: Path) -> None:
    out = invoke("show", write(tmp_path, "rm", HEALTHY["rm"])).output
    assert out.endswith("diagnosis\n  nothing unusual in 4 metrics\n")
    early = invoke("show", write(tmp_path / "early", "rm", HEALTHY["rm"], steps=9)).output
    assert early.endswith("diagnosis\n  too early: no metric has ten values yet\n")
    assert "rises to 0.6-0.9; below 1 in the first 20 steps" in out


def test_samples_prints_and_says_what_is_left(run: Path) -> None:
    assert invoke("samples", run, "--best", "--limit", 1).output == (
        as_text(read_groups(run)[3]) + "\n\n3 more groups; --limit 4 shows all\n"
    )
    assert invoke("samples", run).output == "\n\n".join(as_text(each) for each in read_groups(run)[3:]) + "\n"
    facts = json.loads(invoke("samples", run, "--worst", "--limit", 2, "--json").output)
    assert (prompts(facts["groups"]), facts["more"]) == (["b", "a"], 2)


def test_what_samples_refuses(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--best and --worst are opposites"):
        invoke("samples", run, "--best", "--worst")
    with pytest.raises(RunError, match=r"no answers of step 9 in .*; there are steps 1 to 3"):
        invoke("samples", run, "--step", 9)
    with pytest.raises(RunError, match=r"has no samples\.jsonl: only runs that learn from answers"):
        invoke("samples", write(tmp_path / "sft", "sft", HEALTHY["sft"]))
