"""`luthier export`: every format of a run, what is refused, and that nothing is left behind when it fails."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from bars import listen, shares
from helpers import Jobs, make_folder
from safetensors.torch import load_file, save_file
from tunings import CASES, fresh, logits, stir, stirred

from luthier.config.load import load_config
from luthier.core.errors import ConfigError, ExportError, LuthierError, ModelError, RunError
from luthier.models.adapters import load_adapter, save_trained
from luthier.tuning.lora import Lora
from luthier.workflows.export import export_model, verify_only
from luthier.workflows.train import train

GGUF = [pytest.importorskip("xllamacpp"), pytest.importorskip("cyllama")]


TENSORS = 20
"""Of a tiny Llama, at least."""


def config_of(**given: Any) -> Any:
    return load_config(given).config


@pytest.fixture(scope="module")
def run(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished LoRA run on a tiny Llama that says bytes only: with <|endoftext|> llama.cpp ends any answer."""
    base = make_folder("llama", tmp_path_factory.mktemp("base"))
    tensors = load_file(base / "model.safetensors")
    tensors["lm_head.weight"][256:] = 0.0
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    folder = tmp_path_factory.mktemp("runs") / "tickets"
    settings = {"model_name_or_path": str(base), "dataset": str(rows), "output_dir": str(folder), "max_steps": 4,
                "learning_rate": 1e-2, "lora_rank": 4, "cutoff_len": 128, "plot_loss": False}  # fmt: skip
    train(load_config(settings).config, quiet=True)
    return folder


@pytest.fixture
def adapter(tiny: Path, tmp_path: Path) -> Path:
    save_trained(stirred("lora", tiny), tmp_path / "adapter", str(tiny))
    return tmp_path / "adapter"


def names(report: Any) -> dict[str, bool | None]:
    return {check.name: check.passed for check in report.checks}


@pytest.mark.slow
def test_everything_that_a_run_has(run: Path, tmp_path: Path) -> None:
    done = export_model(load_config(run / "config.yaml", [
        f"model.model_name_or_path={run}", "export_format=all", f"export_dir={tmp_path / 'out'}",
        "export_quantize=[f16,q8_0]",
    ]).config)  # fmt: skip
    assert [each.format for each in done] == ["merged", "adapter", "gguf", "gguf_adapter", "ollama"]
    for each in done:
        assert each.folder == tmp_path / "out" / each.format
        assert each.reports, each.format
        assert not [c for r in each.reports for c in r.checks if c.passed is False], each.format
        written = json.loads((each.folder / "verify.json").read_text())
        assert [report["subject"] for report in written] == [report.subject for report in each.reports]
        card = (each.folder / "README.md").read_text()
        assert card.startswith("---\nbase_model: ")
        assert "## Verification" in card
        for path in (run, tmp_path):
            assert str(path) not in card, "a card must not name folders of this machine"
    assert sorted(p.name for p in done[2].folder.glob("*.gguf")) == ["tickets-F16.gguf", "tickets-Q8_0.gguf"]
    assert (done[4].folder / "Modelfile").read_text().splitlines()
    leftover = [p.name for p in (tmp_path / "out").iterdir()]
    assert sorted(leftover) == ["adapter", "gguf", "gguf_adapter", "merged", "ollama"]


