"""The folders that the page may read, and the one way to a file in them: links resolved, nothing outside."""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from luthier.core.log import printable
from luthier.runs.job_files import OWN
from luthier.runs.trash import is_one_name
from luthier.server.ui.failures import Refused, missing, of_system

if TYPE_CHECKING:
    from collections.abc import Sequence

EXAMPLE = Path(__file__).resolve().parent / "example"
"""A small data set that comes with luthier, so that there is something to begin with."""
Which = Literal["runs", "data", "models"]


@dataclass(frozen=True)
class Roots:
    """Declared on the command line; nothing on the page changes them."""

    runs: Path
    data: tuple[Path, ...] = ()
    models: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "runs", self.runs.expanduser().resolve())
        for name in ("data", "models"):
            object.__setattr__(self, name, tuple(each.expanduser().resolve() for each in getattr(self, name)))

    def as_dict(self) -> dict[str, Any]:
        """Return what `from_dict` reads, in another process."""
        return {"runs": str(self.runs), "data": list(map(str, self.data)), "models": list(map(str, self.models))}

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Roots:
        """Read what `as_dict` wrote."""
        return cls(Path(plain["runs"]), *(tuple(map(Path, plain[name])) for name in ("data", "models")))

    @property
    def uploads(self) -> Path:
        """Return the folder of uploaded rows, a data root of its own."""
        return self.runs / OWN / "uploads"

    def of(self, which: Which) -> tuple[Path, ...]:
        """Return the folders of a kind, resolved."""
        data, models = (self.uploads, *self.data, EXAMPLE), (*self.models, self.runs)
        table = {"runs": (self.runs,), "data": data, "models": models}
        return table[which]

    def inside(self, path: str | Path, which: Which) -> Path:
        """Return the resolved path of something below the roots of a kind; a relative one is looked for in each.

        It need not exist. Raises Refused (403) where it leads elsewhere, be it through a link.
        """
        text = os.fspath(path)
        if not text or "\0" in text:
            raise Refused(403, "path_outside", "a path without characters that cannot be in one is needed")
        given = Path(text)
        candidates = [given] if given.is_absolute() else [root / given for root in self.of(which)]
        allowed = [found for each in candidates if (found := self._resolved(each, which)) is not None]
        existing = [each for each in allowed if each.exists()]
        if not allowed:
            roots = ", ".join(map(str, self.of(which)))
            raise Refused(403, "path_outside", f"{printable(text)} is not below the {which} folders: {roots}")
        return (existing or allowed)[0]

    def _resolved(self, path: Path, which: Which) -> Path | None:
        try:
            found = path.resolve()
        except (OSError, RuntimeError, ValueError):
            return None
        return found if any(found.is_relative_to(root) for root in self.of(which)) else None

    def run(self, name: str) -> Path:
        """Return the folder of a run by its id. Raises Refused (404) where there is none of that name.

        The id is one name below the runs root; a link is followed only where it stays below the root.
        """
        if not is_one_name(name) or not name.isprintable() or not (self.runs / name).is_dir():
            raise missing("run", name)
        path = self.runs / name
        if not path.resolve().is_relative_to(self.runs):
            raise missing("run", name)
        return path

    def open_run(self, name: str) -> int:
        """Open the folder of a run; return its descriptor. Raises Refused as `run` does, and as `open_folder`."""
        return self.open_folder(self.run(name).resolve(), "runs")

    def open_folder(self, path: Path, which: Which = "data") -> int:
        """Open a folder that `inside` has found; return its descriptor.

        Raises Refused (403) where a link has come to lie on the way since.
        """
        root, parts = self._split(path, which)
        return _open_folders(root, parts, path.name)

    def open_data(self, path: Path) -> int:
        """Open a plain file of a data folder that `inside` has found; return its descriptor.

        Raises Refused: 404 where there is none, 403 where it is none, or a link has come to lie on the way since.
        """
        root, parts = self._split(path, "data")
        return _open_file(root, parts, path.name)

    def _split(self, path: Path, which: Which) -> tuple[Path, tuple[str, ...]]:
        root = next((root for root in self.of(which) if path.is_relative_to(root)), None)
        if root is None or ".." in path.parts:
            raise Refused(403, "path_outside", f"{printable(path)} is not below the {which} folders")
        if root == self.uploads:  # named by nobody: of its own path only the runs folder is to be trusted
            root = self.runs
        return root, path.relative_to(root).parts


def open_below(root: Path | int, relative: str) -> int:
    """Open a plain file below a folder for reading without following a link; return its descriptor.

    `root`: the folder, or its descriptor, which stays open. Raises Refused: 404 where there is no such file, 403 for
    links, devices, pipes, and whatever leads out; what `of_system` says of a machine that cannot open it.
    """
    parts = relative.split("/")
    if "\0" in relative or "\\" in relative or any(part in ("", ".", "..") for part in parts):
        raise Refused(403, "path_outside", f"{printable(relative)} is no path below this folder")
    return _open_file(root, parts, relative)


_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC


def _open_file(root: Path | int, parts: Sequence[str], shown: str) -> int:
    folder = _open_folders(root, parts[:-1], shown)
    try:
        # A pipe would keep the one who opens it waiting.
        found = os.open(parts[-1] if parts else ".", _READ | os.O_NONBLOCK, dir_fd=folder)
    except OSError as error:
        raise _refusal(error, shown) from error
    finally:
        os.close(folder)
    if not stat.S_ISREG(os.fstat(found).st_mode):
        os.close(found)
        raise Refused(403, "path_kind", f"{printable(shown)} is no plain file")
    return found


def _open_folders(root: Path | int, parts: Sequence[str], shown: str) -> int:
    """Open a folder below a folder, one name at a time, so that none of them may be a link."""
    try:
        folder = os.dup(root) if isinstance(root, int) else os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise _refusal(error, shown) from error
    try:
        for part in parts:
            inner = os.open(part, _READ | os.O_DIRECTORY, dir_fd=folder)
            os.close(folder)
            folder = inner
    except OSError as error:
        os.close(folder)
        raise _refusal(error, shown) from error
    return folder


def _refusal(error: OSError, relative: str) -> Refused:
    if error.errno in (errno.ELOOP, errno.ENXIO, errno.EACCES, errno.EPERM):
        return Refused(403, "path_kind", f"{printable(relative)} is a link, or not to be read")
    if error.errno == errno.ENOTDIR:
        return Refused(403, "path_kind", f"{printable(relative)} leads through what is no folder")
    return missing("file", relative) if error.errno == errno.ENOENT else of_system(error)
