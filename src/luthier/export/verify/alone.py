"""Verify a file or folder of which there is no source: everything that it can be asked itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from luthier.core.errors import ModelError
from luthier.core.types import Sampling
from luthier.export.verify.folders import prompts_of
from luthier.export.verify.gguf_files import verify_gguf_alone
from luthier.export.verify.report import Check, Report, guarded, not_done
from luthier.export.verify.shards import check_files
from luthier.export.verify.torture import torture
from luthier.models.adapters import is_adapter
from luthier.models.reward_files import is_reward_folder

if TYPE_CHECKING:
    from pathlib import Path

    from luthier.export.source import Weight

_NEEDS_SOURCE = "needs the model that it was made from"


def verify_file(path: Path) -> Report:
    """Look at a GGUF file, a model folder or an adapter folder. Raises ModelError for anything else."""
    if path.is_file():
        return verify_gguf_alone(path)
    packed = sorted(path.glob("*.gguf"))
    if packed and not (path / "config.json").is_file():
        reports = [verify_gguf_alone(file) for file in packed]
        return reports[0] if len(reports) == 1 else _joined(path.name, reports)
    if not is_adapter(path) and not (path / "config.json").is_file():
        raise ModelError(
            f"{path} is neither a GGUF file nor a folder with config.json, adapter_config.json or GGUF files; "
            "name a file or folder that luthier export wrote",
            code="model_missing",
        )
    return _adapter(path) if is_adapter(path) else _folder(path)


def _joined(name: str, reports: list[Report]) -> Report:
    """Return the checks of several files as one report, each named with its file."""
    return Report(
        name,
        tuple(
            Check(f"{report.subject}: {check.name}", check.passed, check.found, check.limit, check.numbers)
            for report in reports
            for check in report.checks
        ),
    )


def _adapter(folder: Path) -> Report:
    files, weights = check_files(folder, "adapter_model")
    finite = guarded("weights", "", lambda: _check_finite(weights))
    rest = [not_done(name, _NEEDS_SOURCE) for name in ("settings", "opens in peft")]
    return Report(folder.name, (files, finite, *rest))


def _folder(folder: Path) -> Report:
    files, weights = check_files(folder)
    checks = [files, guarded("weights", "", lambda: _check_finite(weights))]
    checks.append(guarded("tokenizer", "", lambda: _check_tokenizer(folder)))
    if not files.passed:
        checks.append(not_done("reload", "the files are damaged"))
    elif is_reward_folder(folder):
        checks.append(not_done("reload", "a reward model answers nothing"))
    else:
        checks.append(guarded("reload", "", lambda: _check_answers(folder)))
    checks += [not_done(name, _NEEDS_SOURCE) for name in ("config", "generation config")]
    return Report(folder.name, tuple(checks))


def _check_finite(weights: dict[str, Weight]) -> Check:
    limit = "every number finite"
    bad = [name for name, weight in weights.items() if not bool(torch.isfinite(weight.read().float()).all())]
    found = f"{bad[0]} has numbers that are not finite" if bad else f"{len(weights)} tensors are finite"
    return Check("weights", bool(weights) and not bad, found, limit, {"non_finite": len(bad)})


def _check_tokenizer(folder: Path) -> Check:
    from transformers import AutoTokenizer

    limit = "it loads; what it splits and joins twice stays the same"
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    texts = [text for text in torture(tokenizer) if len(text) < 1000]
    once = tokenizer.batch_decode(tokenizer(texts, add_special_tokens=False)["input_ids"])
    twice = tokenizer.batch_decode(tokenizer(once, add_special_tokens=False)["input_ids"])
    other = sum(a.strip() != b.strip() for a, b in zip(once, twice, strict=True))
    found = f"{len(texts)} texts, {other} change when they are split and joined again"
    return Check("tokenizer", other == 0, found, limit, {"texts": len(texts), "differ": other})


def _check_answers(folder: Path) -> Check:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    from luthier.engines.hf import HfEngine

    limit = "plain transformers loads it, every weight finds its place, logits are finite, it answers"
    disable_progress_bar()
    options: dict[str, Any] = {"dtype": torch.float32, "output_loading_info": True}
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, **options)
    model, info = loaded
    lost = sorted({*info["missing_keys"], *info["unexpected_keys"]})
    if lost:
        return Check("reload", False, f"{len(lost)} weights do not find their place, the first is {lost[0]}", limit)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    prompts = prompts_of(tokenizer, model.config.get_text_config().vocab_size)
    with torch.inference_mode():
        logits = model.eval()(input_ids=torch.tensor([prompts[0]])).logits
    if not bool(torch.isfinite(logits).all()):
        return Check("reload", False, "logits are not finite", limit)
    answers = HfEngine(model, tokenizer).generate(prompts[:4], Sampling(max_new_tokens=16))
    said = sum(bool(each[0].tokens) for each in answers)
    return Check("reload", said == len(answers), f"{said} of {len(answers)} prompts answered", limit)
