"""Every prediction stands where its segment would make it, whatever is shared and however rows are grouped."""

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import segment
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.core.paths import replacing
from luthier.core.types import Segment
from luthier.data import store as store_module
from luthier.data.loader import Layout, MapLoader
from luthier.data.pack import MIN_SHARED_TOKENS, pack, plan_batches
from luthier.data.store import StoreBuilder, UnitStore

TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=40)


@st.composite
def segments(draw: Callable[[Any], Any]) -> list[Segment]:
    found = []
    for _ in range(draw(st.integers(1, 6))):
        prefix = draw(st.sampled_from([[], [1] * 20, [1] * 20 + [2] * 18]))
        tokens = [*prefix, *draw(TOKENS)]
        weight = draw(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=len(tokens), max_size=len(tokens)))
        numbers = [float(i) for i in range(len(tokens))]
        found.append(Segment(tokens=tokens, weight=weight, streams={"place": numbers}, tags={"kind": len(found)}))
    return found


@settings(max_examples=150, deadline=None)
@given(segments())
def test_each_prediction_sees_exactly_its_own_prefix(found: list[Segment]) -> None:
    batch = pack([[s] for s in found])
    visible = batch.spans.visible()
    n = 0
    for number, s in enumerate(found):
        for i in range(1, len(s.tokens)):
            if not s.weight[i]:
                continue
            row = int(batch.rows[n])
            seen = torch.nonzero(visible[row])[:, 0]
            order = batch.position_ids[seen].argsort()
            assert batch.input_ids[seen][order].tolist() == s.tokens[:i]
            assert batch.position_ids[seen][order].tolist() == list(range(i))
            assert (int(batch.targets[n]), float(batch.weight[n])) == (s.tokens[i], s.weight[i])
            assert (int(batch.segment_ids[n]), float(batch.streams["place"][n])) == (number, float(i))
            n += 1
    assert n == len(batch.rows) == len(batch.targets)
    assert batch.segment_tokens == sum(len(s.tokens) for s in found)
    assert batch.tags["kind"].tolist() == list(range(len(found)))


def test_shared_prompt_is_computed_once() -> None:
    prompt = list(range(100, 160))
    unit = [segment(0, 10, seed, prefix=prompt) for seed in range(4)]
    batch = pack([unit])
    assert batch.num_tokens == 60 + 4 * 9
    assert batch.spans.parent == (-1, 0, 0, 0, 0)
    assert pack([[unit[0]], [segment(0, 10, 9, prefix=prompt[: MIN_SHARED_TOKENS - 1])]]).spans.parent == (-1, -1)


def test_what_is_set_aside_is_a_batch_of_its_own() -> None:
    prompt = list(range(100, 130))
    units = [[segment(0, 4, seed, prefix=prompt), replace(segment(0, 6, 9 + seed, prefix=prompt), aside=True)] for seed in (1, 2)]  # fmt: skip
    batch = pack(units)
    alone = pack([[unit[0]] for unit in units]), pack([[replace(unit[1], aside=False)] for unit in units])
    assert batch.aside is not None
    for part, expected in ((replace(batch, aside=None), alone[0]), (batch.aside, alone[1])):
        for each in fields(expected):
            found, wanted = getattr(part, each.name), getattr(expected, each.name)
            assert torch.equal(found, wanted) if isinstance(wanted, torch.Tensor) else found == wanted
    assert pack([units[0][:1]]).aside is None
    assert batch.segment_tokens == 2 * 34


def test_a_rank_without_rows_has_nothing_aside_either() -> None:
    unit = [segment(2, 4), replace(segment(2, 6, 9), aside=True)]
    for rank in (0, 1):
        (batch,) = Layout(rows_per_batch=1, rank=rank, num_ranks=2).share([[unit]])
        assert batch.aside is not None
        assert (batch.num_segments, batch.aside.num_segments) == ((1, 1) if rank == 0 else (0, 0))
        assert (len(batch.aside.rows), batch.aside.num_tokens) == ((6, 7) if rank == 0 else (0, 7))


def test_nothing_is_computed_behind_the_last_prediction() -> None:
    s = Segment(tokens=[1, 2, 3, 4, 5], weight=[0, 0, 1, 0, 0])
    batch = pack([[s]])
    assert batch.input_ids.tolist() == [1, 2]
    assert batch.targets.tolist() == [3]
    assert pack([[Segment(tokens=[1, 2], weight=[0, 0])]]).num_tokens == 0


