"""Multiple-choice benchmarks from files, as MMLU, CMMLU and C-Eval lay them out, or as JSON lines or parquet.

MMLU (arXiv:2009.03300) has no header: question, the choices, the letter. CMMLU (arXiv:2306.09212) and C-Eval
(arXiv:2305.08322) name their columns. A folder has dev (questions with answers to show), val and test, in each a file
by subject, with or without _dev, _val or _test behind its name.
"""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.errors import ConfigError, DataError
from luthier.core.log import first_line, printable
from luthier.core.registry import did_you_mean
from luthier.data.sources import READERS
from luthier.evaluation.subjects import Suite, suite_of

if TYPE_CHECKING:
    from collections.abc import Iterator

LETTERS = "ABCDEFGHIJ"
_SPLITS = {"test": "test", "validation": "val", "val": "val", "train": "dev", "dev": "dev"}
_SUFFIX = re.compile(r"_(dev|val|test)$")
_SUFFIXES = (".csv", ".jsonl", ".json", ".parquet")
_CHINESE = re.compile(r"[\u4e00-\u9fff]")


@dataclass(frozen=True, slots=True)
class Question:
    """One question; `answer` is the place of the right choice, -1 where it is kept secret."""

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
    suite: Suite | None
    """The published benchmark that these subjects are of."""
    categories: dict[str, tuple[str, ...]]
    """Subject -> its categories, as mapping.json beside the splits says, or else as published."""
    titles: dict[str, str]
    """Subject -> what it is called in a prompt; others are called by their name."""

    @property
    def questions(self) -> list[Question]:
        """Return all questions that are asked."""
        return [question for questions in self.asked.values() for question in questions]

    @property
    def is_chinese(self) -> bool:
        """Tell whether most questions are Chinese."""
        return _is_chinese(self.questions)


def read_benchmark(task: str, folder: str, num_shots: int) -> Benchmark:
    """Return a benchmark by folder, file or name (mmlu_test: the test split of `folder`/mmlu).

    Raises ConfigError when there is none, DataError naming file, row and column for what cannot be read.
    """
    path, split = _place(task, Path(folder).expanduser())
    asked = _read_file(path) if path.is_file() else _read_split(path, split)
    shots = _shots(path, split) if num_shots else {}
    if path.is_dir() and (missing := sorted(asked.keys() - shots.keys()) if num_shots else []):
        raise DataError(
            f"{path}: n_shot {num_shots} needs answered questions, and {missing[0]} has none in dev; set n_shot: 0",
            code="data_missing",
        )
    facts = _mapping(path)
    chinese = _is_chinese([question for questions in asked.values() for question in questions])
    suite = suite_of(asked, path.name, chinese=chinese)
    known = ({}, {}) if suite is None else (suite.categories, suite.titles)
    return Benchmark(
        name=path.stem if path.is_file() else path.name,
        asked=asked,
        shots={subject: questions[:num_shots] for subject, questions in shots.items()},
        suite=suite,
        categories={
            **known[0],
            **{subject: (fact["category"],) for subject, fact in facts.items() if fact["category"]},
        },
        titles={**known[1], **{subject: fact["name"] for subject, fact in facts.items() if fact["name"]}},
    )


def _is_chinese(questions: list[Question]) -> bool:
    return sum(_CHINESE.search(question.text) is not None for question in questions) * 2 > len(questions)


# ---- which files


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
    first = next(iter(_files(path / "test")), None)
    known = first is not None and any(question.answer >= 0 for question in _questions(first))
    return "test" if known or not (path / "val").is_dir() else "val"


def _read_split(path: Path, split: str) -> dict[str, list[Question]]:
    files = _files(path / split)
    if not files:
        raise DataError(
            f"{path} has no folder {split} with {', '.join(each[1:] for each in _SUFFIXES)} files", code="data_missing"
        )
    return {subject: questions for file in files for subject, questions in _read_file(file).items()}


def _read_file(file: Path) -> dict[str, list[Question]]:
    """Return the questions of a file by subject. Raises DataError where one has no answer."""
    if file.suffix not in _SUFFIXES:
        raise DataError(f"{file}: files may be {', '.join(_SUFFIXES)}", code="data_missing")
    found: dict[str, list[Question]] = {}
    for question in _questions(file):
        if question.answer < 0:
            raise DataError(f"{question.where} [answer] is empty; take the val split", code="data_bad_row")
        found.setdefault(question.subject, []).append(question)
    if not found:
        raise DataError(f"{file} has no questions", code="data_empty")
    return found


