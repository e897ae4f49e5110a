"""The command line as a person and a script meet it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import Jobs

from luthier.core.types import Segment
from luthier.data.pack import pack

COMMANDS = [
    "train",
    "chat",
    "evaluate",
    "export",
    "validate",
    "estimate",
    "models",
    "init",
    "doctor",
    "explain",
    "data",
    "runs",
]
pytestmark = pytest.mark.slow


@pytest.fixture
def file(tiny: Path, rows: Path, tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(
        f"model_name_or_path: {tiny}\ndataset: {rows}\noutput_dir: run\nlora_rank: 4\nmax_steps: 2\n"
        "per_device_train_batch_size: 4\ndtype: float32\nthreads: 1\nval_size: 4\nmax_new_tokens: 5\n"
    )
    return path


@pytest.mark.parametrize("command", [[], *([c] for c in COMMANDS), ["data", "preview"], ["runs", "tail"]], ids="-".join)
def test_help_needs_no_torch(command: list[str]) -> None:
    code = (
        "import sys; sys.argv[0] = 'luthier'\nfrom luthier.cli import main\ntry: main()\nexcept SystemExit: pass\n"
        "print('torch' in sys.modules or 'transformers' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *command, "--help"], capture_output=True, text=True)
    assert "Usage: luthier" in done.stdout
    assert done.stderr.strip().endswith("False")


def test_one_story(file: Path, rows: Path, jobs: Jobs) -> None:
    here = file.parent
    run = lambda *argv: jobs.run(*argv, cwd=here)  # noqa: E731
    planned = run("train", file, "--dry-run", "--json")
    assert planned.code == 0, planned.err
    assert planned.last_json["estimate"]["peak_bytes"] > 0
    assert not (here / "run").exists()
    result = run("train", file, "--json")
    assert set(result.last_json) >= {
        "run",
        "status",
        "steps",
        "train_loss",
        "eval_loss",
        "tokens_per_second",
        "peak_memory_bytes",
    }
    again = run("train", file)
    assert (again.code, "already holds a run (done)" in again.err) == (2, True)
    assert run("train", file, "--resume", "auto").code == 0
    assert run("runs", "list", ".", "--json").last_json["runs"][0]["state"] == "done"
    shown = run("runs", "show", "run", "--json").last_json
    assert [c["verified"] for c in shown["checkpoints"]] == ["good"]
    tail = run("runs", "tail", "run", "--lines", "1")
    assert json.loads(tail.out)["kind"] == "done"
    graded = run("evaluate", "run", "--compare", "--json", f"eval_dataset={rows}", "val_size=0", "predict_samples=2")
    assert graded.code == 0, graded.err
    assert {"exact_match", "before", "rows"} <= set(graded.last_json)
    replaced = run("train", file, "overwrite_output_dir=true", "seed=7", "--json")
    assert replaced.code == 0, replaced.err
    assert len(list(here.glob("*replaced*"))) == 1
    differing = run("runs", "compare", "run", str(next(here.glob("*replaced*"))), "--json").last_json
    assert differing["settings"]["train.seed"] == [7, 42]


def test_preview_is_what_training_sees(file: Path, jobs: Jobs, tiny: Path) -> None:
    result = jobs.run("data", "preview", file, "--rows", "3", "--json", cwd=file.parent)
    assert result.code == 0, result.err
    from luthier.config.load import load_config
    from luthier.data.prepare import prepare
    from luthier.workflows.build import read_preparer

    config = load_config(file).config
    units, _ = prepare(config.data.dataset, read_preparer(config))
    for line, unit in zip(result.out.splitlines(), units, strict=False):
        shown = [Segment(tokens=s["ids"], weight=s["weights"]) for s in json.loads(line)["segments"]]
        expected, ours = pack([unit]), pack([shown])
        assert expected.targets.tolist() == ours.targets.tolist()
        assert expected.input_ids.tolist() == ours.input_ids.tolist()
    text = json.loads(result.out.splitlines()[1])["segments"][0]["tokens"]
    assert "你好" in "".join(text)


def test_validate_names_the_place_of_every_value(file: Path, jobs: Jobs) -> None:
    found = jobs.run("validate", file, "seed=7", "--json", cwd=file.parent).last_json
    assert found["settings"]["train.seed"] == {"value": 7, "from": "command line"}
    assert found["settings"]["train.max_steps"]["from"] == f"{file}:5"
    assert found["settings"]["train.learning_rate"]["from"] == "default"


def test_audit_ends_with_two_for_bad_rows(file: Path, jobs: Jobs) -> None:
    bad = file.parent / "bad.jsonl"
    bad.write_text('{"instruction": "你好 🙂", "output": "hi"}\n{"instruction": "x"}\n', encoding="utf-8")
    audit = jobs.run("data", "audit", file, f"dataset={bad}", cwd=file.parent)
    assert audit.code == 2
    assert f"error: {bad}:2 [output] expected a column of this name" in audit.out
    refused = jobs.run("train", file, f"dataset={bad}", "val_size=0", cwd=file.parent)
    assert refused.code == 2
    assert f"{bad}:2 [output]" in refused.err
    assert not (file.parent / "run").exists()
    skipped = jobs.run("train", file, f"dataset={bad}", "val_size=0", "bad_rows=skip", "max_steps=1", cwd=file.parent)
    assert skipped.code == 0, skipped.err
    assert "bad_rows: skip left out 1 of 2 rows" in skipped.err


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["train", "{file}", "learnig_rate=1"], 2, "unknown key 'learnig_rate'"),
        (["train", "nothing.yaml"], 2, "nothing.yaml does not exist"),
        (["train", "{file}", "dataset=gone.jsonl"], 2, "neither a file"),
        (["train", "{file}", "cutoff_len=5"], 2, "the template alone takes 19 tokens"),
        (["train", "{file}", "lora_target=nope"], 2, "lora_target: linear layer 'nope' is not in this model"),
        (["train", "{file}", "device=cuda"], 2, "device: cuda was asked for"),
        (["train", "{file}", "val_size=100"], 2, "leaves no row to train on"),
        (["train", "{file}", "--resume", "must"], 2, "holds no run"),
        (["chat", "nothing-here"], 2, "neither a folder"),
        (["export", "nothing-here"], 2, "neither a folder"),
        (["runs", "show", "."], 2, "is no run directory"),
        (["data", "list", "nowhere"], 2, "nowhere is no folder"),
        (["trian"], 2, "No such command 'trian'"),
        (["explain", "lora_rnk"], 1, "no setting 'lora_rnk'"),
    ],
)
def test_mistakes_are_explained_without_a_traceback(
    file: Path, jobs: Jobs, argv: list[str], code: int, message: str
) -> None:
    result = jobs.run(*(a.format(file=file) for a in argv), cwd=file.parent)
    assert message in result.err
    assert "Traceback" not in result.err
    assert result.code == code
    assert not (file.parent / "run").exists()


def test_json_errors_and_debug(file: Path, jobs: Jobs) -> None:
    failed = jobs.run("train", file, "sed=1", "--json", cwd=file.parent)
    assert failed.last_json == {
        "schema": 1,
        "ok": False,
        "error": {"code": "config_unknown_key", "message": failed.err.strip()},
    }
    assert "Traceback" in jobs.run("train", file, "sed=1", cwd=file.parent, LUTHIER_DEBUG="1").err


def test_init_writes_a_file_that_validates_and_never_over_another(tmp_path: Path, jobs: Jobs) -> None:
    assert jobs.run("init", "a.yaml", cwd=tmp_path).code == 0
    assert jobs.run("validate", "a.yaml", cwd=tmp_path).code == 0
    text = (tmp_path / "a.yaml").read_text()
    again = jobs.run("init", "a.yaml", cwd=tmp_path)
    assert again.code == 2
    assert (tmp_path / "a.yaml").read_text() == text


def test_lists(file: Path, jobs: Jobs) -> None:
    assert any(m["name"] == "smollm2-135m" for m in jobs.run("models", "--json", cwd=file.parent).last_json["models"])
    assert {c["level"] for c in jobs.run("doctor", "--json", cwd=file.parent).last_json["checks"]} <= {
        "good",
        "note",
        "fault",
    }
    (file.parent / "data").mkdir()
    (file.parent / "data/dataset_info.json").write_text('{"mine": {"file_name": "a.json"}}')
    assert jobs.run("data", "list", "--json", cwd=file.parent).last_json["datasets"][0]["name"] == "mine"
    assert "properties" in json.loads(jobs.run("explain", "--schema", cwd=file.parent).out)
    assert "learning_rate" in jobs.run("explain", "learning_rate", cwd=file.parent).out


def test_estimate_leaves_the_folder_alone(file: Path, jobs: Jobs) -> None:
    assert jobs.run("estimate", file, cwd=file.parent).code == 0
    left = {p.name for p in file.parent.iterdir() if not p.name.startswith("job")}
    assert left <= {"run.yaml", "cache"}  # LUTHIER_CACHE points here in tests
