"""Settings looked at over HTTP: the same words as on the command line, and never more than the page may do."""

import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from asking import Page, asking

from luthier.config.load import load_config
from luthier.core.registry import OBJECTIVES


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    with asking(tmp_path) as found:
        yield found


def look(page: Page, **asked: Any) -> dict:
    return page.post("/config/look", asked)


def test_all_mistakes_at_once_with_their_places(page: Page) -> None:
    text = "model_name_or_path: m\nlearnig_rate: 1\nnum_train_epochs: three\nlora_rank: 0\ncutoff_len: -5\n"
    found = look(page, yaml=text)
    assert not found["ok"]
    assert [(p["place"], p["field"], p["code"]) for p in found["problems"]] == [
        ("settings.yaml:2", "train.learning_rate", "config_unknown_key"),
        ("settings.yaml:5", "data.cutoff_len", "config"),
        ("settings.yaml:3", "train.num_train_epochs", "config"),
        ("settings.yaml:4", "tuning.rank", "config"),
    ]
    assert "did you mean 'learning_rate'?" in found["problems"][0]["message"]
    assert (found["yaml"], found["resolved"]) == ("", {})


def test_another_dialect_is_understood(page: Page) -> None:
    text = (
        "stage: dpo\ndo_train: true\nmodel_name_or_path: Qwen/Qwen2.5-0.5B-Instruct\nfinetuning_type: lora\n"
        "lora_rank: 16\npref_beta: 0.2\npreprocessing_num_workers: 16\n"
    )
    found = look(page, yaml=text)
    assert found["ok"], found["problems"]
    assert found["values"]["objective"] == {"name": "dpo", "beta": 0.2}
    assert found["values"]["tuning"] == {"name": "lora", "rank": 16}
    assert found["places"]["tuning.rank"] == "settings.yaml:5"
    assert found["places"]["train.seed"] == "default"
    assert any("preprocessing_num_workers" in notice for notice in found["notices"])
    assert found["resolved"]["data"]["cutoff_len"] == 2048


def test_yaml_values_and_command_mean_the_same(page: Page, tmp_path: Path) -> None:
    values = {
        "model": {"model_name_or_path": "a/b", "quantization": "nf4"},
        "data": {"dataset": ["x y.jsonl", "你好"], "default_system": "it's $HOME; `ls`\nsecond line", "val_size": 0.1},
        "tuning": {"name": "lora", "rank": 4, "targets": ["q_proj"]},
        "objective": {"name": "dpo", "loss": "ipo"},
        "train": {"learning_rate": 1e-5, "lr_scheduler_kwargs": {"min_lr_rate": 0.1}, "packing": None},
    }
    del values["train"]["packing"]
    found = look(page, values=values)
    assert found["ok"], found["problems"]
    again = look(page, yaml=found["yaml"])
    assert again["resolved"] == found["resolved"]
    assert again["yaml"] == found["yaml"]
    word, train, *given = shlex.split(found["command"])
    assert (word, train) == ("luthier", "train")
    from luthier.config.load import dump

    assert json.loads(json.dumps(dump(load_config({}, given).config))) == found["resolved"]
    assert look(page, values=found["values"])["resolved"] == found["resolved"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty"),
        ("[1, 2]", "expected `key: value` lines"),
        ("a: [", "not YAML"),
        ("a:\tb\n", "tab"),
        ("model_name_or_path: m\nlearning_rate: .nan\n", "finite"),
        ("model_name_or_path: m\nmodel_name_or_path: n\n", "stands twice"),
        ("x: !!python/object/apply:os.system ['touch canary']\nmodel_name_or_path: m\n", "x"),
        ("a: &a [x, x, x, x, x, x, x, x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a, *a]\n"
         "c: &c [*b, *b, *b, *b, *b, *b, *b, *b, *b]\nd: &d [*c, *c, *c, *c, *c, *c, *c, *c, *c]\n"
         "e: [*d, *d, *d, *d, *d, *d, *d, *d, *d]\n", "more than 10000 values"),
        ("a: " + "x" * 1_100_000, "larger than"),
    ],
)  # fmt: skip
def test_what_is_no_settings(page: Page, text: str, says: str, tmp_path: Path) -> None:
    found = look(page, yaml=text)
    assert not found["ok"]
    assert any(says in problem["message"] for problem in found["problems"])
    assert not list(tmp_path.rglob("canary"))