def _shots(path: Path, split: str) -> dict[str, list[Question]]:
    """Return answered questions: the split dev of a folder, or what lies beside a file as dev."""
    if path.is_dir():
        return _read_split(path, "dev") if split != "dev" else {}
    stem = _SUFFIX.sub("", path.stem)
    beside = [path.parent / f"{stem}_dev{path.suffix}", path.parent.parent / "dev" / f"{stem}_dev{path.suffix}"]
    beside += [path.parent.parent / "dev" / f"{stem}{path.suffix}"]
    file = next((each for each in beside if each.is_file() and each != path), None)
    return {} if file is None else _read_file(file)


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix in _SUFFIXES) if folder.is_dir() else []


def _mapping(path: Path) -> dict[str, dict[str, str]]:
    """Return name and category of each subject from mapping.json, as LLaMA-Factory writes it; empty where it is not."""
    file = path / "mapping.json"
    if not file.is_file():
        return {}
    try:
        given = json.loads(file.read_text(encoding="utf-8"))
        return {
            str(subject): {key: str(fact.get(key) or "") for key in ("name", "category")}
            for subject, fact in given.items()
        }
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(
            f'{file}: expected {{"SUBJECT": {{"name": …, "category": …}}}}: {first_line(error)}', code="data_bad_row"
        ) from error


# ---- rows


def _questions(file: Path) -> Iterator[Question]:
    subject = _SUFFIX.sub("", file.stem)
    for where, row in _csv_rows(file) if file.suffix == ".csv" else _other_rows(file):
        yield _question(row, subject, where)


def _other_rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for row in READERS[file.suffix](file):
        if row.value is None:
            raise DataError(str(row.finding), code="data_bad_row")
        yield row.where, {str(key).lower(): value for key, value in row.value.items()}


def _csv_rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the rows of a file with a header, or of one without, as MMLU's are."""
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8: {first_line(error)}; convert it with iconv", code="not_utf8") from error
    reader, header, start = csv.reader(io.StringIO(text, newline=""), strict=True), list[str](), 1
    try:
        for row in reader:
            where, start = f"{file}:{start}", reader.line_num + 1
            if not any(cell.strip() for cell in row):
                continue
            if not header:
                small = [cell.strip().lower() for cell in row]
                if "question" in small and {"answer", "a"} & set(small):
                    header = small
                    continue
                header = ["question", *LETTERS[: max(0, len(row) - 2)].lower(), "answer"]
            if len(row) != len(header):
                raise DataError(
                    f"{where} has {len(row)} columns, the first row has {len(header)}; quote texts with commas",
                    code="data_bad_row",
                )
            yield where, dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise DataError(f"{file}:{start} is no csv: {error}", code="data_bad_row") from error


def _question(row: dict[str, Any], subject: str, where: str) -> Question:
    text = str(row.get("question") or "").strip()
    if not text:
        raise DataError(f"{where} [question] is missing or empty; found columns {', '.join(row)}", code="data_bad_row")
    choices = _choices(row, where)
    return Question(text, choices, _answer(row, choices, where), str(row.get("subject") or subject), where)


def _choices(row: dict[str, Any], where: str) -> tuple[str, ...]:
    if isinstance(row.get("choices"), (list, tuple)):
        choices = tuple(str(each).strip() for each in row["choices"])
    else:
        cells = [str("" if row.get(letter) is None else row[letter]).strip() for letter in LETTERS.lower()]
        choices = tuple(cells[: max((place + 1 for place, cell in enumerate(cells) if cell), default=0)])
    if "" in choices:
        raise DataError(f"{where} [{LETTERS[choices.index('')]}] is empty; expected a choice", code="data_bad_row")
    if not 2 <= len(choices) <= len(LETTERS):
        raise DataError(
            f"{where} [choices] or [A], [B], …: expected 2 to {len(LETTERS)} choices, found {len(choices)}",
            code="data_bad_row",
        )
    return choices


def _answer(row: dict[str, Any], choices: tuple[str, ...], where: str) -> int:
    """Return the place of the right choice; -1 where the column is there and empty."""
    if "answer" not in row:
        raise DataError(f"{where} [answer] is missing; found columns {', '.join(row)}", code="data_bad_row")
    given = row["answer"]
    if given is None or (isinstance(given, str) and not given.strip()):
        return -1
    letter = str(given).strip().upper()
    place = given if isinstance(given, int) else LETTERS.find(letter) if len(letter) == 1 else -1
    if not 0 <= place < len(choices):
        known = ", ".join(LETTERS[: len(choices)])
        raise DataError(f"{where} [answer] is {printable(given)}; expected one of {known}", code="data_bad_row")
    return place
