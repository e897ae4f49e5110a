"""What a person says about a run, in notes.json beside it: name, notes, tags, pinned, archived."""

from __future__ import annotations

import fcntl
import json
import os
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, cast

from luthier.core.errors import RunError
from luthier.core.log import printable
from luthier.core.paths import write_whole

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable
    from pathlib import Path

FILE = "notes.json"
MOST_NAME, MOST_NOTES, MOST_TAG, MOST_TAGS = 200, 20_000, 64, 50
"""Characters of a name, of notes and of a tag, and how many tags a run may have."""


@dataclass(frozen=True, slots=True)
class Notes:
    """What stands in notes.json."""

    name: str = ""
    """Empty where the run keeps the name that it was started with."""
    notes: str = ""
    tags: tuple[str, ...] = ()
    pinned: bool = False
    archived: bool = False


_KINDS: dict[str, type] = {"name": str, "notes": str, "pinned": bool, "archived": bool}


def read(run: Path) -> Notes:
    """Return the notes of a run; none where there are none, and what is damaged is left out."""
    try:
        plain: Any = json.loads((run / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return Notes()
    if not isinstance(plain, dict):
        return Notes()
    found = cast("dict[str, Any]", plain)
    kept = {key: found[key] for key, kind in _KINDS.items() if isinstance(found.get(key), kind)}
    tags = cast("list[Any]", found["tags"]) if isinstance(found.get("tags"), list) else []
    return Notes(**kept, tags=tuple(tag for tag in tags if isinstance(tag, str)))


def change(run: Path, **changes: Any) -> Notes:
    """Replace what is named (name, notes, tags, pinned, archived) and return all of it.

    Two changes at once are both kept. Raises RunError for a run that is not there, and for text that cannot be a name
    or a tag.
    """
    wanted = checked(**changes)
    with _held(run):
        notes = replace(read(run), **wanted)
        write_whole(run / FILE, json.dumps(asdict(notes), indent=1, ensure_ascii=False))
    return notes


def checked(**changes: Any) -> dict[str, Any]:
    """Return what would be noted, as it is kept. Raises RunError for what cannot be a name, notes or a tag."""
    return {key: _checked(key, value) for key, value in changes.items()}


def tidy_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """Return tags as they are kept: without blanks around them, each once. Raises RunError where one cannot be kept.

    >>> tidy_tags([" a ", "b", "a", ""])
    ('a', 'b')
    """
    found = tuple(dict.fromkeys(tag.strip() for tag in tags if tag.strip()))
    for tag in found:
        _refuse_controls("a tag", tag)
        if len(tag) > MOST_TAG:
            raise RunError(f"a tag has at most {MOST_TAG} characters; {printable(tag)} has {len(tag)}", code="notes")
    if len(found) > MOST_TAGS:
        raise RunError(f"a run has at most {MOST_TAGS} tags; {len(found)} were given", code="notes")
    return found


def _checked(key: str, value: Any) -> Any:
    if key == "tags":
        return tidy_tags(value)
    if key not in {each.name for each in fields(Notes)} or not isinstance(value, _KINDS[key]):
        raise RunError(f"{key}: {printable(value)} cannot be noted of a run", code="notes")
    if key == "name":
        text = str(value).strip()
        _refuse_controls("a name", text)
        if len(text) > MOST_NAME:
            raise RunError(f"a name has at most {MOST_NAME} characters; this one has {len(text)}", code="notes")
        return text
    if key == "notes" and len(str(value)) > MOST_NOTES:
        raise RunError(f"notes have at most {MOST_NOTES} characters; these have {len(str(value))}", code="notes")
    return value


def _refuse_controls(what: str, text: str) -> None:
    # Right-to-left overrides and the like show another text than the one that is there.
    if any(not c.isprintable() for c in text):
        raise RunError(f"{what} has no control or bidirectional characters; found {printable(text)}", code="notes")


@contextmanager
def _held(run: Path) -> Generator[None]:
    try:
        folder = os.open(run, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        raise RunError(f"{run} is not there (any more)", code="run_missing") from None
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)
