"""What the list of runs tells about one run: read from its files, each read again only as far as it has grown."""

from __future__ import annotations

import json
import math
import os
import re
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast

import yaml

from luthier.runs import notes
from luthier.runs.store import read_status

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import BinaryIO

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
READ = ("status.json", "config.yaml", notes.FILE, "events.jsonl")
"""Files that a row of the list comes from."""
_TRAIN = re.compile(rb'"kind": ?"train"')
_TRAIN_AS_WRITTEN = b'"kind": "train"'
_BLOCK_BYTES = 4 << 20
_LINES_BYTES = 16 << 10
"""So much is gone through line by line; of more, what holds nothing but steps is passed over."""
_STATES = frozenset({"starting", "running", "saving", "stopping", "stopped", "done", "failed", "crashed"})
NEVER = "never started"


def _no_points() -> dict[str, list[list[float]]]:
    return {}


@dataclass(slots=True)
class Reading:
    """How far events.jsonl has been read, and what was found so far."""

    inode: int = 0
    offset: int = 0
    step: int = 0
    loss: float | None = None
    """Of the last step; None after a step whose loss was no number."""
    seconds_before: float = 0.0
    """Spent by processes before the one that is read now."""
    mono: float = 0.0
    points: dict[str, list[list[float]]] = field(default_factory=_no_points)
    """Metric of evaluations -> [step, value]; those that a resumed run went back behind are taken out."""

    def read_on(self, path: Path) -> None:
        """Read what was written since; a file that was replaced or cut is read anew."""
        try:
            file = path.open("rb")
        except OSError:
            return
        with file:
            facts = os.fstat(file.fileno())
            if facts.st_ino != self.inode or facts.st_size < self.offset:
                self.__init__(inode=facts.st_ino)
            file.seek(self.offset)
            for lines in _whole_lines(file):
                self._take(lines)
                self.offset += len(lines)

    def _take(self, lines: bytes) -> None:
        """Go through whole lines: of steps behind each other only the last matters, and there may be a million."""
        if len(lines) <= _LINES_BYTES:
            self._take_each(lines)
        elif lines.count(_TRAIN_AS_WRITTEN) == lines.count(b"\n"):
            self._train(lines[lines.rfind(b"\n", 0, -1) + 1 :])
        else:
            middle = lines.find(b"\n", len(lines) // 2) + 1
            if middle == len(lines):
                middle = lines.rfind(b"\n", 0, len(lines) // 2) + 1
            if not middle:
                self._take_each(lines)
                return
            self._take(lines[:middle])
            self._take(lines[middle:])

    def _take_each(self, lines: bytes) -> None:
        last = b""
        for line in lines.split(b"\n")[:-1]:
            if _TRAIN.search(line, 0, 200):
                last = line
                continue
            self._train(last)
            self._other(_parsed(line))
            last = b""
        self._train(last)

    def _train(self, line: bytes) -> None:
        event = _parsed(line) if line else {}
        if event:
            self.step, self.loss = _whole(event.get("step")) or self.step, _number(event.get("loss"))
            self._clock(event)

    def _other(self, event: dict[str, Any]) -> None:
        if event.get("kind") == "begin":
            after = _whole(event.get("after")) or 0
            self.points = {name: [p for p in found if p[0] <= after] for name, found in self.points.items()}
        if event.get("kind") == "eval" and isinstance(event.get("step"), int):
            for name, value in event.items():
                number = _number(value)
                if name.startswith("eval_") and number is not None:
                    points = [p for p in self.points.get(name, []) if p[0] != event["step"]]
                    self.points[name] = [*points, [float(event["step"]), number]]
        self._clock(event)

    def _clock(self, event: dict[str, Any]) -> None:
        mono = _number(event.get("mono"))
        if mono is None:
            return
        if mono < self.mono or event.get("kind") == "begin":
            self.seconds_before += self.mono
        self.mono = mono

    def best(self, asked: str | None, *, rises: bool | None) -> tuple[str | None, float | None]:
        """Return the name and the best value of the metric that tells the best checkpoint."""
        wanted = [asked, f"eval_{asked}"] if asked else ["eval_reward", "eval_loss"]
        name = next((each for each in wanted if self.points.get(each or "")), None)
        if name is None:
            return None, None
        values = [value for _, value in self.points[name]]
        rising = not name.endswith("loss") if rises is None else rises
        return name, max(values) if rising else min(values)


@dataclass(frozen=True, slots=True)
class Settings:
    """What a row tells about the settings of a run."""

    objective: str = ""
    tuning: str = ""
    model: str = ""
    data: tuple[str, ...] = ()
    best_metric: str | None = None
    rises: bool | None = None
    lines: str = "\n"
    """section.key:value, a line each, in small letters; the whole begins and ends with a line break."""


def read_settings(path: Path) -> Settings:
    """Return the settings in a file; none of them where it is missing or damaged."""
    try:
        plain: Any = yaml.load(path.read_text(encoding="utf-8"), Loader=_LOADER)
    except (OSError, ValueError, yaml.YAMLError):
        return Settings()
    nested = cast("dict[str, Any]", plain) if isinstance(plain, dict) else {}

    def of(section: str, key: str, flat: str = "") -> Any:
        found: Any = nested.get(section)
        there = cast("dict[str, Any]", found) if isinstance(found, dict) else {}
        return there.get(key, nested.get(flat or key, found if key == "name" and isinstance(found, str) else None))

    objective, tuning = of("objective", "name", "stage"), of("tuning", "name", "finetuning_type")
    data = of("data", "dataset")
    names = data.split(",") if isinstance(data, str) else cast("list[Any]", data) if isinstance(data, list) else []
    rises = of("train", "greater_is_better")
    return Settings(
        str(objective or "sft"),
        str(tuning or "lora"),
        str(of("model", "model_name_or_path") or ""),
        tuple(str(each).strip() for each in names),
        of("train", "metric_for_best_model"),
        rises if isinstance(rises, bool) else None,
        "\n" + "".join(f"{line}\n" for line in _lines(nested)),
    )


def _lines(nested: dict[str, Any]) -> list[str]:
    found: list[str] = []
    for section, values in nested.items():
        pairs = cast("dict[str, Any]", values) if isinstance(values, dict) else {"": values}
        for key, value in pairs.items():
            each: list[Any] = cast("list[Any]", value) if isinstance(value, list) else [value]
            dotted = f"{section}.{key}" if key else f".{section}"
            found += [f"{dotted}:{spelled(one)}" for one in each]
    return found


def spelled(value: object) -> str:
    """Return a value as it is searched for: numbers alike however they were written.

    >>> spelled("1e-4"), spelled(0.0001), spelled(True), spelled("16"), spelled("Qwen")
    ('0.0001', '0.0001', 'true', '16', 'qwen')
    """
    text = str(value).strip().casefold()
    try:
        number = float(text)
    except ValueError:
        return text
    return str(int(number)) if number == int(number) else repr(number) if math.isfinite(number) else text


@dataclass(slots=True)
class Row:
    """One line of the list of runs; the fields are those of the page's interface."""

    id: str
    name: str
    state: str
    objective: str
    tuning: str
    model: str
    data: list[str]
    step: int
    total: int | None
    loss: float | None
    best: float | None
    best_metric: str | None
    seconds: float | None
    bytes: int | None
    created: float
    updated: float
    tags: list[str]
    pinned: bool
    archived: bool
    notes: str


def read_row(run: Path, settings: Settings, reading: Reading) -> Row:
    """Return the line of a run; `reading` goes on from where it was. A damaged file leaves its part empty."""
    status, said = read_status(run), notes.read(run)
    reading.read_on(run / "events.jsonl")
    metric, best = reading.best(settings.best_metric, rises=settings.rises)
    state = str(status.get("state") or NEVER)
    files = [path.stat().st_mtime for each in READ if (path := run / each).exists()]
    spent = reading.seconds_before + reading.mono
    return Row(
        id=run.name,
        name=said.name or str(status.get("name") or run.name),
        state=state if state in _STATES or state == NEVER else "running",
        objective=settings.objective, tuning=settings.tuning, model=settings.model, data=list(settings.data),
        step=_whole(status.get("step")) or reading.step, total=_whole(status.get("total")), loss=reading.loss,
        best=best, best_metric=metric, seconds=max(spent, _number(status.get("seconds")) or 0.0) if status else None,
        bytes=None,
        created=_moment(status.get("started")) or min(files, default=0.0),
        updated=_moment(status.get("updated")) or max(files, default=0.0),
        tags=list(said.tags), pinned=said.pinned, archived=said.archived, notes=said.notes,
    )  # fmt: skip


def _whole_lines(file: BinaryIO) -> Iterator[bytes]:
    """Yield what follows in pieces that end with a line; half a line at the end is left out."""
    rest = b""
    while data := file.read(_BLOCK_BYTES):
        end = data.rfind(b"\n") + 1
        if end:
            yield rest + data[:end]
            rest = data[end:]
        else:
            rest += data


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        found: Any = json.loads(line.decode("utf-8", "replace").strip("\0"))
    except (ValueError, RecursionError):
        return {}
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}


def _number(value: object) -> float | None:
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(cast("float", value)) if good else None


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _moment(text: object) -> float | None:
    try:
        return datetime.fromisoformat(str(text)).timestamp() if text else None
    except ValueError:
        return None
