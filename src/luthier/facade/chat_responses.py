"""Train on answers only: the labels of a prepared trainer's rows, masked outside of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from luthier.core.errors import DataError
from luthier.core.log import logger
from luthier.facade.chat import PARTS
from luthier.facade.chat_parts import MASKED, Markers, parts_of
from luthier.facade.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_ROWS_LOOKED_AT = 200
"""Rows in which a marker is looked for before it is called missing."""


def train_on_responses_only(
    trainer: Any,
    instruction_part: str | None = None,
    response_part: str | None = None,
    force_match: bool = True,
    tokenizer: Any = None,
    return_function: bool = False,
    num_proc: int | None = None,
    last_response_only: bool = False,
) -> Any:
    """Mask everything but answers in the rows of `trainer`, and return it.

    An answer goes from behind `response_part` up to the next `instruction_part`, or the end. Both are found in the
    chat template where they are left out, and matched as text (`force_match` changes nothing). Labels that are masked
    already stay so. Rows without an answer are left out, counted and said. `return_function`: return the function for
    batches of rows instead.

    Raises ArgumentError for one part without the other, or for parts where apply_chat_template has kept its own;
    DataError when no row has an answer, naming the part that was not found.
    """
    tokenizer = tokenizer if tokenizer is not None else trainer.processing_class
    markers = _markers(tokenizer, instruction_part, response_part, last_only=last_response_only)
    mask = Mask(markers)
    if return_function:
        return mask
    trainer.train_dataset = _masked(trainer.train_dataset, mask, "train_dataset", num_proc)
    held_out = trainer.eval_dataset
    if isinstance(held_out, dict):
        trainer.eval_dataset = {
            name: _masked(rows, mask, f"eval_dataset[{name!r}]", num_proc) for name, rows in held_out.items()
        }
    else:
        trainer.eval_dataset = _masked(held_out, mask, "eval_dataset", num_proc)
    _keep_labels(trainer, tokenizer)
    return trainer


def _markers(tokenizer: Any, instruction: str | None, response: str | None, *, last_only: bool) -> Markers:
    given = [part for part in (instruction, response) if part]
    if len(given) == 1:
        raise ArgumentError("give both instruction_part and response_part, or neither: then the chat template tells")
    if given and getattr(tokenizer, PARTS, None) is not None:
        raise ArgumentError(
            "apply_chat_template has kept what stands in front of questions and answers; leave instruction_part and "
            "response_part out"
        )
    one, other = (instruction, response) if instruction and response else parts_of(tokenizer)
    return Markers(tokenizer, one, other, last_only)


@dataclass(frozen=True)
class Mask:
    """Makes the labels of a batch of rows."""

    markers: Markers

    def __call__(self, rows: Mapping[str, Any]) -> dict[str, list[list[int]]]:
        """Return labels for rows with input_ids, and perhaps labels and seq_lengths of rows that are packed."""
        ids = _plain(rows["input_ids"])
        known = _plain(rows["labels"]) if "labels" in rows else [None] * len(ids)
        lengths = rows["seq_lengths"] if "seq_lengths" in rows else [None] * len(ids)
        return {"labels": [self._row(*row) for row in zip(ids, known, lengths, strict=True)]}

    def _row(self, ids: Sequence[int], known: Sequence[int] | None, lengths: Sequence[int] | None) -> list[int]:
        labels: list[int] = []
        for length in lengths if lengths is not None else [len(ids)]:
            piece = slice(len(labels), len(labels) + length)
            labels += self.markers.labels(ids[piece], None if known is None else known[piece])
        return labels


def _plain(rows: Any) -> list[list[int]]:
    return [row.tolist() if hasattr(row, "tolist") else list(row) for row in rows]


def _masked(rows: Any, mask: Mask, name: str, num_proc: int | None) -> Any:
    """Return the rows with their labels, without those that have no answer."""
    if rows is None:
        return None
    columns = rows.column_names
    if columns is not None and "input_ids" not in columns:
        raise DataError(
            f"{name} has no column input_ids, only {', '.join(columns)}; call train_on_responses_only with a trainer "
            "that has prepared its rows"
        )
    if not hasattr(rows, "__len__"):
        return rows.map(mask, batched=True).filter(_is_learned)
    if not len(rows):
        return rows
    options = {"num_proc": num_proc} if num_proc else {}
    done = rows.map(mask, batched=True, desc="Masking everything but answers", **options)
    kept = done.filter(_is_learned, desc="Looking for answers", **options)
    if not len(kept):
        looked_at = [_plain([row["input_ids"]])[0] for row in rows.select(range(min(len(rows), _ROWS_LOOKED_AT)))]
        raise DataError(
            f"{name}: no row has an answer to learn from: {mask.markers.missing(looked_at)}", code="data_no_answers"
        )
    if len(kept) < len(rows):
        logger.info(
            "%s: %d of %d rows have no answer to learn from and are left out", name, len(rows) - len(kept), len(rows)
        )
    return kept


def _is_learned(row: Mapping[str, Any]) -> bool:
    return any(label != MASKED for label in row["labels"])


def _keep_labels(trainer: Any, tokenizer: Any) -> None:
    """Give a collator that makes labels of its own a successor that keeps those of the rows."""
    from transformers import DataCollatorForLanguageModeling, DataCollatorForSeq2Seq, DataCollatorWithPadding

    if isinstance(trainer.data_collator, (DataCollatorForLanguageModeling, DataCollatorWithPadding)):
        logger.info(
            "%s would lose the labels; DataCollatorForSeq2Seq takes its place", type(trainer.data_collator).__name__
        )
        trainer.data_collator = DataCollatorForSeq2Seq(tokenizer=tokenizer)
