"""Tokenized rows in a folder of the user's: written once, read by every later run (`tokenized_path`)."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.errors import DataError
from luthier.core.log import logger
from luthier.core.paths import write_whole
from luthier.data.audit import AuditReport
from luthier.data.prepare import prepare
from luthier.data.store import UnitStore

if TYPE_CHECKING:
    from luthier.data.prepare import Preparer

_FACTS = "{part}.json"
_ROWS = "{part}.safetensors"


def is_kept(folder: str | None, part: str) -> bool:
    """Tell whether the rows of `part` (train or eval) lie in a folder already."""
    return folder is not None and (Path(folder).expanduser() / _ROWS.format(part=part)).is_file()


def read_or_prepare(names: tuple[str, ...], preparer: Preparer, part: str) -> tuple[UnitStore, AuditReport]:
    """Return the tokenized rows of `part`, from `tokenized_path` where they are there, else kept there.

    The data sets themselves are not read again. Raises DataError when the rows were tokenized in another way.
    """
    if preparer.config.tokenized_path is None:
        return prepare(names, preparer)
    folder = Path(preparer.config.tokenized_path).expanduser()
    file, facts = folder / _ROWS.format(part=part), folder / _FACTS.format(part=part)
    made_by = _made_by(preparer)
    if file.is_file():
        _compare(facts, made_by)
        try:
            store, report = UnitStore.load(file)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{file} is damaged ({error}); remove {folder} to make it again") from error
        logger.info("%s rows are read from %s; the data sets are not looked at", part, file)
        return store, AuditReport.from_dict(report)
    store, report = prepare(names, preparer)
    if report.trained_rows and (not report.errors() or preparer.config.bad_rows == "skip"):
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(facts, json.dumps({**made_by, "dataset": names}, indent=1, ensure_ascii=False))
        store.save(file, report.as_dict())
        logger.info("%s rows are kept in %s", part, file)
    return store, report


def _made_by(preparer: Preparer) -> dict[str, Any]:
    template, config = preparer.template, preparer.config
    return {
        "rows": preparer.kind,
        "tokenizer": _hash(template.tokenizer.backend_tokenizer.to_str()),
        "chat template": _hash(template.tokenizer.chat_template or ""),
        "thinking": json.dumps(template.options, sort_keys=True),
        "default_system": template.default_system,
        "cutoff_len": config.cutoff_len,
        "too_long": config.too_long,
        "train_on_prompt": template.train_on_prompt,
        "mask_history": template.mask_history,
    }


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _compare(facts: Path, wanted: dict[str, Any]) -> None:
    try:
        there = json.loads(facts.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"tokenized_path: {facts} cannot be read: {error}; remove the folder to make it again"
        ) from error
    for name, value in wanted.items():
        if there.get(name) != value:
            raise DataError(
                f"tokenized_path: the rows in {facts.parent} were made with another {name} ({there.get(name)}, now "
                f"{value}); name another folder, or remove this one",
                code="data_kept",
            )
