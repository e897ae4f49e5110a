"""README.md of an export: what the model is, what it was made from and how, and whether it was verified."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

import luthier
from luthier.config.load import adapter, dump
from luthier.config.schema import SECTIONS
from luthier.models.aliases import ALIASES
from luthier.models.load import find
from luthier.runs.store import is_run, read_status

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from luthier.config.schema import RunConfig
    from luthier.export.verify.report import Report

SHOWN_SECTIONS = ("objective", "tuning", "data", "train", "rollout")
_NOT_SHOWN = ("output_dir", "dataset_dir", "resume", "overwrite_output_dir", "plot_loss", "report_to", "logging_steps")
_PATHS = ("dataset", "eval_dataset", "reward_model", "reward_model_adapters", "critic_model", "rewards")
_RELATIONS = {
    "merged": "finetune",
    "adapter": "adapter",
    "gguf": "quantized",
    "gguf_adapter": "adapter",
    "ollama": "quantized",
}
_LIBRARIES = {"merged": "transformers", "adapter": "peft", "gguf": "gguf", "gguf_adapter": "gguf", "ollama": "gguf"}
_RESULTS = ("train_loss", "eval_")


def write_card(
    folder: Path,
    config: RunConfig,
    name: str,
    form: str,
    *,
    reports: Sequence[Report],
    notes: Sequence[str] = (),
) -> None:
    """Write README.md. `form`: the export format; `reports`: empty when nothing was verified."""
    base = public(find(config.model).public_base)
    run = Path(config.model.model_name_or_path).expanduser()
    run = run if is_run(run) else run.parent
    blocks = [
        _head(config, base, form),
        f"# {name}\n\n{_sentence(config, base, form)}",
        f"## Use\n\n{_USE[form].format(name=name, base=base)}",
    ]
    if is_run(run):
        blocks += [_training(config, run), _results(read_status(run))]
    blocks += [
        _verification(reports),
        "\n".join(f"- {note}" for note in notes) and "## Limits\n\n" + "\n".join(f"- {note}" for note in notes),
        f"Made with luthier {luthier.__version__}, torch {version('torch')}, transformers {version('transformers')}.",
    ]
    (folder / "README.md").write_text("\n\n".join(block for block in blocks if block) + "\n", encoding="utf-8")


def public(base: str) -> str:
    """Return a base model's name without folders of this machine.

    >>> public("/home/me/models/tiny"), public("org/model")
    ('tiny', 'org/model')
    """
    is_path = base.startswith(("/", "~", ".")) or base.count("/") > 1 or Path(base).exists()
    return Path(base).name if is_path else base


def _head(config: RunConfig, base: str, form: str) -> str:
    facts: dict[str, Any] = {
        "base_model": base,
        "base_model_relation": _RELATIONS[form],
        "library_name": _LIBRARIES[form],
        "pipeline_tag": "text-generation",
        "tags": ["luthier", dump(config)["objective"]["name"], dump(config)["tuning"]["name"]],
    }
    licence = next((alias.licence for alias in ALIASES.values() if alias.hub == base), None)
    if licence is not None:
        facts["license"] = licence.lower()
    return "---\n" + yaml.safe_dump(facts, sort_keys=False, allow_unicode=True) + "---"


def _sentence(config: RunConfig, base: str, form: str) -> str:
    stage, tuning = dump(config)["objective"]["name"], dump(config)["tuning"]["name"]
    made = f"{base} after {stage} with {tuning}"
    return f"{made}, {_WHAT[form]}."


_WHAT = {
    "merged": "as one model",
    "adapter": "as an adapter on top of it",
    "gguf": "for llama.cpp and programs that use it",
    "gguf_adapter": "as an adapter that llama.cpp puts on a GGUF file of it",
    "ollama": "for Ollama",
}
_USE = {
    "merged": '```python\nfrom transformers import pipeline\n\npipe = pipeline("text-generation", "PATH/TO/{name}")\n'
    'print(pipe([{{"role": "user", "content": "Hello"}}])[0]["generated_text"][-1]["content"])\n```',
    "adapter": "```python\nfrom peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n"
    'model = AutoModelForCausalLM.from_pretrained("{base}")\n'
    'model = PeftModel.from_pretrained(model, "PATH/TO/{name}")\n```',
    "gguf": "```\nllama-cli -m FILE.gguf --jinja\n```",
    "gguf_adapter": "```\nllama-cli -m BASE.gguf --lora FILE.gguf --jinja\n```",
    "ollama": "```\nollama create {name} -f Modelfile\nollama run {name}\n```",
}


def _training(config: RunConfig, run: Path) -> str:
    rows = [f"| {key} | {_shown(key, value)} |" for key, value in _chosen(config)]
    return "\n".join(["## Training", "", *_data(run), "| setting | value |", "|---|---|", *rows])


def _data(run: Path) -> list[str]:
    file = run / "audit.json"
    if not file.is_file():
        return []
    parts: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    lines = [
        f"- {_PARTS.get(part, part)}: {found['trained_rows']:,} rows, {found['tokens']:,} tokens, "
        f"{found['learned_tokens']:,} of them learned"
        for part, found in parts.items()
    ]
    return [*lines, ""]


_PARTS = {"train": "training data", "eval": "held-out data"}


def _chosen(config: RunConfig) -> list[tuple[str, Any]]:
    """Return the settings that differ from their defaults, by name; what was chosen by name always."""
    found: list[tuple[str, Any]] = []
    for section, values in dump(config).items():
        if section not in SHOWN_SECTIONS:
            continue
        kind = SECTIONS.get(section) or type(getattr(config, section))
        usual = adapter(kind).dump_python(kind(), mode="json")
        found += [
            (section if key == "name" else key, value)
            for key, value in values.items()
            if key not in _NOT_SHOWN and (key == "name" or value != usual.get(key))
        ]
    return found


def _shown(key: str, value: Any) -> str:
    if key in _PATHS:
        each = value if isinstance(value, list) else [value]
        return ", ".join(Path(str(v.get("name", v) if isinstance(v, dict) else v)).name for v in each)
    return str(value).replace("|", "\\|")


def _results(status: Mapping[str, Any]) -> str:
    rows = [
        f"| {key} | {value:.4g} |"
        for key, value in status.items()
        if key.startswith(_RESULTS) and isinstance(value, int | float)
    ]
    return "\n".join(["## Results", "", "| metric | value |", "|---|---|", *rows]) if rows else ""


def _verification(reports: Sequence[Report]) -> str:
    if not reports:
        return "## Verification\n\nThis export was **not verified** (`--no-verify`)."
    lines = ["## Verification", ""]
    for report in reports:
        lines += [f"{report.subject}:", "", "| | check | found | limit |", "|---|---|---|---|"]
        lines += [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in report.table()]
        lines.append("")
    return "\n".join(lines).rstrip()
