"""What reading every row of a data set found."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from luthier.core.errors import DataError
from luthier.core.findings import Finding
from luthier.core.log import logger

if TYPE_CHECKING:
    import numpy as np

    from luthier.data.store import UnitStore

NO_ROOM = frozenset({"too_long", "prompt_too_long", "answer_too_long"})
"""Kinds of findings about rows that do not fit into cutoff_len."""
LENGTHS_PER_OCTAVE = 8
SHOWN_PER_KIND = 20
KEPT_PER_KIND = 1000


@dataclass(slots=True)
class AuditReport:
    """Counts over all rows, and the findings, at most KEPT_PER_KIND of a kind."""

    rows: int = 0
    """Rows read, good and bad."""
    trained_rows: int = 0
    """Rows that became units."""
    tokens: int = 0
    learned_tokens: int = 0
    cut_tokens: int = 0
    """Tokens removed by cutoff_len."""
    counts: Counter[str] = field(default_factory=Counter[str])
    """Findings by kind."""
    findings: list[Finding] = field(default_factory=list[Finding])
    lengths: Counter[int] = field(default_factory=Counter[int])
    """Tokens of a row before it is cut, rounded up as `length_edge` does -> rows."""
    places: dict[str, list[int]] = field(default_factory=dict[str, list[int]])
    """Kind -> places of all rows that have it, from 0 on and rising."""
    row: int | None = None
    """Place of the row that is being read; findings take it from here."""

    def begin_row(self) -> None:
        """Count a row; findings are about it until the next one begins."""
        self.row = self.rows
        self.rows += 1

    def add(self, kind: str, level: str, where: str, message: str) -> None:
        """Count a finding and keep it while there are few of its kind."""
        self.counts[kind] += 1
        if self.row is not None and self.places.setdefault(kind, [])[-1:] != [self.row]:
            self.places[kind].append(self.row)
        if self.counts[kind] <= KEPT_PER_KIND:
            finding = Finding(kind=kind, level=level, where=where, message=message, row=self.row)  # pyright: ignore
            self.findings.append(finding)

    def add_length(self, tokens: int) -> None:
        """Count a row of so many tokens."""
        self.lengths[length_edge(tokens)] += 1

    def errors(self) -> list[Finding]:
        """Return the findings that stop training."""
        return [finding for finding in self.findings if finding.level == "error"]

    @property
    def num_errors(self) -> int:
        """Return how many rows cannot be trained on."""
        kinds = {finding.kind for finding in self.errors()}
        return sum(self.counts[kind] for kind in kinds)

    def as_dict(self) -> dict[str, Any]:
        """Return the plain form that audit.json holds."""
        plain = {name: getattr(self, name) for name in _NUMBERS}
        return {
            **plain,
            "counts": dict(self.counts),
            "findings": [asdict(finding) for finding in self.findings],
            "lengths": [[edge, self.lengths[edge]] for edge in sorted(self.lengths)],
            "places": {kind: _as_ranges(rows) for kind, rows in self.places.items()},
        }

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> AuditReport:
        """Read what `as_dict` wrote."""
        return cls(
            **{name: plain[name] for name in _NUMBERS},
            counts=Counter(plain["counts"]),
            findings=[Finding(**finding) for finding in plain["findings"]],
            lengths=Counter(dict(plain.get("lengths", []))),
            places={kind: _from_ranges(ranges) for kind, ranges in plain.get("places", {}).items()},
        )

    def lines(self) -> list[str]:
        """Return the report for people: findings by kind, then totals."""
        lines: list[str] = []
        for kind, count in self.counts.items():
            of_kind = [finding for finding in self.findings if finding.kind == kind]
            lines += [f"{finding.level}: {finding}" for finding in of_kind[:SHOWN_PER_KIND]]
            if count > SHOWN_PER_KIND:
                lines.append(f"{of_kind[0].level}: {kind}: {count} in all; audit.json lists them")
        lines.append(self.total())
        return lines

    def total(self) -> str:
        """Return rows, tokens, and every kind of finding with its count, in one line."""
        kinds = ", ".join(f"{kind} {count}" for kind, count in self.counts.items()) or "no findings"
        cut = (
            f", {self.cut_tokens} tokens cut ({100 * self.cut_tokens / (self.tokens + self.cut_tokens):.1f} %)"
            if self.cut_tokens
            else ""
        )
        return (
            f"{self.trained_rows} of {self.rows} rows, {self.tokens} tokens, {self.learned_tokens} learned"
            f"{cut}; {kinds}"
        )

    def enforce(self, policy: str) -> None:
        """Raise DataError for bad rows under the policy "fail", or when no row is left; say what "skip" leaves out."""
        errors = self.errors()
        if self.rows == 0:
            raise DataError("the data set is empty: not one row was read", code="data_empty")
        shown = "\n".join(str(finding) for finding in errors[:SHOWN_PER_KIND])
        more = f"\n... {self.num_errors} in all" if self.num_errors > SHOWN_PER_KIND else ""
        if self.trained_rows == 0:
            why = f"{shown}{more}" if errors else "\n".join(map(str, self.findings[:SHOWN_PER_KIND]))
            raise DataError(f"no row is left to train on ({self.total()})\n{why}", code="data_empty")
        if errors and policy == "fail":
            raise DataError(
                f"{shown}{more}\n{self.num_errors} of {self.rows} rows cannot be trained on; mend them, "
                "or set bad_rows: skip to leave them out",
                code="data_bad_row",
            )
        if errors:
            logger.warning("bad_rows: skip left out %d of %d rows:\n%s%s", self.num_errors, self.rows, shown, more)
        for kind in NO_ROOM & self.counts.keys():
            first = next(finding for finding in self.findings if finding.kind == kind)
            if first.level == "warning":
                logger.warning("%d of %d rows are left out; the first: %s", self.counts[kind], self.rows, first)


_NUMBERS = ("rows", "trained_rows", "tokens", "learned_tokens", "cut_tokens")


def length_edge(tokens: int) -> int:
    """Return the upper edge of the bar of a histogram of lengths: bars grow with the length, by an eighth at most.

    >>> [length_edge(n) for n in (3, 16, 17, 100, 2047)]
    [3, 16, 18, 104, 2048]
    """
    width = 1 << max(0, tokens.bit_length() - LENGTHS_PER_OCTAVE.bit_length())
    return -(-tokens // width) * width


def _as_ranges(rows: list[int]) -> list[list[int]]:
    """Return rising numbers as [first, how many] of those that follow each other."""
    ranges: list[list[int]] = []
    for row in rows:
        if ranges and row == sum(ranges[-1]):
            ranges[-1][1] += 1
        else:
            ranges.append([row, 1])
    return ranges


def _from_ranges(ranges: list[list[int]]) -> list[int]:
    return [row for first, count in ranges for row in range(first, first + count)]


def leakage(train: UnitStore, train_rows: np.ndarray, held_out: UnitStore, held_out_rows: np.ndarray) -> list[Finding]:
    """Return one warning for each evaluation row whose text or question is also trained on."""
    seen = {int(h): train.origins[i] for i, h in zip(train_rows, train.unit_hash[train_rows], strict=True)}
    asked = {int(h): train.origins[i] for i, h in zip(train_rows, train.context_hash[train_rows], strict=True)}
    found: list[Finding] = []
    for i in held_out_rows:
        where = str(held_out.origins[i])
        if (twin := seen.get(int(held_out.unit_hash[i]))) is not None:
            found.append(
                Finding(kind="leak", level="warning", where=where, message=f"the same row is trained on: {twin}")
            )
        elif (twin := asked.get(int(held_out.context_hash[i]))) is not None:
            message = f"the same question is trained on with another answer: {twin}"
            found.append(Finding(kind="leak_question", level="warning", where=where, message=message))
    return found
