"""Multiple choice: files as they are published, prompts as published, and the most probable letter."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import byte_tokenizer
from tunings import fresh

from luthier.config.load import load_config
from luthier.core.errors import ConfigError, DataError
from luthier.evaluation.logprobs import logprobs
from luthier.evaluation.prompts import Prompts, words_for
from luthier.evaluation.questions import read_benchmark
from luthier.evaluation.subjects import CEVAL, CMMLU, MMLU
from luthier.workflows.evaluate import evaluate


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


@pytest.fixture
def mmlu(tmp_path: Path) -> Path:
    folder = tmp_path / "mmlu"
    write(folder / "dev/high_school_physics_dev.csv", 'What falls?,a stone,light,time,sleep,A\n"1+1, is?",1,2,3,4,B\n')
    write(folder / "test/high_school_physics_test.csv", 'Hot is?,ice,fire,snow,rain,B\n"Two\nlines?",x,y,z,w,D\n')
    write(folder / "dev/law_dev.csv", "Who judges?,a judge,a cook,a cat,a tree,A\n")
    write(folder / "test/law_test.csv", "A court is?,a house,a tree,a fish,a song,A\n")
    write(folder / "mapping.json", json.dumps({
        "high_school_physics": {"name": "high school physics", "category": "STEM"},
        "law": {"name": "law", "category": "Social Sciences"},
    }))  # fmt: skip
    return folder


def config_of(model: object, **given: Any) -> Any:
    return load_config({"model_name_or_path": str(model), "dtype": "float32", "eval_kinds": "choice", **given}).config


PROMPT = """The following are multiple choice questions (with answers) about high school physics.

What falls?
A. a stone
B. light
C. time
D. sleep
Answer: A

1+1, is?
A. 1
B. 2
C. 3
D. 4
Answer: B

