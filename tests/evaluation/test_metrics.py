"""Metrics give the numbers of the libraries and of hand computation, on Chinese, emoji and nothing at all."""

import json
from typing import Any

import pytest

from luthier.core.errors import ConfigError, DataError, DependencyError
from luthier.core.types import Example, Message
from luthier.evaluation.answers import Prediction
from luthier.evaluation.measure import Measure
from luthier.evaluation.metric import METRICS

TEXTS = [
    ("the cat sat on the mat today", "the cat sat on a mat today"),
    ("There is a large dog in the garden, and it barks.", "A large dog is in the garden and barks."),
    ("🙂 fine, thanks", "🙂 fine thanks"),
    ("nothing was said", ""),
    ("exactly this one", "exactly this one"),
]
CHINESE = [("我喜欢吃苹果和香蕉", "我喜欢苹果和香蕉"), ("今天天气很好", "今天的天气非常好"), ("你好，世界", "你好世界")]


def predictions(texts: Any) -> list[Prediction]:
    return [Prediction("q", expected, given, f"rows:{i}") for i, (expected, given) in enumerate(texts, 1)]


def grade(name: str, texts: Any) -> dict[str, Measure]:
    return {m.name.removeprefix("generate/"): m for m in METRICS.get(name)(predictions(texts))}


@pytest.mark.parametrize(("texts", "tokenizer"), [(TEXTS, "13a"), (CHINESE, "zh")])
def test_bleu_is_sacrebleus(texts: Any, tokenizer: str) -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    expected, given = [e for e, _ in texts], [g for _, g in texts]
    measure = grade("bleu", texts)["bleu"]
    assert measure.value == pytest.approx(sacrebleu.corpus_bleu(given, [expected], tokenize=tokenizer).score, abs=1e-9)
    low, high = measure.interval  # type: ignore[misc]
    assert low <= measure.value <= high


@pytest.mark.parametrize("texts", [TEXTS, CHINESE])
def test_chrf_is_sacrebleus(texts: Any) -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    expected, given = [e for e, _ in texts], [g for _, g in texts]
    assert grade("chrf", texts)["chrf"].value == pytest.approx(sacrebleu.corpus_chrf(given, [expected]).score, abs=1e-9)


def test_rouge_is_rouge_scores_on_english() -> None:
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rouge1", "rouge2", "rougeL"])
    scores = [scorer.score(expected, given) for expected, given in TEXTS]
    found = grade("rouge", TEXTS)
    for name, theirs in (("rouge_1", "rouge1"), ("rouge_2", "rouge2"), ("rouge_l", "rougeL")):
        mean = 100 * sum(score[theirs].fmeasure for score in scores) / len(scores)
        assert found[name].value == pytest.approx(mean, abs=1e-9)


def test_rouge_segments_chinese() -> None:
    """Words by jieba: 我 喜欢 吃 苹果 和 香蕉 against 我 喜欢 苹果 和 香蕉: precision 5/5, recall 5/6."""
    pytest.importorskip("jieba")
    assert grade("rouge", CHINESE[:1])["rouge_1"].value == pytest.approx(100 * 10 / 11)
    plain = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rouge1"])
    assert plain.score(*CHINESE[0])["rouge1"].fmeasure == 0, "without segmentation Chinese has no words at all"


def test_bleu_of_characters_by_hand() -> None:
    pytest.importorskip("nltk")
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    found = grade("bleu_characters", CHINESE)["bleu_characters"].value
    hand = [sentence_bleu([list(e)], list(g), smoothing_function=SmoothingFunction().method3) for e, g in CHINESE]
    assert found == pytest.approx(100 * sum(hand) / 3)
    assert grade("bleu_characters", [("x", "")])["bleu_characters"].value == 0


def test_exact_and_json() -> None:
    rows = [
        ('{"a": 1, "b": [true]}', '{"b": [true], "a": 1}'),
        ('{"a": 1, "b": "x"}', 'Sure:\n```json\n{"a": 1, "b": "y"}\n```'),
        ('{"a": 1}', '{"a": true}'),
        ('{"a": 1}', "no json"),
    ]
    found = {name: round(m.value, 6) for name, m in grade("json", rows).items()}
    assert found == {"json_parses": 0.75, "json_equal": 0.25, "json_fields": 0.375,
                     "json_fields/a": 0.5, "json_fields/b": 0.5}  # fmt: skip
    exact = grade("exact", [("a", " a\n"), ("b", "B")])["exact_match"]
    assert exact.value == 0.5
    assert exact.interval == pytest.approx((0.0945, 0.9055), abs=1e-3)


def test_rows_that_are_no_json_are_named() -> None:
    example = Example(endings=((Message(role="assistant", content="plain"),),), origin="rows.jsonl:3")
    with pytest.raises(DataError, match=r"rows.jsonl:3 the metric json compares the fields of JSON objects"):
        METRICS.get("json").check([example])


@pytest.mark.parametrize(
    ("metric", "library"), [("bleu", "sacrebleu"), ("chrf", "sacrebleu"), ("rouge", "rouge_score"), ("rouge", "jieba")]
)
def test_a_missing_library_is_named(metric: str, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for name in [name for name in sys.modules if name.partition(".")[0] == library] + [library]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, {"sacrebleu": "sacrebleu.metrics"}.get(library, f"{library}.rouge_scorer"), None)
    with pytest.raises(DependencyError, match=r"pip install 'luthier\[evaluate\]'"):
        METRICS.get(metric).check([])


def test_an_unknown_metric_gets_a_hint() -> None:
    with pytest.raises(ConfigError, match="unknown metric of answers 'rogue'; did you mean 'rouge'"):
        METRICS.get("rogue")


def test_lines_are_json() -> None:
    from luthier.evaluation.kinds.generate import lines_of

    made = predictions(TEXTS)
    measures = [m for name in ("exact", "rouge") for m in METRICS.get(name)(made)]
    lines = json.loads(json.dumps(lines_of(made, measures)))
    assert lines[4]["grades"] == {"exact_match": 1.0, "rouge_1": 100.0, "rouge_2": 100.0, "rouge_l": 100.0}
    assert lines[3]["grades"]["rouge_1"] == 0