def test_halves_of_characters(page: Page) -> None:
    body = b'{"yaml": "model_name_or_path: m\\nrun_name: \\ud83d\\n"}'
    found = page.http.post("/api/config/look", content=body, headers={"content-type": "application/json"})
    assert found.status_code in (200, 422)


def test_neither_or_both(page: Page) -> None:
    assert not look(page)["ok"]
    assert not look(page, yaml="a: 1", values={})["ok"]
    assert page.post("/config/look", {"unknown": 1}, 422)["field"]


@pytest.mark.parametrize(
    "asked",
    [
        {"yaml": "model_name_or_path: m\nobjective: antigravity:x\n"},
        {"yaml": "model_name_or_path: m\nstage: antigravity:x\n"},
        {"yaml": "model_name_or_path: m\ntuning: {name: 'antigravity:x'}\n"},
        {"values": {"model": {"model_name_or_path": "m"}, "objective": {"name": "antigravity:x"}}},
        {"yaml": "model_name_or_path: m\n", "overrides": ["finetuning_type=antigravity:x"]},
        {"yaml": "model_name_or_path: m\n", "overrides": ["--tuning.name=antigravity:x"]},
        {"yaml": "model_name_or_path: m\nstage: grpo\nrewards: [{name: 'antigravity:x'}]\n"},
        {"yaml": "model_name_or_path: m\nstage: grpo\nrewards: [exact]\nenvironment: 'x.py:y'\n"},
        {"yaml": "model_name_or_path: m\nallow_remote_code: true\n"},
    ],
)
def test_code_is_not_named_on_the_page(page: Page, asked: dict) -> None:
    sys.modules.pop("antigravity", None)
    found = look(page, **asked)
    assert [problem["code"] for problem in found["problems"]] == ["remote_code"]
    assert "antigravity" not in sys.modules


def test_code_that_the_command_line_allowed(tmp_path: Path) -> None:
    with asking(tmp_path, allow_remote_code=True) as page:
        assert look(page, yaml="model_name_or_path: m\nallow_remote_code: true\n")["ok"]


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("model", "model_name_or_path", "/etc"),
        ("model", "model_name_or_path", "~"),
        ("model", "adapter_name_or_path", ["../../x"]),
        ("data", "dataset", ["/etc/passwd"]),
        ("data", "eval_dataset", ["ok", "../x.jsonl"]),
        ("data", "tokenized_path", "/tmp/x"),
        ("train", "output_dir", "/tmp/x"),
        ("train", "offload_dir", "../x"),
        ("export", "export_dir", "/tmp/x"),
        ("serve", "api_keys", "/etc/shadow"),
        ("rollout", "reward_model", "/etc"),
        ("model", "new_special_tokens_config", "/etc/hosts"),
    ],
)
def test_paths_stay_below_the_folders(page: Page, section: str, key: str, value: Any) -> None:
    values: dict = {"model": {"model_name_or_path": "m"}}
    values.setdefault(section, {})[key] = value
    if section == "rollout":
        values["objective"] = {"name": "grpo"}
    found = look(page, values=values)
    outside = [p for p in found["problems"] if p["code"] == "path_outside"]
    assert [problem["field"] for problem in outside] == [f"{section}.{key}"]


