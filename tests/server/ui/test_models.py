"""Models are looked at without loading one, and nothing outside the folders is."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from asking import Page, asking


@pytest.fixture
def page(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Page]:
    hub = tmp_path / "hub"
    monkeypatch.setenv("HF_HUB_CACHE", str(hub))
    snapshot = hub / "models--some--model" / "snapshots" / "abc"
    shutil.copytree(tiny, snapshot)
    (hub / "models--half--there" / "snapshots").mkdir(parents=True)
    with asking(tmp_path) as found:
        yield found


def listed(page: Page) -> dict[str, dict]:
    return {row["name"]: row for row in page.get("/models")["models"]}


def test_list(page: Page, tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny, tmp_path / "models/group/tiny")
    (tmp_path / "models/x.gguf").write_bytes(b"GGUF")
    found = listed(page)
    assert found["smollm2-135m"]["kind"] == "alias"
    row = found[str(tmp_path / "models/group/tiny")]
    assert (row["kind"], row["architecture"], row["safetensors"], row["problem"]) == ("folder", "llama", True, "")
    assert row["has_template"] is True
    assert row["fits"] is True
    assert found["some/model"]["kind"] == "cached"
    assert "half/there" not in found
    assert found[str(tmp_path / "models/x.gguf")]["architecture"] == "gguf"
    assert page.get("/models/look", name="some/model") == found["some/model"]
    assert page.get("/models/look", name=row["name"]) == row


def test_sizes_are_those_of_the_model(page: Page, tiny: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    shutil.copytree(tiny, tmp_path / "models/tiny")
    row = listed(page)[str(tmp_path / "models/tiny")]
    model = AutoModelForCausalLM.from_pretrained(tiny)
    assert row["parameters"] == sum(p.numel() for p in model.parameters())
    assert row["bytes"] == sum(f.stat().st_size for f in tiny.glob("*.safetensors"))


@pytest.mark.parametrize(
    ("remove", "write", "says"),
    [
        ("tokenizer*", {}, "no tokenizer"),
        ("*.safetensors", {}, "no weights"),
        ("*.safetensors", {"pytorch_model.bin": b"x"}, "pickled"),
        ("", {"model.safetensors": b"\xff" * 40}, "damaged"),
        ("", {"model.safetensors": b"\x02\0\0\0\0\0\0\0[]"}, "damaged"),
        ("", {"config.json": b"{"}, "model_type"),
        ("", {"model.safetensors.index.json": json.dumps({"weight_map": {"a": "gone.safetensors"}}).encode()}, "gone"),
    ],
)
def test_damage_is_told(page: Page, tiny: Path, tmp_path: Path, remove: str, write: dict, says: str) -> None:
    folder = tmp_path / "models/m"
    shutil.copytree(tiny, folder)
    for path in folder.glob(remove) if remove else []:
        path.unlink()
    for name, content in write.items():
        (folder / name).write_bytes(content)
    assert says in listed(page)[str(folder)]["problem"]


def test_what_lies_outside_is_not_looked_at(page: Page, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "models/link").symlink_to(tiny)
    assert str(tmp_path / "models/link") not in listed(page)
    assert page.get("/models/look", 403, name="/etc")["code"] == "path_outside"
    page.get("/models/look", 403, name="../../etc")
    page.get("/models/look", 403, name=str(tmp_path / "models/link"))
    page.get("/models/look", 404, name="not/known")
    page.get("/models/look", 404, name=str(tmp_path / "models/gone"))
    page.get("/models/look", 422, name="")
    for name in ("a\0b", "~root/x", "x" * 999):
        assert page.http.get("/api/models/look", params={"name": name}).status_code in (403, 404)


def test_runs_and_adapters(page: Page, tmp_path: Path) -> None:
    run = tmp_path / "runs/my-run"
    run.mkdir()
    for name, content in {
        "status.json": "{}", "config.yaml": "model: {model_name_or_path: base}\n", "events.jsonl": "",
        "adapter_config.json": json.dumps({"base_model_name_or_path": "some/base"}),
    }.items():  # fmt: skip
        (run / name).write_text(content)
    (run / "adapter_model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    row = listed(page)[str(run)]
    assert (row["kind"], row["about"], row["problem"], row["fits"]) == ("run", "adapter of some/base", "", None)
    assert page.get("/models/look", name="my-run") == row
