"""Files that are damaged on purpose: the check for that fault goes red, and says what is wrong."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import make_folder
from torch import Tensor

from luthier.export.gguf import planned, write_gguf
from luthier.export.source import Source, Weight, folder_source
from luthier.export.verify.container import Container, check_container
from luthier.export.verify.decoding import check_stop_ids
from luthier.export.verify.llama import Llama
from luthier.export.verify.metadata import check_metadata
from luthier.export.verify.report import Check, Report
from luthier.export.verify.tensors import check_finite, check_moved, check_names, check_values

Q = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return folder_source(make_folder("llama", tmp_path_factory.mktemp("m")), name="m")


@pytest.fixture(scope="module")
def good(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(source, tmp_path_factory.mktemp("good") / "m.gguf", form="f32")


def opened(path: Path) -> Container:
    check, container = check_container(path)
    assert check.passed, check.found
    assert container is not None
    return container


def changed(source: Source, name: str, change: Callable[[Tensor], Tensor]) -> Source:
    weight = source.weights[name]
    other = Weight(weight.shape, weight.dtype, lambda: change(weight.read().clone()))
    return replace(source, weights={**source.weights, name: other})


def checks(path: Path, source: Source) -> dict[str, Check]:
    container, plan = opened(path), planned(source)
    made = (check_metadata(container, source), check_names(container, plan), check_values(container, plan),
            check_finite(container))  # fmt: skip
    return {f"{i} {check.name}": check for i, check in enumerate(made)}


def red(path: Path, source: Source) -> list[str]:
    return [name.partition(" ")[2] for name, check in checks(path, source).items() if check.passed is False]


def test_a_good_file_is_good(good: Path, source: Source) -> None:
    assert red(good, source) == []


# ---- the container


@pytest.mark.parametrize("kept", [0, 3, 20, 300, 0.5, 0.999])
def test_a_file_that_ends_too_early(kept: float, good: Path, tmp_path: Path) -> None:
    data = good.read_bytes()
    file = tmp_path / "m.gguf"
    file.write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
    check, container = check_container(file)
    assert (check.passed, container) == (False, None)


def test_something_behind_the_last_tensor(good: Path, tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(good.read_bytes() + b"x" * 4096)
    assert check_container(file)[0].passed is False


@pytest.mark.parametrize(
    ("place", "value"),
    [(0, b"GGML"), (4, (99).to_bytes(4, "little")), (8, (1 << 60).to_bytes(8, "little")),
     (16, (1 << 60).to_bytes(8, "little")), (24, (1 << 62).to_bytes(8, "little"))],
)  # fmt: skip
def test_headers_that_lie_are_sentences(place: int, value: bytes, good: Path, tmp_path: Path) -> None:
    """Magic, version, counts and lengths: no crash, and no allocation of what a count promises."""
    data = bytearray(good.read_bytes())
    data[place : place + len(value)] = value
    file = tmp_path / "m.gguf"
    file.write_bytes(data)
    check, container = check_container(file)
    assert (check.passed, container) == (False, None)
    assert check.found


def test_any_flipped_bit_of_the_header_is_survived(good: Path, tmp_path: Path) -> None:
    data, file = good.read_bytes(), tmp_path / "m.gguf"
    draws = torch.Generator().manual_seed(0)
    for place in torch.randint(0, 2000, (60,), generator=draws).tolist():
        broken = bytearray(data)
        broken[place] ^= 0x40
        file.write_bytes(broken)
        check, _ = check_container(file)
        assert check.passed in (True, False)


# ---- what the file says


@pytest.mark.parametrize(
    "changes",
    [{"rms_norm_eps": 1e-3}, {"num_key_value_heads": 4}, {"max_position_embeddings": 77}, {"rope": 77.0}],
)
def test_settings_of_another_model(changes: dict[str, Any], good: Path, source: Source) -> None:
    import copy

    facts = copy.deepcopy(source.facts)
    for key, value in changes.items():
        if key == "rope":
            facts.rope_parameters = {**facts.rope_parameters, "rope_theta": value}
        else:
            assert getattr(facts, key) != value
            setattr(facts, key, value)
    assert check_metadata(opened(good), replace(source, facts=facts)).passed is False


def test_an_end_token_that_is_missing(good: Path, source: Source) -> None:
    pytest.importorskip("cyllama")
    name_of = source.tokenizer.convert_ids_to_tokens
    with Llama(good, "logits") as model:
        assert check_stop_ids(model, [258], name_of).passed is True
        found = check_stop_ids(model, [258, 257], name_of)
    assert (found.passed, "goes on behind <|im_start|>" in found.found) == (False, True)


# ---- tensors


@pytest.mark.parametrize(
    ("name", "change"),
    [
        (Q, lambda x: x.flip(0)),
        (Q, lambda x: x * 1.001),
        ("model.norm.weight", lambda x: x + 1),
        ("model.layers.1.mlp.down_proj.weight", lambda x: x.roll(1, 0)),
        ("model.embed_tokens.weight", lambda x: torch.where(torch.arange(len(x))[:, None] == 7, -x, x)),
    ],
)
def test_values_of_another_tensor(name: str, change: Any, source: Source, tmp_path: Path) -> None:
    file = write_gguf(changed(source, name, change), tmp_path / "m.gguf", form="f32")
    assert red(file, source) == ["tensor values"]


def test_rotary_rows_in_the_order_of_transformers(good: Path, source: Source, tmp_path: Path) -> None:
    """The mistake of every second converter: q is written without its permutation."""
    plan = {each.name: each for each in planned(source)}
    assert not torch.equal(plan["blk.0.attn_q.weight"].read(), source.weights[Q].read().float())
    data = bytearray(good.read_bytes())
    right = plan["blk.0.attn_q.weight"].read().numpy().tobytes()
    wrong = source.weights[Q].read().float().numpy().tobytes()
    place = data.find(right)
    assert place > 0
    data[place : place + len(wrong)] = wrong
    file = tmp_path / "m.gguf"
    file.write_bytes(data)
    assert red(file, source) == ["tensor values"]


def test_a_number_that_is_none(source: Source, good: Path, tmp_path: Path) -> None:
    data = bytearray(good.read_bytes())
    place = data.find(planned(source)[0].read().float().numpy().tobytes())
    assert place > 0
    data[place : place + 4] = b"\x00\x00\xc0\x7f"
    file = tmp_path / "m.gguf"
    file.write_bytes(data)
    assert set(red(file, source)) == {"tensor values"}
    assert check_finite(opened(file)).passed is False


def test_a_tensor_too_many_and_too_few(good: Path, source: Source) -> None:
    container, plan = opened(good), planned(source)
    assert check_names(container, plan[1:]).passed is False
    extra = [*plan, replace(plan[0], name="blk.9.attn_q.weight")]
    assert "blk.9.attn_q.weight" in check_names(container, extra).found


@pytest.mark.parametrize("form", ["f16", "bf16", "q8_0", "q4_0"])
def test_forms_are_held_to_their_own_rounding(form: str, source: Source, tmp_path: Path) -> None:
    file = write_gguf(source, tmp_path / "m.gguf", form=form)
    assert red(file, source) == []
    shifted = changed(source, Q, lambda x: x + 0.3 * x.abs().mean())
    assert red(write_gguf(shifted, tmp_path / "n.gguf", form=form), source) == ["tensor values"]


def test_a_merge_that_was_forgotten(good: Path, source: Source) -> None:
    trained = planned(changed(source, Q, lambda x: x + 0.1))
    assert check_moved(opened(good), trained, planned(source)).passed is False


def test_a_merge_that_is_there(source: Source, tmp_path: Path) -> None:
    tuned = changed(source, Q, lambda x: x + 0.1)
    file = write_gguf(tuned, tmp_path / "m.gguf", form="f32")
    assert check_moved(opened(file), planned(tuned), planned(source)).passed is True


# ---- reports


def test_a_report_fails_by_what_failed_and_not_by_what_was_not_done() -> None:
    fine, missing = Check("a", True, "x", "y"), Check("b", None, "not done: no package", "")
    assert not Report("f", (fine, missing)).failed
    broken = Report("f", (fine, missing, Check("c", False, "z", "w", {"n": float("inf")})))
    assert broken.failed
    assert [row[0] for row in broken.table()] == ["ok", "not done", "failed"]
    assert broken.as_dict()["checks"][2]["numbers"] == {"n": None}  # type: ignore[index]
