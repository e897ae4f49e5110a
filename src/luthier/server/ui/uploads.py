"""Files that come over the wire: streamed to a name of our own, looked at, and given theirs when they are whole."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
import unicodedata
import uuid
from contextlib import suppress
from hashlib import sha256
from pathlib import PurePath
from typing import TYPE_CHECKING

from anyio import to_thread
from fastapi import APIRouter, Request
from starlette.requests import ClientDisconnect

from luthier.core.log import printable
from luthier.core.paths import write_whole
from luthier.data.registry_file import REGISTRY_FILE
from luthier.server.ui.failures import Refused, missing
from luthier.server.ui.sets import is_name, shelf_of
from luthier.server.ui.shapes.common import Ok
from luthier.server.ui.shapes.data import DataSet

if TYPE_CHECKING:
    from pathlib import Path

    from luthier.server.ui.roots import Roots
    from luthier.server.ui.state import State

TYPES = (".json", ".jsonl", ".csv", ".parquet", ".txt")
NAMES = ".names.json"
"""Slug -> the name that a person gave the file."""
PART = ".part-"
STALE_SECONDS = 600.0
"""A part that nobody has written to for so long is of a server that was killed."""
ROOM_BYTES = 8 << 20
"""After so many bytes the disk is looked at again."""
LONGEST_NAME = 200
SPARE_SHARE, SPARE_BYTES = 0.05, 50_000_000
"""Of the disk, so much stays free."""
_MAGIC = {
    b"PAR1": "a parquet file", b"PK\x03\x04": "a zip archive (or a spreadsheet)", b"\x1f\x8b": "a gzip archive",
    b"%PDF": "a PDF", b"\x28\xb5\x2f\xfd": "a zstandard archive", b"SQLite": "a database", b"\x89PNG": "a picture",
    b"\xff\xfe": "text in UTF-16; convert it with iconv -f UTF-16 -t UTF-8",
    b"\xfe\xff": "text in UTF-16; convert it with iconv -f UTF-16 -t UTF-8",
}  # fmt: skip
_BEGINS = {".json": (b"[", b"{"), ".jsonl": (b"{",)}
_LOOKED_AT = 4096


def display_names(roots: Roots) -> dict[str, str]:
    """Return what uploaded files are called by people, by the names on the disk."""
    try:
        found = json.loads((roots.uploads / NAMES).read_text(encoding="utf-8"))
        return {str(slug): str(name) for slug, name in found.items()}
    except (OSError, ValueError, AttributeError):
        return {}


def slug_of(name: str) -> str:
    """Return the name on the disk for a file that a person calls `name`. Raises Refused for what is no name of rows.

    >>> slug_of("My rows (2).JSONL")
    'My-rows-2.jsonl'
    """
    base = PurePath(unicodedata.normalize("NFC", name).replace("\\", "/")).name
    path = PurePath(base)
    suffix = path.suffix.lower()
    if base != name and "/" in name.replace("\\", "/"):
        raise Refused(400, "upload_name", f"{printable(name)}: a file name without folders is needed", field="name")
    if not base or len(name) > LONGEST_NAME or not name.isprintable():
        raise Refused(400, "upload_name", f"{printable(name)} cannot be a file name", field="name")
    if suffix not in TYPES:
        said = f"{printable(name)}: files may be {', '.join(TYPES)}"
        raise Refused(415, "upload_type", said, field="name")
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("-.")[:80]
    if not stem or stem.lower() in ("con", "nul", "prn", "aux"):
        stem = f"data-{sha256(name.encode()).hexdigest()[:8]}"
    slug = f"{stem}{suffix}"
    return slug if slug != REGISTRY_FILE else f"uploaded-{REGISTRY_FILE}"


def check_content(start: bytes, name: str) -> None:
    """Raise Refused (415) when the first bytes of a file are not what its name says."""
    suffix = PurePath(name).suffix.lower()
    kind = next((what for magic, what in _MAGIC.items() if start.startswith(magic)), None)
    if suffix == ".parquet":
        if not start.startswith(b"PAR1"):
            raise Refused(415, "upload_type", f"{printable(name)} is no parquet file: it begins with {start[:4]!r}")
        return
    if kind is not None or b"\0" in start:
        raise Refused(415, "upload_type", f"{printable(name)} is {kind or 'no text: it holds bytes of zero'}")
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text and suffix in _BEGINS and not text.startswith(_BEGINS[suffix]):
        wanted = " or ".join(each.decode() for each in _BEGINS[suffix])
        found = printable(text[:10].decode("utf-8", "replace"))
        raise Refused(415, "upload_type", f"{printable(name)}: {suffix} begins with {wanted}, this begins with {found}")


def check_room(folder: Path, size: int) -> None:
    """Raise Refused (507) when a file of `size` bytes would fill the disk."""
    usage = shutil.disk_usage(folder)
    spare = min(int(usage.total * SPARE_SHARE), SPARE_BYTES)
    if size + spare > usage.free:
        asked = f"; the file has {size}" if size else ""
        raise Refused(507, "disk_full", f"the disk has {usage.free} bytes free{asked}; {spare} are to stay free")


def sweep(folder: Path) -> None:
    """Remove what uploads of servers that were killed have left."""
    for path in folder.glob(f"{PART}*"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > STALE_SECONDS:
                path.unlink()


async def receive(request: Request, target: Path, name: str, most: int) -> None:
    """Stream the body of a request to `target`, whole or not at all. Raises Refused."""
    declared = request.headers.get("content-length", "")
    expected = int(declared) if declared.isdecimal() else None
    if (expected or 0) > most:
        raise _too_large(most)
    if target.exists():
        raise _there(target)
    await to_thread.run_sync(check_room, target.parent, expected or 0)
    temporary = target.parent / f"{PART}{uuid.uuid4().hex}"
    try:
        received = await _stream(request, temporary, name, most)
        if expected is not None and received != expected:
            raise Refused(400, "upload_cut_off", f"{received} of {expected} bytes arrived; send it again")
        await to_thread.run_sync(_give_name, temporary, target)
    except ClientDisconnect as error:
        raise Refused(400, "upload_cut_off", "the upload was cut off; nothing was kept") from error
    except OSError as error:
        raise Refused(507, "disk_full", f"the file could not be written: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)


async def _stream(request: Request, temporary: Path, name: str, most: int) -> int:
    received, start = 0, b""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(temporary, flags, 0o600), "wb") as file:
        async for chunk in request.stream():
            if len(start) < _LOOKED_AT:
                start += chunk[: _LOOKED_AT - len(start)]
                check_content(start, name) if len(start) >= 8 else None
            received += len(chunk)
            if received > most:
                raise _too_large(most)
            if received // ROOM_BYTES > (received - len(chunk)) // ROOM_BYTES:
                await to_thread.run_sync(check_room, temporary.parent, 0)  # no size was told, or others write, too
            await to_thread.run_sync(file.write, chunk)
        if not received:
            raise Refused(400, "upload_empty", f"{printable(name)} holds no bytes")
        check_content(start, name)
        await to_thread.run_sync(_flush, file.fileno(), file.flush)
    return received


def _flush(descriptor: int, flush: object) -> None:
    flush()  # pyright: ignore[reportCallIssue]
    os.fsync(descriptor)


def _give_name(temporary: Path, target: Path) -> None:
    try:
        os.link(temporary, target)  # unlike a rename it never replaces a file
    except FileExistsError:
        raise _there(target) from None


def _there(target: Path) -> Refused:
    return Refused(
        409, "upload_exists", f"a file called {target.name} is there already; rename yours, or delete that one"
    )


def _too_large(most: int) -> Refused:
    return Refused(413, "upload_too_large", f"a file may have {most} bytes; keep it in a data folder instead (--data)")


def forget(roots: Roots, name: str) -> None:
    """Remove an uploaded file, its name and its entries. Raises Refused where there is none."""
    path = roots.uploads / name
    if not is_name(name) or path.is_symlink() or not path.is_file() or name == REGISTRY_FILE:
        raise missing("upload", name)
    entries = dict(shelf_of(roots, roots.uploads).entries)
    left = {
        key: entry for key, entry in entries.items() if not (isinstance(entry, dict) and entry.get("file_name") == name)
    }
    if left != entries:
        write_whole(roots.uploads / REGISTRY_FILE, json.dumps(left, ensure_ascii=False, indent=2) + "\n")
    names = display_names(roots)
    if names.pop(name, None) is not None:
        write_whole(roots.uploads / NAMES, json.dumps(names, ensure_ascii=False))
    path.unlink()


def routes(state: State) -> APIRouter:
    """Take files in, and remove them."""
    router = APIRouter(tags=["data"], prefix="/data/uploads")
    sweep(state.roots.uploads)

    @router.put("/{name}", summary="Upload a file of rows; the body is the file", response_model=DataSet)
    async def upload(name: str, request: Request) -> DataSet:
        from luthier.server.ui.data import list_sets

        roots = state.roots
        slug = slug_of(name)
        roots.uploads.mkdir(mode=0o700, parents=True, exist_ok=True)
        sweep(roots.uploads)
        await receive(request, roots.uploads / slug, name, state.max_upload_bytes)
        if slug != name:
            names = {**display_names(roots), slug: name}
            write_whole(roots.uploads / NAMES, json.dumps(names, ensure_ascii=False))
        listed = await to_thread.run_sync(list_sets, roots)
        return next(each for each in listed.datasets if each.uploaded and each.name == slug)

    @router.delete("/{name}", summary="Remove an uploaded file")
    def remove(name: str) -> Ok:
        forget(state.roots, name)
        return Ok()

    return router
