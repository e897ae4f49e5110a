"""The frame of a GGUF file: good ones are read as others read them, bad ones are told, and nothing explodes."""

from __future__ import annotations

import random
import struct
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from damage import damaged

from luthier.export.verify.container import check_container, check_reread, read_container


@pytest.fixture
def good(file_of: Callable[[str], Path]) -> bytes:
    return file_of("f16").read_bytes()


def said(path: Path, data: bytes) -> str:
    """What the check says about a bad file."""
    path.write_bytes(data)
    check, container = check_container(path)
    assert check.passed is False
    assert container is None
    return check.found


@pytest.mark.parametrize("form", ["f32", "f16", "bf16", "q8_0", "q4_0"])
def test_good_files(form: str, file_of: Callable[[str], Path]) -> None:
    check, container = check_container(file_of(form))
    assert check.passed is True, check
    assert check_reread(container).passed is True
    assert container.architecture == "llama"
    assert container.get("{arch}.block_count") == 2


def test_a_file_that_is_cut_off_anywhere(good: bytes, tmp_path: Path) -> None:
    length = len(good)
    for size in [0, 3, 4, 7, 12, 23, 24, 100, 1000, length // 2, length - 64, length - 1]:
        said(tmp_path / "cut.gguf", good[:size])


def test_a_flipped_bit_in_the_header_never_breaks_the_reader(
    good: bytes, file_of: Callable[[str], Path], tmp_path: Path
) -> None:
    draw = random.Random(1)
    header = min(t.start for t in read_container(file_of("f16")).tensors.values())
    path = tmp_path / "flipped.gguf"
    told = 0
    tracemalloc.start()
    for _ in range(150):
        data = bytearray(good)
        place = draw.choice([draw.randrange(24), draw.randrange(header)])
        data[place] ^= 1 << draw.randrange(8)
        path.write_bytes(bytes(data))
        check, _ = check_container(path)
        told += check.passed is False
        assert check.found
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert told > 40
    assert peak < 20 * len(good)


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (0, b"GGML", "GGUF"),
        (4, struct.pack("<I", 99), "version"),
        (4, struct.pack(">I", 3), "version"),
        (8, struct.pack("<Q", 2**60), "tensors"),
        (16, struct.pack("<Q", 2**60), "values"),
        (24, struct.pack("<Q", 2**40), "bytes"),
    ],
)
def test_numbers_that_cannot_be(place: int, value: bytes, words: str, good: bytes, tmp_path: Path) -> None:
    data = good[:place] + value + good[place + len(value) :]
    assert words in said(tmp_path / "bad.gguf", data)


def test_bytes_behind_the_last_tensor(good: bytes, tmp_path: Path) -> None:
    assert "belong to nothing" in said(tmp_path / "long.gguf", good + bytes(64))


def moved(file: Path, name: str, other: str) -> bytes:
    """The file with the place of one tensor set to that of another."""
    container, data = read_container(file), bytearray(file.read_bytes())
    begin = min(t.start for t in container.tensors.values())
    head = data.index(struct.pack("<Q", len(name)) + name.encode())
    place = head + 8 + len(name) + 4 + 8 * len(container.tensors[name].shape) + 4
    struct.pack_into("<Q", data, place, container.tensors[other].start - begin)
    return bytes(data)


def test_tensors_that_overlap(file_of: Callable[[str], Path], tmp_path: Path) -> None:
    data = moved(file_of("f32"), "blk.0.ffn_up.weight", "blk.0.ffn_gate.weight")
    assert "overlaps" in said(tmp_path / "overlap.gguf", data)


def test_the_gguf_package_must_see_the_same(file_of: Callable[[str], Path], tmp_path: Path) -> None:
    container = read_container(file_of("f16"))
    other = damaged(file_of("f16"), tmp_path / "other.gguf", values={"llama.vocab_size": None})
    check = check_reread(replace(container, path=other))
    assert check.passed is False
    assert "differ" in check.found
