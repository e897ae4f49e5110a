"""Pairs of reward models: one prediction an answer, at its end; prompts are cut, answers are not."""

import json
from pathlib import Path
from typing import Any

import pytest
from helpers import byte_tokenizer

from luthier.config.load import load_config
from luthier.config.schema import DataConfig
from luthier.core.types import Segment
from luthier.data.cut import cut_prompt, read_at_end
from luthier.data.pack import pack
from luthier.data.prepare import Preparer, prepare
from luthier.data.template import ChatTemplate
from luthier.workflows.build import make_preparer

ASKED, GOOD, BAD = "Kö 🙂?", "好的 yes", "no"
ROW = {"instruction": ASKED, "chosen": GOOD, "rejected": BAD}
PROMPT = f"<|im_start|>user\n{ASKED}<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(*rows: Any) -> str:
    Path("rows.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return "rows.jsonl"


def audit(*rows: Any, reads_end: bool = True, **more: Any):
    name = write(*rows)
    config = DataConfig(dataset=(name,), **{"cutoff_len": 256, **more})
    return prepare((name,), Preparer(ChatTemplate(byte_tokenizer()), config, "pair", reads_end=reads_end))


def computed(segment: Segment) -> str:
    """What stands in front of the one prediction."""
    assert segment.weight == [0.0] * (len(segment.tokens) - 1) + [1.0]
    assert segment.tokens[-1] == segment.tokens[-2]
    return byte_tokenizer().decode(segment.tokens[:-1])


def test_the_reward_is_read_at_the_end_of_turn() -> None:
    store, report = audit(ROW)
    assert not report.findings
    assert [computed(s) for s in store[0]] == [PROMPT + GOOD + "<|im_end|>", PROMPT + BAD + "<|im_end|>"]
    batch = pack([store[0], store[0]])
    ends = byte_tokenizer().eos_token_id
    assert (len(batch.rows), batch.num_segments) == (4, 4)
    assert batch.segment_ids.tolist() == [0, 1, 2, 3]
    assert batch.input_ids[batch.rows].tolist() == [ends] * 4
    assert report.learned_tokens == 2


def test_objectives_that_read_log_probabilities_keep_whole_answers() -> None:
    store, _ = audit(ROW, reads_end=False)
    assert sum(store[0][0].weight) == len(GOOD.encode()) + 1
    assert not store[0][0].tags
    for stage, expected in (("rm", True), ("dpo", False), ("sft", False), ("kto", False)):
        config = load_config({"model_name_or_path": "m", "stage": stage}).config
        assert make_preparer(byte_tokenizer(), config, "llama").reads_end is expected


def test_the_cache_keeps_both_kinds_apart() -> None:
    for reads_end in (True, False, True):
        store, _ = audit(ROW, reads_end=reads_end)
        assert (sum(store[0][0].weight) == 1) == reads_end


def test_margins_come_from_their_column() -> None:
    store, _ = audit(
        {**ROW, "margin": 0.5}, {**ROW, "instruction": "other"}, {**ROW, "instruction": "b", "margin": "2"}
    )
    assert [[s.tags["margin"] for s in unit] for unit in store] == [[0.5, 0.5], [0.0, 0.0], [2.0, 2.0]]
    assert pack(list(store)).tags["margin"].tolist() == [0.5, 0.5, 0.0, 0.0, 2.0, 2.0]
    store, _ = audit({**ROW, "far": 1}, columns={"margin": "far"})
    assert store[0][0].tags == {"margin": 1.0}


@pytest.mark.parametrize(("value", "shown"), [("much", "text 'much'"), ([1], "a list '[1]'"), ("nan", "text 'nan'")])
def test_other_margins_are_refused(value: object, shown: str) -> None:
    _, report = audit(ROW, {**ROW, "instruction": "b", "margin": value})
    assert [str(finding) for finding in report.errors()] == [
        f"rows.jsonl:2 [margin] expected a finite number, found {shown}; write one, or map another column: "
        "columns: {margin: ...}"
    ]
    _, report = audit({**ROW, "margin": value}, reads_end=False)
    assert not report.errors()


def test_prompts_are_cut_and_answers_are_not() -> None:
    """For every limit: both answers are whole, the prompt has lost the same in both, and the loss is said."""
    row = {"instruction": "q" * 60, "chosen": "a" * 20, "rejected": "b" * 12}
    whole = [computed(s) for s in audit(row)[0][0]]
    needed = len(audit(row)[0][0][0].tokens) - 1
    assert needed == len(byte_tokenizer()(whole[0]).input_ids)
    for limit in range(60, needed + 1):
        store, report = audit(row, cutoff_len=limit)
        lost = needed - limit
        assert [byte_tokenizer().decode(s.tokens[:-1]) for s in store[0]] == [
            byte_tokenizer().decode(byte_tokenizer()(text).input_ids[lost:]) for text in whole
        ]
        assert max(len(s.tokens) - 1 for s in store[0]) == limit
        assert report.cut_tokens == 2 * lost
        assert [str(f) for f in report.findings] == (
            [f"rows.jsonl:1 lost {lost} tokens at the beginning of its prompt to cutoff_len {limit}"] if lost else []
        )


def test_an_answer_that_fills_the_limit_is_left_out() -> None:
    row = {"instruction": "q", "chosen": "a" * 70, "rejected": "b"}
    store, report = audit(row, ROW, cutoff_len=71)
    assert len(store) == 1
    assert not report.errors()
    assert [str(finding) for finding in report.findings] == [
        "rows.jsonl:1 has an answer of 71 tokens, which leaves its prompt no room within cutoff_len 71, and is left out; "
        "raise cutoff_len"
    ]
    for policy, level in (("skip", "warning"), ("fail", "error")):
        _, report = audit(row, ROW, cutoff_len=71, too_long=policy)
        assert [(f.kind, f.level) for f in report.findings] == [("too_long", level)]


def segment(*tokens: int, learned: int, behind: int = 0) -> Segment:
    weight = [0.0] * (len(tokens) - learned - behind) + [1.0] * learned + [0.0] * behind
    return Segment(tokens=list(tokens), weight=weight)


def test_the_begin_token_stays() -> None:
    unit = [segment(9, 1, 2, 3, 4, 5, 7, learned=2, behind=1), segment(9, 1, 2, 3, 6, learned=1)]
    fitted = cut_prompt(unit, 5, 9)
    assert fitted is not None
    assert [s.tokens for s in fitted[0]] == [[9, 2, 3, 4, 5], [9, 2, 3, 6]]
    assert [s.weight for s in fitted[0]] == [[0, 0, 0, 1, 1], [0, 0, 0, 1]]
    assert fitted[1] == 1
    without = cut_prompt(unit, 5, None)
    assert without is not None
    assert [s.tokens for s in without[0]] == [[1, 2, 3, 4, 5], [1, 2, 3, 6]]
    assert cut_prompt(unit, 3, 9) is None
    assert cut_prompt(unit, 3, None) is not None
    assert cut_prompt(unit, 2, None) is None


def test_nothing_is_cut_that_fits() -> None:
    unit = [segment(1, 2, 3, learned=1), segment(1, 2, 4, 5, learned=2)]
    assert cut_prompt(unit, 4, None) == (unit, 0)
    assert read_at_end(unit[1]).tokens == [1, 2, 4, 5, 5]