@pytest.mark.parametrize("form", ["merged", "gguf"])
def test_the_bar_moves_with_the_tensors_and_the_checks(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    told = listen(monkeypatch)
    settings = [f"model.model_name_or_path={run}", f"export_format={form}", f"export_dir={tmp_path / 'out'}",
                "export_quantize=[f16,q8_0]"]  # fmt: skip
    (done,) = export_model(load_config(run / "config.yaml", settings).config)
    told = [each for each in told if each[1]]
    assert [share for share, _ in told] == sorted(share for share, _ in told), "it goes back"
    written, read = shares(told, f"writing {form} files"), shares(told, f"reading {form} back")
    assert len(written) >= TENSORS
    assert len(read) >= TENSORS + 4, "each tensor that is read back, and checks beside"
    assert (written[0], read[0]) == (0.0, 0.5)
    assert written[-1] > 0.45
    assert read[-1] >= 0.9
    assert not done.reports[0].failed


def test_the_card_says_what_was_done(run: Path, tmp_path: Path) -> None:
    told = [f"model.model_name_or_path={run}", f"export_dir={tmp_path / 'out'}", "export_verify=false"]
    (done,) = export_model(load_config(run / "config.yaml", told).config)
    card = (done.folder / "README.md").read_text()
    for words in ("**not verified** (`--no-verify`)", "| lora_rank | 4 |", "| learning_rate | 0.01 |", "24 rows",
                  "| dataset | rows.jsonl |", "train_loss", "library_name: transformers"):  # fmt: skip
        assert words.replace("lora_rank", "rank") in card or words in card, words
    assert not (done.folder / "verify.json").exists()


def test_a_merged_model_is_verified_and_right(adapter: Path, tiny: Path, tmp_path: Path) -> None:
    config = config_of(model_name_or_path=str(adapter), export_dir=str(tmp_path / "out"), export_dtype="float32")
    (done,) = export_model(config)
    (report,) = done.reports
    assert not report.failed
    assert all(passed for passed in names(report).values()), names(report)
    expected = logits(load_adapter(fresh(tiny), adapter, trainable=False))
    torch.testing.assert_close(logits(fresh(tmp_path / "out")), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_merge_that_was_forgotten_is_found(
    adapter: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base is written in place of the merged model: the export must fail, and say so in its name."""
    from luthier.export import merge

    real = merge.write_source

    def forgets(source: Any, folder: Path, **options: Any) -> None:
        from luthier.export.source import folder_source

        real(folder_source(tiny), folder, **options)

    monkeypatch.setattr(merge, "write_source", forgets)
    with pytest.raises(ExportError, match=r"not what it should be.*out\.unverified") as caught:
        export_model(config_of(model_name_or_path=str(adapter), export_dir=str(tmp_path / "out")))
    assert caught.value.exit_code == 1
    assert not (tmp_path / "out").exists()
    kept = tmp_path / "out.unverified"
    assert json.loads((kept / "verify.json").read_text())[0]["failed"] is True
    with pytest.raises(ExportError, match=r"out\.unverified-2"):
        export_model(config_of(model_name_or_path=str(adapter), export_dir=str(tmp_path / "out")))


@pytest.mark.slow
def test_a_bad_file_keeps_its_good_neighbours(
    adapter: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two GGUF files one is made from the base: it alone is called unverified."""
    from luthier.export.source import folder_source
    from luthier.workflows import export_forms

    real = export_forms.write_gguf

    def forgets(source: Any, out: Path, *, form: str) -> Path:
        return real(folder_source(tiny, name=source.name) if form == "q8_0" else source, out, form=form)

    monkeypatch.setattr(export_forms, "write_gguf", forgets)
    with pytest.raises(ExportError, match="adapter-Q8_0.gguf: "):
        export_model(config_of(model_name_or_path=str(adapter), export_dir=str(tmp_path / "out"),
                               export_format="gguf", export_quantize=["f16", "q8_0"]))  # fmt: skip
    found = sorted(p.name for p in (tmp_path / "out").glob("*.gguf*"))
    assert found == ["adapter-F16.gguf", "adapter-Q8_0.gguf.unverified"]


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"export_dir": None}, RunError, "export_dir is required where the model is no run directory"),
        ({"export_format": "gguf", "export_quantize": ["q9_0"]}, ConfigError, "q9_0.*q8_0"),
        ({"export_format": "gguf", "export_quantize": []}, ConfigError, "export_quantize is empty; it may name: f32"),
        ({"model_name_or_path": "{base}", "export_format": "adapter"}, ModelError, "has no adapter; use export_format"),
    ],
)
def test_refused_before_anything_is_written(
    given: dict[str, Any], error: type[LuthierError], message: str, adapter: Path, tiny: Path, tmp_path: Path
) -> None:
    given = {key: value.format(base=tiny) if isinstance(value, str) else value for key, value in given.items()}
    told = {"model_name_or_path": str(adapter), "export_dir": str(tmp_path / "new" / "out"), **given}
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(error, match=message):
        export_model(config_of(**{k: v for k, v in told.items() if v is not None}))
    assert sorted(tmp_path.rglob("*")) == before


def test_a_family_without_a_mapping_offers_merged(tmp_path: Path) -> None:
    base = make_folder("cohere", tmp_path / "base")
    told = {"model_name_or_path": str(base), "export_dir": str(tmp_path / "out")}
    with pytest.raises(ModelError, match="cohere.*export_format: merged"):
        export_model(config_of(**told, export_format="gguf"))
    done = export_model(config_of(**told, export_format="all"))
    assert [each.format for each in done] == ["merged"]


def test_other_adapters_than_lora_are_not_for_llama_cpp(tiny: Path, tmp_path: Path) -> None:
    save_trained(stirred("ia3", tiny), tmp_path / "adapter", str(tiny))
    told = {"model_name_or_path": str(tmp_path / "adapter"), "export_dir": str(tmp_path / "out")}
    with pytest.raises(ModelError, match="it is of kind IA3; GGUF adapters are LoRA. Merge it first"):
        export_model(config_of(**told, export_format="gguf_adapter"))


