"""Scripts as users write them for other libraries; only the import line is ours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from datasets import Dataset

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

WORDS = ["tea", "stone", "river", "glass"]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripts write to where they run."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True, scope="module")
def _old_names() -> Generator[None]:
    """What importing a name of scripts changes in other libraries is undone for the tests that follow."""
    from luthier.facade import old_names

    yield
    old_names.deactivate()


@pytest.fixture(autouse=True)
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collect the lines that are said, each test anew."""
    from luthier.core import log

    lines: list[str] = []
    monkeypatch.setattr(log, "_said", set())
    tell = log.logger.handle
    monkeypatch.setattr(log.logger, "handle", lambda record: (lines.append(record.getMessage()), tell(record)))
    return lines


@pytest.fixture
def alpaca() -> Dataset:
    rows = [
        {"instruction": f"say {WORDS[i % 4]}", "input": "", "output": f"{WORDS[i % 4]} it is {i}"} for i in range(16)
    ]
    return Dataset.from_list(rows)


@pytest.fixture
def plain(tiny: Path) -> tuple[Any, Any]:
    """A model in float32 and its tokenizer."""
    from luthier import FastLanguageModel

    return FastLanguageModel.from_pretrained(str(tiny), max_seq_length=128, dtype="float32", load_in_4bit=False)


@pytest.fixture
def tuned(plain: tuple[Any, Any]) -> tuple[Any, Any]:
    """The same with an adapter that changes what it says."""
    import torch

    from luthier import FastLanguageModel

    model = FastLanguageModel.get_peft_model(plain[0], r=4, lora_alpha=8)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    return model, plain[1]
