"""Multiple-choice benchmarks from files, as MMLU, CMMLU and C-Eval lay them out, or as JSON lines.

MMLU (arXiv:2009.03300) has no header: question, the choices, the letter. CMMLU (arXiv:2306.09212) and C-Eval
(arXiv:2305.08322) name their columns. A folder has dev (questions with answers to show), val and test, in each a file
by subject, with or without _dev, _val or _test behind its name.
"""

from __future__ import annotations

import csv
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.errors import ConfigError, DataError
from luthier.core.log import printable
from luthier.core.registry import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterator

LETTERS = "ABCDEFGHIJ"
_SPLITS = {"test": "test", "validation": "val", "val": "val", "train": "dev", "dev": "dev"}
_SUFFIX = re.compile(r"_(dev|val|test)$")
_SUFFIXES = (".csv", ".jsonl", ".json")


@dataclass(frozen=True, slots=True)
class Question:
    """One question; `answer` is the place of the right choice."""

    text: str
    choices: tuple[str, ...]
    answer: int
    subject: str
    where: str
    """file:line."""


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Questions by subject, and answered ones to show in front of them."""

    name: str
    asked: dict[str, list[Question]]
    shots: dict[str, list[Question]]
    categories: dict[str, str]
    """Subject -> category, where a mapping.json beside the splits says so."""
    titles: dict[str, str]
    """Subject -> what it is called in a prompt."""

    @property
    def is_chinese(self) -> bool:
        """Tell whether most questions are Chinese."""
        texts = [question.text for questions in self.asked.values() for question in questions]
        return sum(bool(re.search(r"[\u4e00-\u9fff]", text)) for text in texts) * 2 > len(texts)


def read_benchmark(task: str, folder: str, num_shots: int) -> Benchmark:
    """Return a benchmark by folder, file or name (mmlu_test: the test split of `folder`/mmlu).

    Raises ConfigError when there is none, DataError naming file, row and column for what cannot be read.
    """
    path, split = _place(task, Path(folder).expanduser())
    if path.is_file():
        questions = list(_questions(path, _subject_of(path)))
        _need_answers(questions, path)
        return Benchmark(path.stem, {_subject_of(path): questions}, {}, {}, {})
    asked = _split(path, split)
    shots = _split(path, "dev") if num_shots and split != "dev" else {}
    if missing := sorted(asked.keys() - shots.keys()) if num_shots else []:
        raise DataError(
            f"{path}: n_shot {num_shots} needs answered questions, and {missing[0]} has none in dev; set n_shot: 0",
            code="data_missing",
        )
    facts = _mapping(path)
    return Benchmark(
        path.name,
        asked,
        {subject: questions[:num_shots] for subject, questions in shots.items()},
        {subject: str(fact["category"]) for subject, fact in facts.items() if "category" in fact},
        {subject: str(fact["name"]) for subject, fact in facts.items() if "name" in fact},
    )


def _place(task: str, folder: Path) -> tuple[Path, str]:
    path = Path(task).expanduser()
    if path.exists():
        return path, _usual_split(path)
    name, _, split = task.rpartition("_")
    if name and split in _SPLITS and (folder / name).is_dir():
        return folder / name, _SPLITS[split]
    if (folder / task).exists():
        return folder / task, _usual_split(folder / task)
    there = sorted(each.name for each in folder.iterdir()) if folder.is_dir() else []
    raise ConfigError(
        f"task {printable(task)} is neither a file nor a folder, and {folder} has no such benchmark"
        f"{did_you_mean(name or task, there)}",
        code="data_missing",
    )


def _usual_split(path: Path) -> str:
    """Return test, or val where test is missing or its answers are kept secret."""
    files = _files(path / "test")
    known = files and any(question.answer >= 0 for question in _questions(files[0], ""))
    return "test" if path.is_file() or known or not (path / "val").is_dir() else "val"


def _split(path: Path, split: str) -> dict[str, list[Question]]:
    files = _files(path / split)
    if not files:
        raise DataError(f"{path} has no folder {split} with csv or jsonl files", code="data_missing")
    found = {_subject_of(file): list(_questions(file, _subject_of(file))) for file in files}
    for file in files:
        _need_answers(found[_subject_of(file)], file)
    return found


def _need_answers(questions: list[Question], file: Path) -> None:
    if not questions:
        raise DataError(f"{file} has no questions", code="data_empty")
    if (unknown := next((q for q in questions if q.answer < 0), None)) is not None:
        raise DataError(f"{unknown.where} [answer] is empty; take the val split", code="data_bad_row")


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix in _SUFFIXES) if folder.is_dir() else []


def _subject_of(file: Path) -> str:
    return _SUFFIX.sub("", file.stem)


def _mapping(path: Path) -> dict[str, dict[str, Any]]:
    file = path / "mapping.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


# ---- rows


def _questions(file: Path, subject: str) -> Iterator[Question]:
    for line, row in _csv_rows(file) if file.suffix == ".csv" else _json_rows(file):
        yield _question(row, subject, f"{file}:{line}")


def _csv_rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with file.open(encoding="utf-8-sig", newline="") as opened:
        reader = csv.reader(opened)
        header: list[str] | None = None
        for row in reader:
            if not any(cell.strip() for cell in row):
                continue
            if header is None:
                small = [cell.strip().lower() for cell in row]
                if {"question", "answer"} <= set(small) or {"question", "a", "b"} <= set(small):
                    header = small
                    continue
                header = ["question", *LETTERS[: max(0, len(row) - 2)].lower(), "answer"]
            yield reader.line_num, dict(zip(header, row, strict=False))


def _json_rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".json":
        yield from enumerate(json.loads(text), 1)
        return
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{file}:{number} is no JSON: {error}", code="data_bad_row") from error
        if not isinstance(row, dict):
            raise DataError(f"{file}:{number} is no JSON object", code="data_bad_row")
        yield number, {str(key).lower() if len(str(key)) == 1 else key: value for key, value in row.items()}


def _question(row: dict[str, Any], subject: str, where: str) -> Question:
    text = str(row.get("question") or "").strip()
    if not text:
        raise DataError(f"{where} [question] is missing or empty; found columns {', '.join(row)}", code="data_bad_row")
    if "choices" in row:
        choices = tuple(str(each) for each in row["choices"])
    else:
        letters = [letter for letter in LETTERS.lower() if row.get(letter) not in (None, "")]
        choices = tuple(str(row[letter]).strip() for letter in letters)
    if not 2 <= len(choices) <= len(LETTERS):
        raise DataError(
            f"{where} [choices] or [A], [B], …: expected 2 to {len(LETTERS)} choices, found {len(choices)}",
            code="data_bad_row",
        )
    return Question(text, choices, _answer(row, choices, where), str(row.get("subject") or subject), where)


def _answer(row: dict[str, Any], choices: tuple[str, ...], where: str) -> int:
    """Return the place of the right choice; -1 where the column is there and empty."""
    if "answer" not in row:
        raise DataError(f"{where} [answer] is missing; found columns {', '.join(row)}", code="data_bad_row")
    given = row["answer"]
    if isinstance(given, str) and not given.strip():
        return -1
    letter = str(given).strip().upper()
    place = given if isinstance(given, int) else LETTERS.find(letter) if len(letter) == 1 else -1
    if not 0 <= place < len(choices):
        known = ", ".join(LETTERS[: len(choices)])
        raise DataError(f"{where} [answer] is {printable(given)}; expected one of {known}", code="data_bad_row")
    return place
