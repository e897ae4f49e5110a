"""What other engines say to an adapter."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from luthier.config.load import load_config
from luthier.export.neighbours import vllm_notes
from luthier.workflows.export import export_model
from luthier.workflows.train import train

LORA = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"], "bias": "none"}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({}, None),
        ({"rank_pattern": {}, "modules_to_save": None}, None),
        ({"r": 64}, "--max-lora-rank 64"),
        ({"use_dora": True}, "no DoRA"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "no biases"),
        ({"alpha_pattern": {"q_proj": 4}}, "scale alike"),
        ({"peft_type": "IA3"}, "this one is IA3"),
    ],
)
def test_what_vllm_refuses(more: dict[str, Any], said: str | None) -> None:
    notes = vllm_notes({**LORA, **more})
    assert (not notes) if said is None else said in notes[0]


def test_an_adapter_is_laid_out_as_vllm_reads_it(tiny: Path, rows: Path, tmp_path: Path) -> None:
    """The names that it splits: base_model.model.<module>.lora_A|lora_B.weight, each module among its linear layers."""
    run = train(load_config({
        "model_name_or_path": str(tiny), "dataset": str(rows), "output_dir": str(tmp_path / "run"), "max_steps": 1,
        "lora_rank": 8,
    }).config).run  # fmt: skip
    settings = {"model_name_or_path": str(run), "export_format": "adapter", "export_dir": str(tmp_path / "out")}
    (done,) = export_model(load_config(settings).config)
    assert done.notes == []
    facts = json.loads((done.folder / "adapter_config.json").read_text(encoding="utf-8"))
    assert {"r", "lora_alpha", "target_modules"} <= facts.keys()
    with safe_open(done.folder / "adapter_model.safetensors", "pt") as file:
        for name in file.keys():  # noqa: SIM118  safe_open is no mapping
            module, half, last = name.removeprefix("base_model.model.").rsplit(".", 2)
            assert (half, last) in (("lora_A", "weight"), ("lora_B", "weight"))
            assert module.startswith("model.layers.")
            assert module.rsplit(".", 1)[1] in facts["target_modules"]