Hot is?
A. ice
B. fire
C. snow
D. rain
Answer:"""


def by_hand(model: Any, text: str, endings: list[str]) -> list[float]:
    encode, found = byte_tokenizer(), []
    start = encode(text).input_ids
    for ending in endings:
        ids = encode(text + ending).input_ids
        with torch.no_grad():
            logp = torch.log_softmax(model(torch.tensor([ids])).logits[0, :-1].float(), -1)
        found.append(sum(float(logp[i - 1, ids[i]]) for i in range(len(start), len(ids))))
    return found


def test_the_letter_that_is_most_probable(mmlu: Path, tiny: Path) -> None:
    found = evaluate(config_of(tiny, task=str(mmlu), n_shot=2, lang="en"))
    lines = found.outcomes["choice"].lines
    expected = by_hand(fresh(tiny), PROMPT, [" A", " B", " C", " D"])
    assert lines[0]["answer"] == "ABCD"[max(range(4), key=expected.__getitem__)]
    assert lines[0]["origin"].endswith("test/high_school_physics_test.csv:1")
    assert lines[1]["question"] == "Two\nlines?"
    names = [m.name for m in found.measures]
    assert names == ["choice/mmlu", "choice/mmlu/STEM", "choice/mmlu/Social Sciences",
                     "choice/mmlu/high_school_physics", "choice/mmlu/law"]  # fmt: skip
    assert [m.rows for m in found.measures] == [3, 2, 1, 2, 1]
    share = sum(line["right"] for line in lines) / 3
    assert found.measure("choice/mmlu").value == pytest.approx(share)


def test_a_whole_text_by_its_bytes(mmlu: Path, tiny: Path) -> None:
    found = evaluate(config_of(tiny, task=str(mmlu), n_shot=0, lang="en", choice_score="text"))
    text = PROMPT.partition("What falls?")[0] + "Hot is?" + PROMPT.rpartition("Hot is?")[2]
    choices = ["ice", "fire", "snow", "rain"]
    scores = by_hand(fresh(tiny), text, [f" {choice}" for choice in choices])
    scores = [score / len(choice) for score, choice in zip(scores, choices, strict=True)]
    assert found.outcomes["choice"].lines[0]["answer"] == "ABCD"[max(range(4), key=scores.__getitem__)]


def test_through_the_chat_template(mmlu: Path, tiny: Path) -> None:
    from luthier.core.types import Message
    from luthier.workflows.build import load_speaker

    config = config_of(tiny, task=str(mmlu), n_shot=1, lang="en", choice_prompt="chat")
    found = evaluate(config)
    intro, _, rest = PROMPT.partition("What falls?")
    shot = intro + "What falls?" + rest.partition(" A\n\n")[0]
    asked = "Hot is?" + PROMPT.rpartition("Hot is?")[2]
    prompt = load_speaker(config).template.prompt([
        Message(role="user", content=shot), Message(role="assistant", content="A"), Message(role="user", content=asked),
    ])  # fmt: skip
    letters = [byte_tokenizer()(letter).input_ids[0] for letter in "ABCD"]
    with torch.no_grad():
        logits = fresh(tiny)(torch.tensor([prompt])).logits[0, -1]
    assert found.outcomes["choice"].lines[0]["answer"] == "ABCD"[int(logits[letters].argmax())]


def test_models_that_our_decoder_does_not_run_give_the_same(mmlu: Path, tiny: Path) -> None:
    told = {"task": str(mmlu), "n_shot": 1}
    ours, theirs = (
        evaluate(config_of(tiny, engine=engine, **told)).outcomes["choice"].lines for engine in ("auto", "hf")
    )
    assert ours == theirs


def test_cmmlu_and_ceval(tmp_path: Path) -> None:
    cmmlu = tmp_path / "cmmlu"
    write(cmmlu / "test/agronomy.csv", ",Question,A,B,C,D,Answer\n0,水稻是什么,草,树,鱼,鸟,A\n")
    write(cmmlu / "dev/agronomy.csv", ",Question,A,B,C,D,Answer\n0,小麦是什么,草,树,鱼,鸟,A\n")
    found = read_benchmark("cmmlu_test", str(tmp_path), 5)
    assert found.is_chinese
    (question,) = found.asked["agronomy"]
    assert (question.text, question.choices, question.answer) == ("水稻是什么", ("草", "树", "鱼", "鸟"), 0)
    ceval = tmp_path / "ceval"
    write(
        ceval / "test/law_test.csv",
        "id,question,A,B,C,D\n0,秘密,一,二,三,四\n".replace("D\n", "D,answer\n", 1).replace("四\n", "四,\n"),
    )
    write(ceval / "val/law_val.csv", "id,question,A,B,C,D,answer\n0,法院是什么,甲,乙,丙,丁,C\n")
    write(ceval / "dev/law_dev.csv", "id,question,A,B,C,D,answer,explanation\n0,法官是谁,甲,乙,丙,丁,D,因为\n")
    secret = read_benchmark("ceval", str(tmp_path), 5)
    assert [q.answer for q in secret.asked["law"]] == [2]
    assert secret.shots["law"][0].answer == 3


def test_json_lines(tmp_path: Path) -> None:
    file = tmp_path / "quiz.jsonl"
    write(
        file,
        '{"question": "q", "choices": ["x", "y", "z"], "answer": 2}\n\n{"question": "r", "A": "1", "B": "2", "answer": "b"}\n',
    )
    found = read_benchmark(str(file), "nowhere", 5)
    assert [(q.choices, q.answer, q.where) for q in found.asked["quiz"]] == [
        (("x", "y", "z"), 2, f"{file}:1"), (("1", "2"), 1, f"{file}:3")]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "question,A,B,answer\nq,x,y,C\n", r"a.csv:2 \[answer\] is 'C'; expected one of A, B"),
        ("a.csv", "question,A,B\nq,x,y\n", r"a.csv:2 \[answer\] is missing; found columns question, a, b"),
        ("a.csv", "question,A,B,answer\n,x,y,A\n", r"a.csv:2 \[question\] is missing or empty"),
        ("a.csv", "question,A,B,answer\nq,x,,A\n", r"a.csv:2 \[choices\].*found 1"),
        (
            "a.jsonl",
            '{"question": "q", "A": "x", "B": "y", "answer": "A"}\n{bad\n',
            r"a.jsonl:2 expected one JSON object",
        ),
        ("a.csv", "q,x,y,z,w,A\nq, with a comma,x,y,z,w,A\n", r"a.csv:2 has 7 columns, the first row has 6"),
        ("a.csv", "question,A,B,C,answer\nq,x,,z,A\n", r"a.csv:2 \[B\] is empty"),
        ("a.csv", 'question,A,B,answer\nq,"x,y,A\n', r"a.csv:2 is no csv"),
        ("a.txt", "q\n", r"files may be .csv, .jsonl"),
        ("a.csv", "question,A,B,answer\nq,x,y,\n", r"a.csv:2 \[answer\] is empty"),
        ("a.csv", "", "a.csv has no questions"),
    ],
)
def test_broken_rows_are_named(name: str, text: str, message: str, tmp_path: Path) -> None:
    write(tmp_path / name, text)
    with pytest.raises(DataError, match=message):
        read_benchmark(str(tmp_path / name), "nowhere", 0)


def test_files_in_other_encodings_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("问题,甲,乙,A\n".encode("gb18030"))
    with pytest.raises(DataError, match="a.csv is not UTF-8"):
        read_benchmark(str(tmp_path / "a.csv"), "nowhere", 0)
    write(tmp_path / "b/test/law_test.csv", "q,x,y,A\n")
    write(tmp_path / "b/mapping.json", "[1]")
    with pytest.raises(DataError, match=r"mapping.json: expected"):
        read_benchmark(str(tmp_path / "b"), "nowhere", 0)


def test_a_line_separator_inside_a_text_is_text(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", '{"question": "one\u2028two", "A": "x", "B": "y", "answer": 1}\n')
    ((question,),) = read_benchmark(str(tmp_path / "a.jsonl"), "nowhere", 0).asked.values()
    assert (question.text, question.answer) == ("one\u2028two", 1)


def test_published_words_and_categories(tmp_path: Path) -> None:
    row = ",Question,A,B,C,D,Answer\n0,水稻是什么,草,树,鱼,鸟,A\n"
    write(tmp_path / "cmmlu/test/chinese_food_culture.csv", row)
    write(tmp_path / "cmmlu/test/agronomy.csv", row)
    found = read_benchmark("cmmlu_test", str(tmp_path), 0)
    assert found.categories["chinese_food_culture"] == ("Social Science", "China specific")
    prompts = Prompts(found, words_for(found, "auto"))
    expected = "以下是关于农学的单项选择题，请直接给出正确答案的选项。\n\n题目：水稻是什么\nA. 草\nB. 树\nC. 鱼\nD. 鸟\n答案是："
    assert prompts.text(found.asked["agronomy"][0], ()) == expected
    write(tmp_path / "ceval/val/logic_val.csv", "id,question,A,B,C,D,answer\n0,秘密,一,二,三,四,B\n")
    ceval = read_benchmark("ceval_validation", str(tmp_path), 0)
    shown = Prompts(ceval, words_for(ceval, "auto"))
    (question,) = ceval.questions
    expected = (
        "以下是中国关于逻辑学考试的单项选择题，请选出其中的正确答案。\n\n秘密\nA. 一\nB. 二\nC. 三\nD. 四\n答案："
    )
    assert shown.text(question, ()) == expected
    assert shown.text(question, [question]).count("答案：B\n\n秘密") == 1
    assert words_for(ceval, "en").answer == "Answer:"


def test_every_subject_has_one_table() -> None:
    assert [len(suite.categories) for suite in (MMLU, CEVAL, CMMLU)] == [57, 52, 67]
    assert MMLU.categories["abstract_algebra"] == ("STEM",)
    for suite in (CEVAL, CMMLU):
        assert suite.categories.keys() == suite.titles.keys()


def test_shots_beside_a_file(mmlu: Path, tiny: Path) -> None:
    file = mmlu / "test/high_school_physics_test.csv"
    shots = read_benchmark(str(file), "nowhere", 1).shots
    assert [shot.text for shot in shots["high_school_physics"]] == ["What falls?"]
    write(mmlu / "alone.csv", "q,x,y,A\n")
    found = evaluate(config_of(tiny, task=str(mmlu / "alone.csv")))
    assert found.notes == ["alone: no dev questions beside the file, so they were asked without shots"]


def test_shots_that_do_not_fit_are_left_out_and_told(mmlu: Path, tiny: Path) -> None:
    """The tiny model sees 512 tokens, here bytes: the prompt with a long shot does not fit, without it it does."""
    write(mmlu / "dev/law_dev.csv", f"Who judges {'x' * 600}?,a judge,a cook,a cat,a tree,A\n")
    found = evaluate(config_of(tiny, task=str(mmlu), n_shot=1))
    assert found.notes == [f"{tiny}: 1 questions of mmlu had no room for all shots; 1 shots were left out"]
    without = evaluate(config_of(tiny, task=str(mmlu), n_shot=0))
    assert found.outcomes["choice"].lines[2] == without.outcomes["choice"].lines[2]
    write(mmlu / "test/law_test.csv", f"A court is {'x' * 600}?,a house,a tree,a fish,a song,A\n")
    with pytest.raises(DataError, match=r"law_test.csv:1 \[question\] is longer than the 512 tokens"):
        evaluate(config_of(tiny, task=str(mmlu), n_shot=1))


def test_the_prefix_is_computed_once(mmlu: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of four prompts that differ in their last letter, the decoder computes the common pages once."""
    from luthier.engines.batch import Batch

    computed, asked, hidden = [0], [0], Batch.hidden

    def counting(self: Any, jobs: Any) -> Any:
        computed[0] += sum(len(job.tokens) for job in jobs)
        return hidden(self, jobs)

    def listening(subject: Any, pairs: Any) -> Any:
        asked[0] += sum(len(beginning) + len(ending) for beginning, ending in pairs)
        return logprobs(subject, pairs)

    monkeypatch.setattr(Batch, "hidden", counting)
    monkeypatch.setattr("luthier.evaluation.kinds.choice.logprobs", listening)
    evaluate(config_of(tiny, task=str(mmlu), n_shot=2))
    assert 0 < computed[0] < 0.4 * asked[0]


def test_missing_benchmarks_and_shots(mmlu: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="task 'mmul_test' is neither a file nor a folder.*did you mean 'mmlu'"):
        read_benchmark("mmul_test", str(tmp_path), 0)
    (mmlu / "dev/law_dev.csv").unlink()
    with pytest.raises(DataError, match="law has none in dev; set n_shot: 0"):
        read_benchmark(str(mmlu), "nowhere", 5)
    assert len(read_benchmark(str(mmlu), "nowhere", 0).asked) == 2
