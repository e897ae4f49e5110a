"""lm-evaluation-harness through our engine gives what its own transformers model gives."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.config.load import load_config
from luthier.core.errors import DataError
from luthier.workflows.evaluate import evaluate, evaluate_all, loaded

pytest.importorskip("lm_eval")


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """Three small tasks of the test's own: choices, whole texts, answers."""
    rows = [
        {
            "q": f"The colour of {thing} is",
            "choices": [" red", " blue", " green"],
            "gold": i % 3,
            "text": f"{thing} 你好",
        }
        for i, thing in enumerate(["a stone", "the sky", "grass", "a rose", "a fire truck"])
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    common = f"""dataset_path: json
dataset_kwargs: {{data_files: {{test: {tmp_path}/rows.jsonl}}}}
test_split: test
"""
    files = {
        "own_choice": "output_type: multiple_choice\ndoc_to_text: '{{q}}'\ndoc_to_choice: '{{choices}}'\n"
        "doc_to_target: gold\ntarget_delimiter: ''\nmetric_list: [{metric: acc}, {metric: acc_norm}]\n",
        "own_text": "output_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{text}}'\n"
        "metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}, {metric: bits_per_byte}]\n",
        "own_answer": "output_type: generate_until\ndoc_to_text: '{{q}}'\ndoc_to_target: '{{text}}'\n"
        "generation_kwargs: {until: ['.'], max_gen_toks: 6, do_sample: false}\n"
        "metric_list: [{metric: exact_match}]\n",
    }
    folder = tmp_path / "tasks"
    folder.mkdir()
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(f"task: {name}\n{common}{text}")
    return folder


@pytest.mark.slow
def test_equal_to_the_harness_own_model(tasks: Path, tiny: Path) -> None:
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    names = ["own_choice", "own_text", "own_answer"]
    config = load_config({
        "model_name_or_path": str(tiny), "dtype": "float32", "eval_tasks": names, "eval_tasks_dir": str(tasks),
    }).config  # fmt: skip
    found = {measure.name: measure for measure in evaluate(config).measures}
    theirs: Any = simple_evaluate(
        HFLM(pretrained=str(tiny), dtype="float32", batch_size=2, device="cpu"),
        tasks=names, task_manager=TaskManager(include_path=str(tasks)), bootstrap_iters=0,
    )  # fmt: skip
    checked = 0
    for task, results in theirs["results"].items():
        for key, value in results.items():
            metric, _, filtered = key.partition(",")
            if filtered == "none" and isinstance(value, float) and not metric.endswith("_stderr"):
                assert found[f"harness/{task}/{metric}"].value == pytest.approx(value, rel=1e-4), key
                checked += 1
    assert checked >= 6
    assert found["harness/own_choice/acc"].rows == 5
    assert found["harness/own_choice/acc"].series is not None


@pytest.mark.slow
def test_rows_are_paired_and_written(tasks: Path, run: Path, tmp_path: Path) -> None:
    own = shutil.copytree(run, tmp_path / "own")
    config = load_config({"model_name_or_path": str(own), "dtype": "float32", "eval_tasks": "own_choice,own_text",
                          "eval_tasks_dir": str(tasks)}).config  # fmt: skip
    _, tuned = evaluate_all([config], name="tasks").evaluations
    gap = tuned.differences["harness/own_choice/acc"]
    assert gap.rows == 5
    assert gap.interval is not None
    lines = [json.loads(line) for line in (own / "evaluation/tasks/predictions-harness.jsonl").read_text().splitlines()]
    chosen = [line for line in lines if line["origin"].startswith("own_choice:")]
    assert [line["origin"] for line in chosen] == [f"own_choice:{i}" for i in range(5)]
    assert sum(line["grades"]["acc"] for line in chosen) / 5 == tuned.measure("harness/own_choice/acc").value
    assert tuned.measure("harness/own_text/byte_perplexity").better == "lower"


@pytest.mark.slow
def test_models_that_our_decoder_does_not_run(tasks: Path, tiny: Path) -> None:
    told = {
        "model_name_or_path": str(tiny),
        "dtype": "float32",
        "eval_tasks": "own_choice",
        "eval_tasks_dir": str(tasks),
    }
    ours, theirs = (evaluate(load_config({**told, "engine": engine}).config) for engine in ("auto", "hf"))
    assert [m.value for m in ours.measures] == [m.value for m in theirs.measures]


@pytest.mark.parametrize("top", [0, 1])
def test_every_way_to_score_gives_one_number(tiny: Path, top: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our decoder, packed passes in parts of a few tokens, and plain passes that keep all logits."""
    from luthier.evaluation import logprobs as scoring

    monkeypatch.setattr(scoring, "TOKENS_AT_ONCE", 40)
    begin = [5 * i % 250 for i in range(30)]
    pairs = [(begin, [1]), (begin, [2, 3, 4]), ([*begin, 9], [7, 7]), ([8], begin)]
    found: list[Any] = []
    for engine in ("local", "hf"):
        config = load_config({"model_name_or_path": str(tiny), "dtype": "float32", "engine": engine}).config
        with loaded(config, engine) as subject:
            best = int(subject.model(torch.tensor([begin])).logits[0, -1].argmax())
            found.append(scoring.logprobs(subject, [*pairs, (begin, [best])], top=top))
    for ours, theirs, size in zip(*found, [1, 3, 2, 30, 1], strict=True):
        assert len(ours) == size
        assert [logp for logp, _ in ours] == pytest.approx([logp for logp, _ in theirs], abs=1e-5)
        assert [is_best for _, is_best in ours] == [is_best for _, is_best in theirs]
    assert found[0][-1][0][1] is bool(top)


def test_endings_that_do_not_fit_are_told(tiny: Path) -> None:
    from luthier.evaluation.harness_model import HarnessModel
    from luthier.evaluation.subject import Subject
    from luthier.workflows.build import load_speaker

    speaker = load_speaker(load_config({"model_name_or_path": str(tiny), "dtype": "float32"}).config)
    model: Any = HarnessModel(Subject("tiny", speaker.model, speaker.template, lambda: speaker.engine))
    context = [7 * i % 250 for i in range(600)]
    ((logp, _),) = model._loglikelihood_tokens([(("", ""), context, [2, 3])])
    ((cut, _),) = model._loglikelihood_tokens([(("", ""), context[-510:], [2, 3])])
    assert logp == cut
    with pytest.raises(DataError, match="an ending of 512 tokens is longer than the 512"):
        model._loglikelihood_tokens([(("", ""), [1], [2] * 512)])
