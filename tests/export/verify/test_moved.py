"""What training changed is in a file: a forgotten merge is told from rounding, also of a base that was quantized before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from damage import red

from luthier.export.gguf import planned, write_gguf
from luthier.export.source import Source, Weight
from luthier.export.verify import verify_gguf
from luthier.export.verify.container import read_container
from luthier.export.verify.report import Check
from luthier.export.verify.tensors import check_moved, values_of

FileOf = Callable[[str], Path]


def tuned(source: Source, size: float) -> Source:
    """The model after a training that moved two weights a little."""
    weights = dict(source.weights)
    for i, name in enumerate(("model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.up_proj.weight")):
        old = weights[name].read()
        change = torch.randn(old.shape, generator=torch.Generator().manual_seed(i)) * size * old.std()
        weights[name] = Weight(tuple(old.shape), old.dtype, lambda new=old + change: new)
    return Source(source.name, source.facts, source.tokenizer, source.generation, weights)


@pytest.mark.parametrize(("form", "size"), [("f32", 1e-3), ("q8_0", 1e-2), ("q4_0", 5e-2)])
def test_a_forgotten_merge(form: str, size: float, source: Source, file_of: FileOf, tmp_path: Path) -> None:
    after = tuned(source, size)
    merged = write_gguf(after, tmp_path / "merged.gguf", form=form)
    plans = planned(after), planned(source)
    good = check_moved(read_container(merged), *plans)
    assert good.passed is True, good
    assert good.numbers["moved"] == 2
    bad = check_moved(read_container(file_of(form)), *plans)
    assert bad.passed is False, bad


def test_what_training_gained_stands_beside_what_a_form_costs(source: Source, tmp_path: Path) -> None:
    after = tuned(source, 0.3)
    pytest.importorskip("xllamacpp")
    pytest.importorskip("cyllama")
    report = verify_gguf(write_gguf(after, tmp_path / "tuned.gguf", form="q8_0"), after, base=source)
    assert red(report) == set(), report.table()
    assert report.not_done == ()
    # The rows are what the tuned model says: it thinks more of them than the base.
    assert {check.name: check.numbers for check in report.checks}["distance"]["trained_gain"] > 0


def test_a_tensor_that_was_left_out_of_a_merge(source: Source, tmp_path: Path) -> None:
    after = tuned(source, 1e-2)
    half = dict(after.weights) | {name: source.weights[name] for name in source.weights if "up_proj" in name}
    file = write_gguf(replace(after, weights=half), tmp_path / "half.gguf", form="q8_0")
    check = check_moved(read_container(file), planned(after), planned(source))
    assert check.passed is False
    assert "1 are still the base's, the first is blk.1.ffn_up.weight" in check.found


def test_a_base_that_was_quantized_before(source: Source, file_of: FileOf, tmp_path: Path) -> None:
    """Small changes of weights on the form's grid are rounded back to it: said, and a failure where it is most of them."""
    container, weights = read_container(file_of("q4_0")), dict(source.weights)
    kept = {name: torch.cat([n for _, n in values_of(container, stored)]) for name, stored in container.tensors.items()}
    names = {"blk.0.ffn_up.weight": "model.layers.0.mlp.up_proj.weight",
             "blk.1.ffn_up.weight": "model.layers.1.mlp.up_proj.weight"}  # fmt: skip
    for stored, name in names.items():
        weights[name] = Weight(weights[name].shape, torch.float32, lambda old=kept[stored]: old)
    base = replace(source, weights=weights)

    def after(first: float, second: float) -> Check:
        changed = dict(base.weights)
        for i, (name, size) in enumerate(zip(names.values(), (first, second), strict=True)):
            old = base.weights[name].read()
            change = torch.randn(old.shape, generator=torch.Generator().manual_seed(i)) * size * old.std()
            changed[name] = Weight(tuple(old.shape), torch.float32, lambda new=old + change: new)
        tuned = replace(base, weights=changed)
        file = write_gguf(tuned, tmp_path / f"{first}-{second}.gguf", form="q4_0")
        return check_moved(read_container(file), planned(tuned), planned(base))

    some = after(0.002, 0.5)
    assert some.passed is True, some
    assert some.numbers["rounded_away"] == 1
    assert "(blk.0.ffn_up.weight), a wider form keeps them" in some.found
    assert after(0.002, 0.002).passed is False


def test_a_change_too_small_to_see(source: Source, tmp_path: Path) -> None:
    """Neither there nor missing: rounding hides it."""
    after = tuned(source, 1e-5)
    file = write_gguf(after, tmp_path / "tuned.gguf", form="q4_0")
    assert check_moved(read_container(file), planned(after), planned(source)).passed is None


def test_an_adapter_that_changes_nothing(source: Source, file_of: FileOf) -> None:
    check = check_moved(read_container(file_of("f32")), planned(source), planned(source))
    assert check.passed is False
    assert "adapter is missing" in check.found
