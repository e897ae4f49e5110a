"""Data sets: the list, rows, the audit, tokens."""

from typing import Any, Literal

from luthier.server.ui.said import Said
from luthier.server.ui.shapes.common import Asked, Shape, Values


class DataSet(Shape):
    """A data set that can be chosen."""

    name: str
    """As `data.dataset` takes it together with `folder`: a name in dataset_info.json, or a file name."""
    folder: str
    """As `data.dataset_dir` takes it."""
    source: str
    """The file, or the hub's name."""
    format: str
    """alpaca, sharegpt, openai, text, or auto."""
    rows: int | None
    """null: not counted yet, or not on this machine."""
    bytes: int | None
    modified: float | None
    audit: Literal["good", "warnings", "errors", "unknown"] = "unknown"
    uploaded: bool = False
    packaged: bool = False
    """It comes with luthier."""
    pairs: bool = False


class DataSets(Shape):
    """All of them."""

    datasets: list[DataSet]


class Column(Shape):
    """A column of the rows."""

    name: str
    types: dict[str, int]
    """Kind of value -> how many of the rows that were looked at."""
    filled: float
    """Share that is not empty."""


class RowPage(Shape):
    """Rows of a file, as they are written there."""

    start: int
    rows: list[Any]
    lines: list[int]
    """Line of the file on which each row begins, from 1 on."""
    total: int | None
    """null while they are still being counted."""
    columns: list[Column]
    """Of the first rows of the file."""
    broken: list[int] = []
    """Places in `rows` that are no rows: the text stands there, as far as it can be read."""
    problems: list[Said] = []
    """Of each of `broken`, why it is no row."""
    places: list[int] = []
    """Place of each row in the file, from 0 on; after a search they have gaps."""
    stopped: int | None = None
    """Place where a search stopped because enough was found or its time was up; ask from there. null: at the end."""


class Mapping(Shape):
    """How columns are read."""

    format: str
    columns: dict[str, str]
    """Role -> column."""
    entry: dict[str, Any]
    """The entry for dataset_info.json."""


class AuditFinding(Shape):
    """One thing about one row."""

    kind: str
    level: Literal["error", "warning", "note"]
    where: str
    """file:line"""
    row: int | None
    """Place of the row among the rows, from 0 on."""
    message: Said


class Audit(Shape):
    """What reading every row found."""

    dataset: str
    state: Literal["none", "running", "done", "failed"]
    job: str | None = None
    rows: int = 0
    trained_rows: int = 0
    tokens: int = 0
    learned_tokens: int = 0
    cut_tokens: int = 0
    counts: dict[str, int] = {}
    levels: dict[str, str] = {}
    """Kind -> level."""
    findings: list[AuditFinding] = []
    lengths: list[list[int]] = []
    """[tokens up to, rows]"""
    cutoff_len: int | None = None
    stale: bool = False
    """The file has changed since."""


class TokensAsked(Asked):
    """Rows whose tokens to show."""

    dataset: str
    folder: str
    rows: list[int]
    """Places of rows; at most 20."""
    values: Values
    """Settings: model, template, cutoff_len and the like."""


class TokenPiece(Shape):
    """One token."""

    id: int
    text: str
    kind: Literal["learned", "read", "cut"]
    special: bool


class TokenSegment(Shape):
    """One sequence of a row: "", chosen, rejected."""

    name: str
    pieces: list[TokenPiece]
    learned: int
    read: int
    cut: int


class TokenRow(Shape):
    """A row as training sees it."""

    row: int
    where: str
    segments: list[TokenSegment]
    problem: Said = ""
    """Why it has no tokens."""


class TokenRows(Shape):
    """Rows as training sees them."""

    rows: list[TokenRow]
    template: str
    notices: list[Said] = []


class CleanAsked(Asked):
    """What to take out of a file, into a new one beside it; the old one stays as it is."""

    dataset: str
    folder: str
    drop: list[str]
    """Kinds of findings whose rows go: an error's, duplicate, ..."""
    name: str
    """Of the new file."""


class CleanPreview(Shape):
    """Before and after."""

    before: int
    after: int
    dropped: dict[str, int]
    """Kind -> rows."""
    examples: list[dict[str, Any]]
    """{line, kind, row} of some that go."""
    written: str | None = None
    """The new file."""
