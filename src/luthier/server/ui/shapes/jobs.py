"""Jobs: processes that do one command, and the queue in which they wait."""

from typing import Any, Literal

from pydantic import Field

from luthier.server.ui.said import Said
from luthier.server.ui.shapes.common import Asked, Problem, Shape, Values

Kind = Literal["train", "evaluate", "export", "serve", "audit"]
State = Literal[
    "held", "queued", "starting", "running", "stopping", "done", "stopped", "failed", "crashed", "cancelled"
]


class NewJob(Asked):
    """What to do. The same request_id twice is one job."""

    request_id: str = Field(pattern=r"^[A-Za-z0-9_-]{8,64}$")
    kind: Kind
    name: str = Field(default="", max_length=200)
    """Display name; of a training, the run's."""
    values: Values | None = None
    yaml: str | None = None
    """Settings in either form; of kinds other than train they only add to those of `sources`."""
    sources: list[str] = []
    """Runs (ids), checkpoints (run/checkpoint-5), folders or aliases that are evaluated, exported or served."""
    options: dict[str, Any] = {}
    """evaluate: compare (bool). export: format, dtype, quantize (list), verify (bool). serve: adapters (name -> run).
    audit: dataset, fix (bool)."""
    when: Literal["now", "queue", "hold"] = "queue"
    """now: start although others run; queue: when its turn comes; hold: not before it is released."""
    resume: str | None = None
    """Of a training, the run (id) that goes on."""
    notes: str = Field(default="", max_length=20_000)
    tags: list[str] = []


class Job(Shape):
    """One job."""

    id: str
    kind: Kind
    name: str
    state: State
    run: str | None = None
    """Id of the run that it trains, or that its first source is."""
    position: int | None = None
    """Place in the queue, from 0 on; null once it has begun."""
    created: float
    started: float | None = None
    ended: float | None = None
    """Seconds since the epoch."""
    exit_code: int | None = None
    """Negative: ended by that signal; null: not known."""
    tries: int = 0
    reason: Said = ""
    """Why it waits, or why it ended, in words."""
    error: Problem | None = None
    log_tail: list[str] = []
    """Last lines of its log; 50 where it failed."""
    progress: float | None = None
    """Share done, 0 to 1, where the job tells."""
    doing: Said = ""
    """What it says that it does."""
    result: dict[str, Any] | None = None
    """What the command printed with --json, once it is done."""
    command: str
    """The command line that does the same."""
    memory_bytes: int | None = None
    """What it is expected to take; null where that is not known."""


class Jobs(Shape):
    """All jobs: those that wait in their order, then those that run, then those that ended, newest first."""

    jobs: list[Job]
    slots: int
    """How many trainings may run at once."""
    holding: bool
    """Nothing new is begun."""


class QueueChange(Asked):
    """What to change about the queue; null leaves it."""

    slots: int | None = Field(default=None, ge=1, le=64)
    holding: bool | None = None
    order: list[str] | None = None
    """Ids of waiting jobs, first to last; those that are not named keep their order behind them."""


class JobAction(Asked):
    """What to do to a job: hold and release while it waits; cancel before it began; stop with a checkpoint, kill at
    once; save and go on; retry as a new one; forget one that has ended."""

    action: Literal["hold", "release", "cancel", "stop", "kill", "save", "retry", "forget"]
