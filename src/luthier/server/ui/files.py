"""Files of a run: what there is, and each as a download. Links are not followed."""

from __future__ import annotations

import json
import os
import re
import stat
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import quote

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, StreamingResponse

from luthier.server.ui.failures import Refused
from luthier.server.ui.roots import open_below
from luthier.server.ui.run_detail import folder_of
from luthier.server.ui.said import REPORTED, said_within
from luthier.server.ui.shapes.runs import FileEntry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from luthier.server.ui.state import State

MOST_FILES = 5000
PART_BYTES = 256 << 10
REPORT, LARGEST_REPORT_BYTES = "verify.json", 4 << 20
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


def routes(state: State) -> APIRouter:
    """Return the routes of files."""
    router = APIRouter(tags=["runs"])

    @router.get("/runs/{id}/files", summary="Files of a run")
    def files(id: str) -> list[FileEntry]:
        if not folder_of(state, id).is_dir():
            return []  # it waits for its turn
        folder = state.roots.open_run(id)
        try:
            return list_files(folder)
        finally:
            os.close(folder)

    @router.get("/runs/{id}/files/{path:path}", summary="Download a file", response_class=Response)
    async def download(id: str, path: str, request: Request) -> Response:
        descriptor = await run_in_threadpool(_open, state, id, path)
        if path.endswith(REPORT) and request.headers.get("accept") == "application/json":
            return await run_in_threadpool(_report, os.fdopen(descriptor, "rb"))
        return _reply(os.fdopen(descriptor, "rb"), path, request.headers.get("range", ""))

    return router


def _open(state: State, id: str, path: str) -> int:
    folder = state.roots.open_run(id)
    try:
        return open_below(folder, path)
    finally:
        os.close(folder)


def list_files(folder: int) -> list[FileEntry]:
    """Return the plain files below a folder, given by its descriptor, by path; at most `MOST_FILES`."""
    found: list[FileEntry] = []
    for place, folders, names, inner in os.fwalk(".", dir_fd=folder):
        folders.sort()
        for name in sorted(names):
            try:
                facts = os.stat(name, dir_fd=inner, follow_symlinks=False)
            except FileNotFoundError:
                continue  # gone meanwhile
            if stat.S_ISREG(facts.st_mode):
                shown = os.path.normpath(os.path.join(place, name)).encode("utf-8", "replace").decode()
                found.append(FileEntry(path=shown, bytes=facts.st_size, modified=facts.st_mtime))
        if len(found) >= MOST_FILES:
            break
    return sorted(found[:MOST_FILES], key=lambda each: each.path)


def _report(file: BinaryIO) -> Response:
    """Return what a verification found, in the language of the request. Raises Refused for a damaged one."""
    with file:
        text = file.read(LARGEST_REPORT_BYTES)
    try:
        return JSONResponse(said_within(json.loads(text), REPORTED))
    except (ValueError, RecursionError) as error:
        raise Refused(422, "file_damaged", f"{REPORT} is missing or damaged") from error


def _reply(file: BinaryIO, path: str, asked: str) -> Response:
    size = os.fstat(file.fileno()).st_size
    begin, end = _between(asked, size)
    name = path.rpartition("/")[2]
    plain = "".join(c if c.isascii() and c.isprintable() and c not in '"\\' else "_" for c in name)
    headers = {
        "content-disposition": f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}",
        "content-length": str(end - begin),
        "accept-ranges": "bytes",
    }
    if asked:
        headers["content-range"] = f"bytes {begin}-{end - 1}/{size}"
    parts = _parts(file, begin, end)
    return StreamingResponse(parts, 206 if asked else 200, headers, "application/octet-stream")


def _between(asked: str, size: int) -> tuple[int, int]:
    """Return first byte and the one behind the last. Raises Refused (416) for what is no part of the file."""
    if not asked:
        return 0, size
    found = _RANGE.fullmatch(asked.strip())
    first, last = found.groups() if found is not None else ("", "")
    if first:
        begin, end = int(first), min(int(last) + 1, size) if last else size
    else:
        begin, end = max(0, size - int(last or 0)), size
    if begin >= end:
        raise Refused(
            416, "range", f"one part of {size} bytes: bytes=FIRST-LAST", headers={"Content-Range": f"bytes */{size}"}
        )
    return begin, end


async def _parts(file: BinaryIO, begin: int, end: int) -> AsyncIterator[bytes]:
    with file:
        while begin < end:
            data = await run_in_threadpool(os.pread, file.fileno(), min(PART_BYTES, end - begin), begin)
            if not data:
                return
            begin += len(data)
            yield data
