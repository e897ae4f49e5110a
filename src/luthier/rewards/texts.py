"""What rewards read: columns of the row, and the part of an answer that counts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luthier.core.errors import DataError
from luthier.core.log import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from luthier.core.types import Answer, Example


def column(example: Example, name: str) -> object:
    """Return a column of the row. Raises DataError naming it and those that are there."""
    if name not in example.extra:
        there = ", ".join(printable(each, 40) for each in list(example.extra)[:20]) or "no columns"
        where = f"{example.origin} " if example.origin else "the row "
        raise DataError(
            f"a reward needs the column {name!r}, but {where}has {there}; "
            "set the reward's column, or rename the column in the data",
            code="reward_column",
        )
    return example.extra[name]


def text_column(example: Example, name: str) -> str | None:
    """Return a column as text; None where it is empty in this row."""
    value = column(example, name)
    return None if value is None else str(value)


def after_last(text: str, markers: Sequence[str]) -> str | None:
    """Return what stands behind the last marker, the whole text if there are no markers, None if none occurs.

    >>> after_last("3 + 4 #### 7", ["####", "Answer:"])
    ' 7'
    """
    if not markers:
        return text
    ends = [place + len(marker) for marker in markers if (place := text.rfind(marker)) >= 0]
    return text[max(ends) :] if ends else None


def last_between(text: str, opening: str, closing: str) -> str | None:
    """Return what the last pair of marks encloses.

    >>> last_between("<a>1</a> <a>2</a>", "<a>", "</a>")
    '2'
    """
    end = text.rfind(closing)
    start = text.rfind(opening, 0, end) if end >= 0 else -1
    return text[start + len(opening) : end] if start >= 0 else None


def last_block(text: str, languages: Sequence[str] = ()) -> str | None:
    """Return the last ``` block, one of these languages if there is any; None without a block that is closed.

    >>> last_block("```python\\nf()\\n```\\nIt prints\\n```\\n1\\n```", ["python"])
    'f()\\n'
    """
    parts = text.split("```")
    blocks = [part.partition("\n") for part in parts[1:-1:2]]
    named = [body for head, _, body in blocks if head.strip().lower() in languages]
    return named[-1] if named else next((body for _, end, body in reversed(blocks) if end), None)


def last_boxed(text: str) -> str | None:
    r"""Return what stands in the last \boxed{...}, braces inside it balanced.

    >>> last_boxed(r"so \boxed{\frac{1}{2}}.")
    '\\frac{1}{2}'
    """
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    start += len("\\boxed{")
    depth = 1
    for place in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[start:place]
    return None


def last_turn(answer: Answer) -> str:
    """Return what the model said last."""
    said = [turn.content for turn in answer.turns if turn.role == "assistant"]
    return said[-1] if said else answer.completion.text
