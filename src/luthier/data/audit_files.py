"""What the last audit of a file found, kept in the cache folder: whoever ran it, the others see it, too."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.log import first_line, logger
from luthier.core.paths import cache_folder, write_whole

if TYPE_CHECKING:
    from luthier.data.audit import AuditReport

VERSION = 1


@dataclass(frozen=True, slots=True)
class KeptAudit:
    """A report, and what it was made of."""

    path: str
    bytes: int
    modified_ns: int
    """Of the file when its rows were read."""
    cutoff_len: int
    made: float
    """Seconds since the epoch."""
    report: dict[str, Any]
    """What AuditReport.as_dict returns."""

    def is_stale(self) -> bool:
        """Tell whether the file has changed since, or is gone."""
        return _facts(Path(self.path)) != (self.bytes, self.modified_ns)

    def level_of(self) -> dict[str, str]:
        """Return the level of each kind of finding."""
        return {finding["kind"]: finding["level"] for finding in self.report["findings"]}

    def badge(self) -> str:
        """Return the worst that was found: errors, warnings or good."""
        levels = set(self.level_of().values())
        if "error" in levels or not self.report["rows"]:
            return "errors"
        return "warnings" if "warning" in levels else "good"


def keep_audit(path: Path, report: AuditReport, cutoff_len: int) -> None:
    """Write down what an audit of the rows of one file found. A disk that takes nothing is said, and no more."""
    facts = _facts(path)
    if facts is None:
        return
    kept = KeptAudit(str(path.resolve()), *facts, cutoff_len, time.time(), report.as_dict())
    try:
        _file(path).parent.mkdir(parents=True, exist_ok=True)
        write_whole(_file(path), json.dumps({"version": VERSION, **asdict(kept)}, ensure_ascii=False))
    except OSError as error:
        logger.warning("the audit of %s is not kept: %s", path, first_line(error))


def kept_audit(path: Path) -> KeptAudit | None:
    """Return what the last audit of a file found; None where there was none."""
    try:
        plain = json.loads(_file(path).read_text(encoding="utf-8"))
        return KeptAudit(**plain) if plain.pop("version") == VERSION else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _facts(path: Path) -> tuple[int, int] | None:
    try:
        facts = path.stat()
    except OSError:
        return None
    return (facts.st_size, facts.st_mtime_ns) if path.is_file() else None


def _file(path: Path) -> Path:
    return cache_folder("audits", f"{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:32]}.json")
