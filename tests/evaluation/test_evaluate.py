"""`luthier evaluate`: what it measures is what training measured, models stand beside each other, files stay whole."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from bars import listen, shares
from helpers import Jobs
from tunings import fresh

from luthier.config.load import load_config
from luthier.core.errors import ConfigError, DataError, ModelError, RunError
from luthier.evaluation.kinds import judge as judging
from luthier.runs.store import read_events
from luthier.workflows.evaluate import evaluate, evaluate_all


def config_of(model: object, **given: Any) -> Any:
    return load_config({"model_name_or_path": str(model), "dtype": "float32", **given}).config


@pytest.fixture
def own(run: Path, tmp_path: Path) -> Path:
    """A copy of the run to write into."""
    return Path(shutil.copytree(run, tmp_path / "own"))


def test_loss_is_the_trainers(run: Path, held_out: Path) -> None:
    trained = read_events(run, "eval")[-1]
    found = evaluate(config_of(run, eval_dataset=str(held_out), eval_kinds="loss"))
    assert found.measure("loss/loss").value == pytest.approx(trained["eval_loss"], abs=1e-5)
    assert found.measure("loss/perplexity").value == pytest.approx(math.exp(trained["eval_loss"]), rel=1e-4)
    low, high = found.measure("loss/loss").interval  # type: ignore[misc]
    assert low < trained["eval_loss"] < high


def test_plain_text_has_a_loss_too(tiny: Path, tmp_path: Path) -> None:
    file = tmp_path / "text.jsonl"
    texts = ["The weather is fine.", "你好，世界 🙂"]
    file.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts))
    found = evaluate(config_of(tiny, stage="pt", eval_dataset=str(file)))
    from helpers import byte_tokenizer

    model, sums, count = fresh(tiny), 0.0, 0
    for text in texts:
        ids = [*byte_tokenizer()(text).input_ids, byte_tokenizer().eos_token_id]
        with torch.no_grad():
            logp = torch.log_softmax(model(torch.tensor([ids])).logits[0, :-1], -1)
        sums -= float(logp.gather(1, torch.tensor(ids[1:])[:, None]).sum())
        count += len(ids) - 1
    assert found.measure("loss/loss").value == pytest.approx(sums / count, abs=1e-4)
    assert list(found.outcomes) == ["loss"]


@pytest.mark.parametrize("engine", ["local", "hf"])
def test_the_bar_moves_with_the_rows(
    own: Path, held_out: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    told = listen(monkeypatch)
    settings = {"max_new_tokens": 6, "per_device_eval_batch_size": 2, "engine": engine, "predict_batch_size": 4}
    evaluate_all([config_of(own, eval_dataset=str(held_out), **settings)], name="check")
    told = [each for each in told if each[1]]
    assert [share for share, _ in told] == sorted(share for share, _ in told), "it goes back"
    assert not [what for _, what in told if what.endswith(": judge")], "nobody judges"
    for model, begin in ((str(own), 0.0), (f"base {tiny}", 0.5)):
        loss, answers = (shares(told, f"{model}: {kind}") for kind in ("loss", "generate"))
        assert loss == pytest.approx([begin + 0.25 * done / 10 for done in (0, 2, 4, 6, 8, 10)], abs=1e-4)
        assert answers[0] == pytest.approx(begin + 0.25, abs=1e-4)
        assert len(answers) > 2
        assert answers[-1] > begin + 0.4


def test_base_and_runs_in_one_table(own: Path, run: Path, held_out: Path, tiny: Path) -> None:
    told = {"eval_dataset": str(held_out), "max_new_tokens": 6}
    found = evaluate_all([config_of(own, **told), config_of(run, **told)], name="check")
    names = [each.model for each in found.evaluations]
    assert names == [f"base {tiny}", str(own), str(run)]
    base, tuned, _ = found.evaluations
    plain = evaluate(config_of(tiny, **told))
    assert base.measure("loss/loss").value == pytest.approx(plain.measure("loss/loss").value, abs=1e-5)
    assert [p.answer for p in base.predictions] == [p.answer for p in plain.predictions]
    gap = tuned.differences["loss/loss"]
    assert gap.value == pytest.approx(tuned.measure("loss/loss").value - base.measure("loss/loss").value, abs=1e-9)
    assert gap.value < -0.1, "the run learned nothing, so the table would show nothing"
    assert gap.interval is not None
    assert gap.interval[1] < 0
    folder = own / "evaluation" / "check"
    assert folder in found.folders
    written = json.loads((folder / "results.json").read_text())
    assert [model["model"] for model in written["models"]] == names[:2]
    lines = [json.loads(line) for line in (folder / "predictions-generate.jsonl").read_text().splitlines()]
    assert [line["origin"] for line in lines] == [f"{held_out}:{i}" for i in range(1, 11)]
    assert lines[1]["question"] == "say 你好 1"
    assert {"answer", "expected", "finish_reason", "tokens", "grades"} <= lines[0].keys()
    with pytest.raises(RunError, match="is there already and is not written over"):
        evaluate_all([config_of(own, **told)], name="check")
    assert json.loads((folder / "results.json").read_text()) == written
    shutil.rmtree(run / "evaluation")


def test_answers_are_those_of_the_model(run: Path, held_out: Path) -> None:
    from luthier.models.adapters import load_adapter

    found = evaluate(config_of(run, eval_dataset=str(held_out), eval_kinds="generate", max_new_tokens=5))
    facts = json.loads((run / "adapter_config.json").read_text())
    model = load_adapter(fresh(Path(facts["base_model_name_or_path"])), run, trainable=False).eval()
    from transformers import AutoTokenizer

    from luthier.workflows.build import load_speaker

    speaker = load_speaker(config_of(run))
    tokenizer = AutoTokenizer.from_pretrained(run)
    from luthier.core.types import Message

    for prediction in found.predictions[:3]:
        prompt = speaker.template.prompt([Message(role="user", content=prediction.question)])
        with torch.no_grad():
            ids = model.generate(torch.tensor([prompt]), max_new_tokens=5, do_sample=False)[0, len(prompt) :]
        assert prediction.answer == tokenizer.decode(ids, skip_special_tokens=True)
    assert found.measure("generate/exact_match").rows == 10
    assert 0 <= found.measure("generate/cut_off").value <= 1


def test_rows_that_val_size_set_aside(tiny: Path, rows: Path, tmp_path: Path) -> None:
    from luthier.workflows.train import train

    settings = {"model_name_or_path": str(tiny), "dataset": str(rows), "val_size": 5, "dtype": "float32", "max_steps": 2,
                "output_dir": str(tmp_path / "run"), "plot_loss": False, "eval_steps": 2}  # fmt: skip
    train(load_config(settings).config, quiet=True)
    trained = read_events(tmp_path / "run", "eval")[-1]["eval_loss"]
    config = load_config({**settings, "model_name_or_path": str(tmp_path / "run")}).config
    found = evaluate(config)
    assert found.measure("loss/loss").value == pytest.approx(trained, abs=1e-5)
    assert len(found.predictions) == 5


def test_forgetting_is_said(own: Path, held_out: Path, tiny: Path, tmp_path: Path) -> None:
    """A general set on which tuning cost much, and one on which it gained."""
    general = tmp_path / "general.jsonl"
    texts = [f"completely other words {i} #@!" for i in range(12)]
    general.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    told = {"eval_kinds": "forgetting", "eval_general_dataset": str(general)}
    base, tuned = evaluate_all([config_of(own, **told)], name="a").evaluations
    gap = tuned.differences["forgetting/loss"]
    worse = gap.interval is not None and gap.interval[0] > 0
    assert bool(tuned.notes) is worse
    if worse:
        assert "has forgotten: its loss on" in tuned.notes[0]
    gained = evaluate_all([config_of(own, eval_kinds="forgetting", eval_general_dataset=str(held_out))], name="b")
    assert gained.evaluations[-1].differences["forgetting/loss"].value < 0
    assert gained.evaluations[-1].notes == []
    # Turned around, the base has "forgotten" what the run has learned.
    turned = evaluate_all([
        config_of(own, eval_kinds="forgetting", eval_general_dataset=str(held_out)), config_of(tiny),
    ], base=False, name="c")  # fmt: skip
    assert any("has forgotten" in note for note in turned.evaluations[-1].notes)
    assert base.model == f"base {tiny}"


def test_a_judge_sees_both_orders(own: Path, held_out: Path, judge_server: Any) -> None:
    told = {"eval_dataset": str(held_out), "eval_kinds": "judge", "max_new_tokens": 4, "predict_samples": 4}
    ask = {"eval_judge": {"base_url": judge_server.url, "model": "m"}}
    judge_server.reply = lambda text: "Verdict: A"  # favours a place: every pair is a tie
    tied = evaluate_all([config_of(own, **told, **ask)], name="a").evaluations[-1]
    assert tied.measure("judge/win_rate").value == 0.5
    assert tied.measure("judge/orders_agree").value == 0
    assert len(judge_server.seen) == 8
    longest = {"n": 0}

    def prefers_tuned(text: str) -> str:
        first, second = (text.partition(f"Answer {name}:\n")[2].partition("\n\n")[0] for name in "AB")
        longest["n"] += 1
        return "Verdict: tie" if first == second else f"Verdict: {'A' if first in own_answers else 'B'}"

    own_answers = {p.answer for p in tied.predictions}
    judge_server.reply = prefers_tuned
    won = evaluate_all([config_of(own, **told, **ask)], name="b").evaluations[-1]
    assert won.measure("judge/win_rate").value > 0.5
    judge_server.reply = lambda text: "I cannot say"
    failed = evaluate_all([config_of(own, **told, **ask)], name="c").evaluations[-1]
    assert "4 of 4 pairs could not be judged" in failed.notes[0]
    assert "judge/win_rate" not in [m.name for m in failed.measures]


def test_a_model_alone_is_judged_against_the_expected_answers(tiny: Path, held_out: Path, judge_server: Any) -> None:
    expected = "tea 0"

    def prefers_expected(text: str) -> str:
        first = text.partition("Answer A:")[2].partition("Answer B:")[0]
        return f"Verdict: {'A' if expected in first else 'B'}"

    judge_server.reply = prefers_expected
    config = config_of(tiny, eval_dataset=str(held_out), eval_kinds="judge", max_new_tokens=4, predict_samples=1,
                       eval_judge={"base_url": judge_server.url, "model": "m"})  # fmt: skip
    for found in (evaluate(config), *evaluate_all([config]).evaluations):
        assert found.against == "the expected answers"
        assert (found.measure("judge/win_rate").value, found.measure("judge/orders_agree").value) == (0, 1)
        assert found.outcomes["judge"].lines[0]["other"] == expected


@pytest.fixture
def bad_and_good(tmp_path: Path) -> Path:
    file = tmp_path / "tagged.jsonl"
    rows = [{"instruction": f"q {i}", "output": f"answer {i}", "kto_tag": i % 2 == 0} for i in range(6)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_of_preference_rows_the_chosen_answers_count(tiny: Path, pairs: Path, tmp_path: Path) -> None:
    chosen = tmp_path / "chosen.jsonl"
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    plain = [{"instruction": row["instruction"], "output": row["chosen"]} for row in rows]
    chosen.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in plain))
    told = {"max_new_tokens": 2, "eval_metrics": "exact"}
    of_pairs = evaluate(config_of(tiny, stage="dpo", eval_dataset=str(pairs), **told))
    of_answers = evaluate(config_of(tiny, eval_dataset=str(chosen), **told))
    assert of_pairs.measure("loss/loss").value == pytest.approx(of_answers.measure("loss/loss").value, abs=1e-6)
    assert [p.expected for p in of_pairs.predictions] == [row["chosen"] for row in rows]
    assert evaluate(config_of(tiny, stage="dpo", eval_dataset=str(chosen), **told)).measure("loss/loss").rows == 22


def test_of_tagged_rows_the_good_answers_count(tiny: Path, bad_and_good: Path) -> None:
    found = evaluate(config_of(tiny, stage="kto", eval_dataset=str(bad_and_good), max_new_tokens=2))
    assert [p.expected for p in found.predictions] == ["answer 0", "answer 2", "answer 4"]
    assert found.measure("loss/loss").rows == 3


def test_prompts_have_answers_but_no_targets(tiny: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"{i} + 1?", "answer": f"{i + 1}"}) + "\n" for i in range(3)))
    told = {"stage": "grpo", "rewards": "exact_match", "eval_dataset": str(file), "max_new_tokens": 2}
    found = evaluate(config_of(tiny, **told))
    assert list(found.outcomes) == ["generate"]
    assert [p.expected for p in found.predictions] == ["1", "2", "3"]
    with pytest.raises(ConfigError, match="loss: the rows of eval_dataset are prompts without target tokens"):
        evaluate(config_of(tiny, **told, eval_kinds="loss"))


def test_a_run_that_has_nothing_to_measure_yet(run: Path, held_out: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for name in ("status.json", "config.yaml"):
        shutil.copy(run / name, empty / name)
    with pytest.raises(ModelError, match="has neither final weights nor a checkpoint yet"):
        evaluate(config_of(empty, eval_dataset=str(held_out)))


def test_verdicts() -> None:
    judge = judging.PairJudge(base_url="http://127.0.0.1:9/v1", model="m")
    assert [judging._VERDICT.findall(said)[-1].lower() for said in (
        "Verdict: A", "verdict: **B**", "Verdict: A? no. Verdict: Tie")] == ["a", "b", "tie"]  # fmt: skip
    with pytest.raises(OSError, match="refused"):
        judge.verdict("q", "a", "b")


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({}, ConfigError, "eval_dataset is required: the rows to measure on"),
        ({"eval_kinds": "generate"}, ConfigError, "generate: eval_dataset is required"),
        ({"eval_kinds": "generat"}, ConfigError, "unknown kind of evaluation 'generat'; did you mean 'generate'"),
        ({"eval_dataset": "{held}", "eval_metrics": "exakt"}, ConfigError, "unknown metric of answers 'exakt'"),
        ({"eval_dataset": "{held}", "eval_metrics": "json"}, DataError, r"held.jsonl:1 the metric json"),
        ({"eval_dataset": "{bad}"}, DataError, r"bad.jsonl:2 \[output\] expected a column of this name"),
        ({"eval_kinds": "choice"}, ConfigError, "choice: task is required"),
        ({"eval_kinds": "forgetting"}, ConfigError, "forgetting: eval_general_dataset is required"),
        ({"eval_kinds": "harness"}, ConfigError, "harness: eval_tasks is required"),
        ({"eval_dataset": "{held}", "eval_kinds": "judge"}, ConfigError, "judge: eval_judge is required"),
        ({"eval_dataset": "{held}", "eval_judge": {"base_url": "x", "model": "m"}}, ConfigError, "eval_judge: base_url"),
        ({"eval_dataset": "{held}", "eval_judge": {"base_url": "http://a/v1", "modle": "m"}}, ConfigError,
         "eval_judge: unknown setting 'modle'.*did you mean 'model'"),
        ({"eval_dataset": "{held}", "eval_judge": {"base_url": "http://a/v1", "model": "m", "prompt": "x"}}, ConfigError,
         "prompt needs {a} and {b}"),
        ({"eval_dataset": "{held}", "eval_judge": {"base_url": "http://a/v1", "model": "m", "api_key_env": "NOPE_X"}},
         ConfigError, "environment variable NOPE_X"),
        pytest.param({"eval_tasks": "nothing_like_it"}, ConfigError,
                     "'nothing_like_it' is no task of lm-evaluation-harness", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_mistakes_are_told_before_a_model_is_loaded(
    given: dict[str, Any], error: type[Exception], message: str, tiny: Path, held_out: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"instruction": "你好", "output": "hi"}\n{"instruction": "x"}\n', encoding="utf-8")
    places = {"{held}": str(held_out), "{bad}": str(bad)}
    given = {key: places.get(value, value) if isinstance(value, str) else value for key, value in given.items()}
    with pytest.raises(error, match=message):
        evaluate(config_of(tiny, **given))


def test_a_model_without_a_base(tiny: Path, held_out: Path) -> None:
    with pytest.raises(ModelError, match="is no run directory and no adapter"):
        evaluate_all([config_of(tiny, eval_dataset=str(held_out))], base=True)


@pytest.mark.slow
def test_the_command_and_the_comparison(own: Path, held_out: Path, tmp_path: Path, jobs: Jobs) -> None:
    shown = jobs.run("evaluate", own, f"eval_dataset={held_out}", "--name", "one", cwd=tmp_path)
    assert shown.code == 0, shown.err
    assert "loss/perplexity" in shown.out
    assert "generate/exact_match" in shown.out
    assert f"written: {own}/evaluation/one" in shown.out
    said = jobs.run("evaluate", own, f"eval_dataset={held_out}", "--json", "--out", "a.jsonl", cwd=tmp_path).last_json
    assert {"exact_match", "before", "interval", "rows"} <= said.keys()
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == 10
    again = jobs.run("evaluate", own, f"eval_dataset={held_out}", "--out", "a.jsonl", cwd=tmp_path)
    assert (again.code, "is not written over" in again.err) == (2, True)
    other = Path(shutil.copytree(own, tmp_path / "other"))
    compared = jobs.run("runs", "compare", own, other, cwd=tmp_path)
    assert compared.code == 0, compared.err
    assert compared.out.count("loss/loss") == 1
    assert "95 %" in compared.out
    assert jobs.run("runs", "compare", own, other, "--json", cwd=tmp_path).last_json["evaluations"][0]["measures"]
    wrong = jobs.run("evaluate", tmp_path / "nowhere", f"eval_dataset={held_out}", cwd=tmp_path)
    assert wrong.code == 2
    assert "Traceback" not in wrong.err
