"""Names of files that come over the wire: below the declared folders, or refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.server.ui.failures import Refused
from luthier.server.ui.roots import Roots


@pytest.fixture
def roots(tmp_path: Path) -> Roots:
    """Folders with a neighbour that begins with the same letters, and links that lead out, around, and nowhere."""
    for each in ("runs/a", "data/inner", "data_evil", "models", "elsewhere"):
        (tmp_path / each).mkdir(parents=True)
        (tmp_path / each / "x.jsonl").write_text("{}\n")
    (tmp_path / "data/out").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data/out.jsonl").symlink_to(tmp_path / "elsewhere/x.jsonl")
    (tmp_path / "data/round").symlink_to("round")
    (tmp_path / "data/within").symlink_to("inner")
    (tmp_path / "runs/out").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "runs/within").symlink_to("a")
    return Roots(tmp_path / "runs", (tmp_path / "data",), (tmp_path / "models",))


OUTSIDE = [
    "{}_evil", "{}_evil/x.jsonl", "{}/../data_evil", "../data_evil/x.jsonl", "{}/..", "..", "/", "/etc/passwd",
    "{}/out", "{}/out/x.jsonl", "{}/out.jsonl", "{}/within/../../elsewhere/x.jsonl", "", "a\0b", "{}\0",
    "/proc/self/environ", "/proc/self/root/etc/passwd", "inner/../../elsewhere", "{}/out/..",
]  # fmt: skip


@pytest.mark.parametrize("path", OUTSIDE)
def test_what_is_outside_is_refused(roots: Roots, path: str) -> None:
    with pytest.raises(Refused) as caught:
        roots.inside(path.format(roots.data[0]), "data")
    assert (caught.value.status, caught.value.code) == (403, "path_outside")


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("{}", ""), ("{}/x.jsonl", "x.jsonl"), ("inner/x.jsonl", "inner/x.jsonl"), ("within/x.jsonl", "inner/x.jsonl"),
        ("inner/../x.jsonl", "x.jsonl"), ("none.jsonl", "none.jsonl"), ("%2e%2e", "%2e%2e"), ("~", "~"),
        ("..\\x", "..\\x"), (".", ""), ("资料🎻.jsonl", "资料🎻.jsonl"),
    ],
)  # fmt: skip
def test_what_is_inside_is_found_without_links(roots: Roots, path: str, found: str) -> None:
    inside = roots.inside(path.format(roots.data[0]), "data")
    assert inside in (roots.data[0] / found, roots.uploads / found)


def test_folders_of_one_kind_are_not_those_of_another(roots: Roots) -> None:
    with pytest.raises(Refused):
        roots.inside(roots.models[0], "data")
    assert roots.inside(roots.runs / "a", "models") == roots.runs / "a"


@pytest.mark.parametrize("name", ["", ".", "..", ".luthier", "out", "none", "a/x.jsonl", "a/", "../data", "a\0", "\\"])
def test_what_is_no_run(roots: Roots, name: str) -> None:
    with pytest.raises(Refused) as caught:
        roots.run(name)
    assert (caught.value.status, caught.value.code) == (404, "run_missing")


def test_a_link_beside_its_run_is_one(roots: Roots) -> None:
    assert roots.run("within").resolve() == roots.run("a")
