"""Rows that a trainer of TRL has prepared, as units, in the order in which that trainer would read them."""

from __future__ import annotations

from itertools import count
from math import ceil
from typing import TYPE_CHECKING, Any

from luthier.core.errors import ConfigError
from luthier.core.types import Segment, Unit
from luthier.data.cut import read_at_end
from luthier.data.loader import Cursor, Window
from luthier.data.pack import pack
from luthier.data.tagged import DESIRABLE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from luthier.core.batch import PackedBatch

MASKED = -100


class LikeLoader:
    """Windows in the order of a trainer's own sampler."""

    def __init__(self, units: Sequence[Unit], batches_of: Callable[[int], list[list[int]]], per_window: int) -> None:
        """`batches_of`: number of an epoch -> its batches, as indices of units."""
        self.units, self.batches_of, self.per_window = units, batches_of, per_window
        self.steps_per_epoch: int | None = max(1, ceil(len(batches_of(0)) / per_window))

    def windows(self, start: Cursor) -> Iterator[Window]:
        """Yield windows without end, from `start` on."""
        for epoch in count(start.epoch):
            batches = self.batches_of(epoch)
            windows = [batches[i : i + self.per_window] for i in range(0, len(batches), self.per_window)]
            for position in range(start.position if epoch == start.epoch else 0, len(windows)):
                last = position + 1 == len(windows)
                following = Cursor(epoch + 1, 0) if last else Cursor(epoch, position + 1)
                packed = [pack([self.units[i] for i in batch]) for batch in windows[position]]
                yield Window([packed], following, epoch + (position + 1) / len(windows))

    def batches(self) -> Iterator[PackedBatch]:
        """Yield the batches of one pass, for evaluation."""
        for batch in self.batches_of(0):
            yield pack([self.units[i] for i in batch])


def read_like(trainer: Any, rows: Any, kind: str) -> list[Unit]:
    """Return the units of rows that a trainer prepared. Raises ConfigError when it did not prepare them."""
    make, needed = _MAKERS[kind]
    missing = [name for name in needed if name not in rows.column_names]
    if missing:
        raise ConfigError(
            f"train_like: the rows of this {kind} have no {', '.join(missing)}; let the trainer prepare its data set "
            "(leave out skip_prepare_dataset)"
        )
    units = [make(row, trainer, f"row {number + 1}") for number, row in enumerate(rows)]
    if not any(any(segment.weight[1:]) for unit in units for segment in unit):
        raise ConfigError(f"train_like: no row of this {kind} has a token that is learned; every label is {MASKED}")
    return units


def _text(row: Mapping[str, Any], trainer: Any, origin: str) -> Unit:
    """Return one document, or the documents that were packed into a row."""
    tokens, labels = list(row["input_ids"]), row.get("labels") or row["input_ids"]
    weight = [float(label != MASKED) for label in labels]
    lengths = row.get("seq_lengths") or [len(tokens)]
    ends = [sum(lengths[: i + 1]) for i in range(len(lengths))]
    spans = [slice(end - length, end) for end, length in zip(ends, lengths, strict=True)]
    return [Segment(tokens=tokens[span], weight=weight[span], origin=origin) for span in spans]


def _answered(
    prompt: Sequence[int],
    answer: Sequence[int],
    trainer: Any,
    origin: str,
    *,
    tags: Mapping[str, float] | None = None,
    aside: bool = False,
) -> Segment:
    """Return a prompt and its answer, cut as the trainer's collator cuts them."""
    most = trainer.args.max_length
    keeps_end = getattr(trainer.args, "truncation_mode", "keep_start") == "keep_end"
    kept = slice(None) if most is None else slice(-most, None) if keeps_end else slice(None, most)
    tokens, weight = [*prompt, *answer][kept], ([0.0] * len(prompt) + [1.0] * len(answer))[kept]
    return Segment(tokens=tokens, weight=weight, origin=origin, aside=aside, tags=dict(tags or {}))


def _pair(row: Mapping[str, Any], trainer: Any, origin: str) -> Unit:
    return [_answered(row["prompt_ids"], row[name], trainer, origin) for name in ("chosen_ids", "rejected_ids")]


def _labelled_pair(row: Mapping[str, Any], trainer: Any, origin: str) -> Unit:
    return [
        Segment(
            tokens=list(row[f"{side}_input_ids"]),
            weight=[float(label != MASKED) for label in row[f"{side}_labels"]],
            origin=origin,
        )
        for side in ("chosen", "rejected")
    ]


def _tagged(row: Mapping[str, Any], trainer: Any, origin: str) -> Unit:
    """Return an answer and, set aside, the answer of another row behind this prompt."""
    tags = {DESIRABLE: float(bool(row["label"]))}
    unit = [_answered(row["prompt_ids"], row["completion_ids"], trainer, origin, tags=tags)]
    other = row["KL_completion_ids"]
    return [*unit, _answered(row["prompt_ids"], other, trainer, origin, tags=tags, aside=True)]


def _graded_pair(row: Mapping[str, Any], trainer: Any, origin: str) -> Unit:
    tags = {"margin": float(row["margin"])} if "margin" in row else {}
    return [
        read_at_end(Segment(tokens=list(row[name]), weight=[0.0] * len(row[name]), origin=origin, tags=tags))
        for name in ("chosen_ids", "rejected_ids")
    ]


_PAIRS = ("prompt_ids", "chosen_ids", "rejected_ids")
_LABELLED = ("chosen_input_ids", "chosen_labels", "rejected_input_ids", "rejected_labels")
_MAKERS: Mapping[str, tuple[Callable[[Any, Any, str], Unit], tuple[str, ...]]] = {
    "SFTTrainer": (_text, ("input_ids",)),
    "DPOTrainer": (_pair, _PAIRS),
    "ORPOTrainer": (_labelled_pair, _LABELLED),
    "CPOTrainer": (_labelled_pair, _LABELLED),
    "KTOTrainer": (_tagged, ("prompt_ids", "completion_ids", "KL_completion_ids", "label")),
    "RewardTrainer": (_graded_pair, ("chosen_ids", "rejected_ids")),
}
"""Trainer -> what makes a unit of a row, and the columns that it reads."""