def test_paths_below_the_folders_are_taken(page: Page, tmp_path: Path) -> None:
    (tmp_path / "data/x.jsonl").write_text("{}\n")
    (tmp_path / "models/m").mkdir()
    values = {
        "model": {"model_name_or_path": str(tmp_path / "models/m")},
        "data": {"dataset": ["x.jsonl", str(tmp_path / "data/x.jsonl")], "dataset_dir": str(tmp_path / "data")},
        "train": {"output_dir": str(tmp_path / "runs/new")},
    }
    assert look(page, values=values)["problems"] == []
    (tmp_path / "data/link.jsonl").symlink_to("/etc/passwd")
    values["data"]["dataset"] = [str(tmp_path / "data/link.jsonl")]
    assert [p["field"] for p in look(page, values=values)["problems"]] == ["data.dataset"]


def test_things_that_do_not_go_together(page: Page) -> None:
    found = look(page, values={"model": {"model_name_or_path": "m", "quantization": "nf4"}, "tuning": {"name": "full"}})
    assert "quantized weights are frozen" in found["problems"][0]["message"]
    assert found["values"]["tuning"] == {"name": "full"}, "the form keeps what was typed"


@pytest.mark.parametrize("objective", OBJECTIVES.names())
def test_presets_can_be_loaded(page: Page, objective: str) -> None:
    found = page.get("/presets", objective=objective)
    assert [preset["name"] for preset in found] == ["try", "balanced", "careful"]
    for preset in found:
        values = {**preset["values"], "objective": {"name": objective}}
        values["model"] = {"model_name_or_path": "m", **values.get("model", {})}
        if "rollout" in values:
            values["rollout"] = {**values["rollout"], "rewards": [{"name": "exact"}]}
        assert look(page, values=values)["problems"] == []
    chinese = page.get("/presets", objective=objective, language="zh")
    assert chinese[0]["about"] != found[0]["about"]
    assert [preset["values"] for preset in chinese] == [preset["values"] for preset in found]


def test_presets_know_the_memory(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    def balanced(gigabytes: float) -> dict:
        memory = type("Memory", (), {"total": int(gigabytes * 1e9)})
        monkeypatch.setattr("luthier.server.ui.presets.psutil.virtual_memory", lambda: memory)
        return page.get("/presets")[1]["values"]

    large, small = balanced(64), balanced(4)
    assert large["train"]["per_device_train_batch_size"] == 8
    assert "model" not in large
    assert small["model"] == {"quantization": "nf4"}
    assert small["train"]["gradient_checkpointing"]
    assert small["train"]["per_device_train_batch_size"] * small["train"]["gradient_accumulation_steps"] == 16
    assert page.get("/presets", 422, objective="nothing")["code"] == "config_unknown_name"
    assert page.get("/presets", 422, objective="os:system")["code"]


def test_estimate(page: Page, tmp_path: Path, tiny: Path, rows: Path) -> None:
    (tmp_path / "models/tiny").symlink_to(tiny)
    model = tmp_path / "models/own"
    import shutil

    shutil.copytree(tiny, model)
    shutil.copy(rows, tmp_path / "data/rows.jsonl")
    values = {
        "model": {"model_name_or_path": str(model), "threads": 1},
        "data": {"dataset": ["rows.jsonl"], "dataset_dir": str(tmp_path / "data")},
        "train": {"num_train_epochs": 2},
    }
    found = page.post("/estimate", {"values": values})
    assert found["fits"]
    assert (found["steps"], found["remedies"]) == (6, [])
    assert sum(part["bytes"] for part in found["parts"]) == found["peak_bytes"]
    assert found["seconds"] > 0
    assert found["disk_bytes"] > 0
    assert any("memory" in line for line in found["lines"])
    values["data"]["dataset"] = ["gone.jsonl"]
    assert page.post("/estimate", {"values": values}, 422)["code"] == "data_missing"
    values["model"]["model_name_or_path"] = str(tmp_path / "models/tiny")
    assert page.post("/estimate", {"values": values}, 422)["code"] == "path_outside"
