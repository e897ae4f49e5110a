"""Runs: the list, one of them, its curves, and several side by side."""

from typing import Any, Literal

from pydantic import Field

from luthier.server.ui.said import Said
from luthier.server.ui.shapes.common import Asked, Shape, Values

RunState = Literal[
    "never started", "queued", "starting", "running", "saving", "stopping", "stopped", "done", "failed", "crashed"
]


class RunRow(Shape):
    """One line of the list."""

    id: str
    """Name of its folder below the runs root."""
    name: str
    state: RunState
    objective: str
    tuning: str
    model: str
    data: list[str]
    step: int
    total: int | None
    loss: float | None
    """Of the last step; null after a step whose loss was no number."""
    best: float | None
    """Best value of `best_metric`."""
    best_metric: str | None
    seconds: float | None
    bytes: int | None
    created: float
    updated: float
    """Seconds since the epoch."""
    tags: list[str] = []
    pinned: bool = False
    archived: bool = False
    notes: str = ""


class RunPage(Shape):
    """Runs that a search found."""

    runs: list[RunRow]
    total: int
    """Found in all; `runs` is one page of them."""
    tags: list[str]
    """Every tag in use."""
    models: list[str]
    """Every model that a run learns from, by the name that its settings give it."""
    bytes: int
    """Of all runs."""
    rebuilding: bool = False
    """The index was damaged or missing, and is being made from the folders."""


class Checkpoint(Shape):
    """A checkpoint of a run."""

    name: str
    step: int
    bytes: int
    verified: bool | None
    """Sizes of its files against the manifest; null: not looked at yet."""
    damage: Said = ""


class Finding(Shape):
    """What a rule says about a metric."""

    level: Literal["warning", "note"]
    metric: str
    text: str


class RunDetail(RunRow):
    """All about one run."""

    status: dict[str, Any]
    """status.json"""
    config: Values
    yaml: str
    command: str
    job: str | None
    """Id of the job that trains it."""
    checkpoints: list[Checkpoint]
    metrics: list[str]
    """Names of what has curves."""
    diagnosis: list[Finding]
    reason: Said = ""
    """Why it ended, in words; of a crash, what is known."""
    log_tail: list[str] = []
    """Where it failed or crashed: the last 50 lines."""
    resumable: bool
    blocker: Said = ""
    """Why it cannot be resumed."""
    samples: int
    """Groups of answers in samples.jsonl."""
    evaluations: int
    exports: list[str]


class RunChange(Asked):
    """What to change; null leaves it."""

    name: str | None = Field(default=None, min_length=1, max_length=200)
    notes: str | None = Field(default=None, max_length=20_000)
    tags: list[str] | None = Field(default=None, max_length=50)
    pinned: bool | None = None
    archived: bool | None = None


class RunAction(Asked):
    """pause and stop save first (pause: meant to go on); kill does not; save goes on."""

    action: Literal["pause", "stop", "kill", "save", "resume"]
    request_id: str = ""
    """Of resume: the same twice is one job."""


class Deletion(Shape):
    """What deleting takes away; with `done`, what it took."""

    run: str
    bytes: int
    files: int
    checkpoints: int
    exports: list[str]
    done: bool
    undo_until: float | None = None
    """Seconds since the epoch; until then undo brings it back."""


class Curve(Shape):
    """One metric, thinned so that no peak is lost: of each bucket its least and its greatest point."""

    name: str
    x: list[float]
    """Steps, tokens or seconds, as asked."""
    y: list[float | None]
    """null: not a number there; the line has a gap."""
    points: int
    """In the file, within what was asked."""


class Curves(Shape):
    """Curves up to an event; the stream of events goes on from there."""

    run: str
    last_seq: int
    curves: list[Curve]
    marks: list[dict[str, Any]] = []
    """{kind: resumed | checkpoint, step, tokens, time}; of the latter two none where it has no events before it."""


class LogPart(Shape):
    """Lines of the log."""

    lines: list[str]
    offset: int
    """Byte behind the last line; ask from there for what follows."""
    begin: int
    """Byte of the first line; ask before it for what is earlier."""


class SampleGroups(Shape):
    """Answers that a run learned from, or gave while training."""

    groups: list[dict[str, Any]]
    """Lines of samples.jsonl."""
    steps: list[int]
    """Steps that have answers."""
    total: int


class FileEntry(Shape):
    """A file of a run."""

    path: str
    bytes: int
    modified: float


class ConfigDifference(Shape):
    """A setting in which runs differ."""

    key: str
    values: list[Any]
    """In the order of the runs; null: not there."""


class Comparison(Shape):
    """Runs side by side."""

    runs: list[RunRow]
    missing: list[str]
    settings: list[ConfigDifference]
    data_equal: bool | None
    """Whether the rows were the same; null: not known."""
    versions: list[ConfigDifference]
    """Those that differ."""
    versions_equal: bool | None = None
    """Whether all were written by the same versions; null: not known."""
    results: list[ConfigDifference]
    """Final and best values of each metric."""
    evaluations: list[dict[str, Any]]
    """Newest evaluation of each run."""


class EvaluationList(Shape):
    """Evaluations of a run, newest first."""

    evaluations: list[dict[str, Any]]
    """{name, created, models, kinds, results}: results.json"""


class ChangedItem(Shape):
    """An item of an evaluation and how two models did on it."""

    prompt: str
    expected: str
    before: str
    after: str
    before_score: float | None
    after_score: float | None