def test_a_folder_with_files_is_left_alone(adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(RunError, match="is not empty; choose another folder"):
        export_model(config_of(model_name_or_path=str(adapter), export_dir=str(tmp_path / "out")))
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"


def test_an_adapter_whose_base_is_gone(adapter: Path, tmp_path: Path) -> None:
    file = adapter / "adapter_config.json"
    facts = json.loads(file.read_text())
    file.write_text(json.dumps({**facts, "base_model_name_or_path": str(tmp_path / "gone")}))
    with pytest.raises(ModelError, match="gone"):
        export_model(config_of(model_name_or_path=str(adapter), export_dir=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_a_run_that_is_not_finished(run: Path, tmp_path: Path) -> None:
    empty = tmp_path / "half"
    empty.mkdir()
    for name in ("config.yaml", "status.json"):
        (empty / name).write_text((run / name).read_text())
    with pytest.raises(ModelError, match="has neither final weights nor a checkpoint yet"):
        export_model(config_of(model_name_or_path=str(empty), export_dir=str(tmp_path / "out")))


@pytest.mark.parametrize("fault", ["disk_full", "sigint", "sigterm"])
def test_nothing_is_left_when_it_breaks_off(fault: str, adapter: Path, tmp_path: Path, jobs: Jobs) -> None:
    result = jobs.run("export", adapter, "--out", "new/out", cwd=tmp_path,
                      LUTHIER_TESTING="1", LUTHIER_FAULT=f"export.tensor:{fault}:3")  # fmt: skip
    assert result.code == {"disk_full": 1, "sigint": 130, "sigterm": 143}[fault]
    assert "Traceback" not in result.err
    assert not (tmp_path / "new").exists()
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".tmp"] == []
    again = jobs.run("export", adapter, "--out", "new/out", "--no-verify", cwd=tmp_path)
    assert again.code == 0, again.err


def test_the_command_shows_a_table_and_json(adapter: Path, tmp_path: Path, jobs: Jobs) -> None:
    shown = jobs.run("export", adapter, "--out", "out", cwd=tmp_path)
    assert shown.code == 0, shown.err
    assert shown.out.startswith("out: verified\n")
    assert shown.out.splitlines()[-1] == "out"
    said = jobs.run("export", adapter, "--out", "second", "--dtype", "bfloat16", "--json", cwd=tmp_path).last_json
    assert said["folder"] == "second"
    assert "model.safetensors" in said["exports"][0]["files"]
    assert next(iter(load_file(tmp_path / "second" / "model.safetensors").values())).dtype == torch.bfloat16
    swapped = jobs.run("export", "export_dtype=float32", cwd=tmp_path)
    assert (swapped.code, "the model comes first" in swapped.err) == (2, True)


def test_verify_only(adapter: Path, tmp_path: Path, jobs: Jobs) -> None:
    config = config_of(model_name_or_path=str(adapter), export_dir=str(tmp_path / "out"), export_format="gguf",
                       export_quantize=["f16"], export_verify=False)  # fmt: skip
    (done,) = export_model(config)
    file = done.folder / "adapter-F16.gguf"
    against = verify_only(file, config_of(model_name_or_path=str(adapter)))
    assert not against.failed
    alone = jobs.run("export", "--verify-only", file, "--json", cwd=tmp_path)
    assert alone.code == 0, alone.err
    assert alone.last_json["failed"] is False
    data = bytearray(file.read_bytes())
    file.write_bytes(data[: len(data) // 2])
    broken = jobs.run("export", "--verify-only", file, cwd=tmp_path)
    assert broken.code == 1
    assert "NOT as it should be" in broken.out
    missing = jobs.run("export", "--verify-only", "nothing.gguf", cwd=tmp_path)
    assert (missing.code, "nothing.gguf is not there" in missing.err) == (2, True)
    assert not list(tmp_path.glob("*.tmp"))


def test_a_whole_merge_goes_into_gguf_too(tmp_path: Path) -> None:
    """An adapter on a tied embedding cannot be merged layer by layer; the file is that of the merged model all the same."""
    base = make_folder("llama_tied", tmp_path / "base")
    model = stir(Lora(rank=2, modules_to_save=("embed_tokens",)).apply(fresh(base)))
    save_trained(model, tmp_path / "adapter", str(base))
    told = {"model_name_or_path": str(tmp_path / "adapter"), "export_dir": str(tmp_path / "out")}
    (done,) = export_model(config_of(**told, export_format="gguf", export_quantize=["f32"]))
    assert not done.reports[0].failed
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".tmp"] == []


def test_weights_that_are_no_numbers(adapter: Path, tmp_path: Path) -> None:
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors[next(iter(tensors))][0, 0] = float("nan")
    save_file(tensors, file)
    with pytest.raises(ModelError, match="is not finite"):
        export_model(config_of(model_name_or_path=str(adapter), export_dir=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_cases_are_there() -> None:
    assert {"lora", "ia3"} <= CASES.keys()