@given(st.lists(st.integers(1, 30), min_size=1, max_size=50), st.integers(1, 9), st.none() | st.integers(5, 60))
def test_plan_keeps_every_row_once_and_in_order(lengths: list[int], rows: int, fill: int | None) -> None:
    batches = plan_batches(lengths, rows, fill)
    assert [row for batch in batches for row in batch] == list(range(len(lengths)))
    for batch in batches:
        assert batch
        assert len(batch) <= rows if fill is None else len(batch) == 1 or sum(lengths[i] for i in batch) <= fill


def store(sizes: list[int]) -> UnitStore:
    builder, number = StoreBuilder(), 0
    for index, size in enumerate(sizes):
        for _ in range(size):
            builder.add([Segment(tokens=[number, number, 1], weight=[0, 1, 1], origin=str(number))], index)
            number += 1
    return builder.build()


def rows_of(loader: MapLoader, epoch: int = 0) -> list[int]:
    return [row for window in loader.plan(epoch) for batch in window for row in batch]


def test_epochs_are_different_orders_of_the_same_rows() -> None:
    units = store([23])
    loader = MapLoader(units, np.arange(23), Layout(rows_per_batch=4, batches_per_window=2), seed=3)
    first, second = rows_of(loader), rows_of(loader, 1)
    assert sorted(first) == sorted(second) == list(range(23))
    assert first != second
    assert first == rows_of(MapLoader(units, np.arange(23), Layout(rows_per_batch=4), seed=3))


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_ranks_share_every_row_and_never_starve(ranks: int) -> None:
    units = store([11])
    seen: list[str] = []
    counts = []
    for rank in range(ranks):
        loader = MapLoader(units, np.arange(11), Layout(rows_per_batch=2, rank=rank, num_ranks=ranks), seed=1)
        batches = list(loader.batches())
        counts.append(len(batches))
        seen += [origin for batch in batches if len(batch.rows) for origin in batch.origins]
    assert sorted(map(int, seen)) == list(range(11))
    assert len(set(counts)) == 1


def test_mixing_by_weight() -> None:
    units = store([200, 40])
    layout = Layout(rows_per_batch=1)
    options = {"seed": 5, "probabilities": (0.5, 0.5)}
    under = rows_of(MapLoader(units, np.arange(240), layout, mix="interleave_under", **options))
    over = rows_of(MapLoader(units, np.arange(240), layout, mix="interleave_over", **options))
    assert len([r for r in under if r >= 200]) == 40
    assert 15 <= len([r for r in under if r < 200]) <= 70
    assert set(over) == set(range(240))
    assert len([r for r in over if r >= 200]) > 120


def test_two_processes_may_save_one_store_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second process writes the whole file between the first one's writing and its renaming."""
    path, real, other = tmp_path / "a.safetensors", store_module.save_file, iter([store([5, 4])])

    def interrupted(*arguments: Any) -> None:
        real(*arguments)
        for second in other:
            second.save(path, {"rows": 9})

    monkeypatch.setattr(store_module, "save_file", interrupted)
    store([5, 4]).save(path, {"rows": 9})
    assert len(UnitStore.load(path)[0]) == 9
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"before")
    with pytest.raises(FileNotFoundError), replacing(path) as failing:
        failing.unlink(missing_ok=False)  # a block that fails
    assert path.read_bytes() == b"before"
    with replacing(path) as temporary:
        temporary.write_bytes(b"after")
        assert path.read_bytes() == b"before"
    assert path.read_bytes() == b"after"
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def test_store_survives_the_disk(tmp_path: Path) -> None:
    units = store([5, 4])
    units.save(tmp_path / "a.safetensors", {"rows": 9})
    again, report = UnitStore.load(tmp_path / "a.safetensors")
    assert [again[i] for i in range(9)] == [units[i] for i in range(9)]
    assert report == {"rows": 9}
    assert again.lengths().tolist() == [3] * 9


def test_pairs_that_begin_alike_still_share_their_own_prompts() -> None:
    """All begin with the same three tokens, too few for a span; two by two they agree on many more."""
    prompts = [[1, 2, 3, *[token] * 20] for token in (4, 5)]
    units = [
        [Segment(tokens=[*prompt, *end], weight=[0.0] * 23 + [1.0] * 3)]
        for prompt in prompts
        for end in ([7, 8, 9], [8, 9, 7])
    ]
    batch = pack(units)
    assert batch.spans.parent == (-1, 0, 0, -1, 3, 3)
    assert batch.num_tokens == 2 * (23 + 2 * 2)
    assert batch.targets.tolist() == [7, 8, 9, 8, 9, 7] * 2
