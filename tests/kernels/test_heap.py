"""Free pages go back to the system when a process has grown, and only then."""

import pytest

from luthier.kernels import cpu


class Libc:
    trimmed = 0

    def malloc_trim(self, pad: int) -> None:
        self.trimmed += 1


def test_pages_go_back_when_the_process_has_grown(monkeypatch: pytest.MonkeyPatch) -> None:
    libc, sizes = Libc(), iter([100, 124, 90, 126, 80, 99, 101])
    monkeypatch.setattr(cpu, "_glibc", lambda: libc)
    monkeypatch.setattr(cpu, "_resident_bytes", lambda: next(sizes))
    heap = cpu.Heap(growth=1.25)
    # 126 is above 1.25 * 100; then 80 is the usual size, and 101 above 1.25 * 80.
    assert [heap.tidy() for _ in range(7)] == [False, False, False, True, False, False, True]
    assert libc.trimmed == 2


def test_other_systems_have_nothing_to_give_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_glibc", lambda: None)
    assert not cpu.Heap().tidy()
