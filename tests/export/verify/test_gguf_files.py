"""Each check goes red for its own fault, and none for a good file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from damage import damaged, red

from luthier.export.gguf import planned
from luthier.export.source import Source
from luthier.export.verify import verify_file, verify_gguf
from luthier.export.verify.container import read_container
from luthier.export.verify.decoding import Row, answer, check_greedy
from luthier.export.verify.metadata import check_metadata, check_metadata_alone
from luthier.export.verify.reference import Reference
from luthier.export.verify.tensors import check_names, check_values

FileOf = Callable[[str], Path]
Q, K, V = (f"blk.0.attn_{part}.weight" for part in "qkv")


@pytest.fixture(autouse=True)
def _needs_llama() -> None:
    pytest.importorskip("xllamacpp")
    pytest.importorskip("cyllama")


@pytest.mark.parametrize("form", ["f32", "q8_0"])
def test_a_good_file_has_nothing_red(form: str, source: Source, file_of: FileOf) -> None:
    report = verify_gguf(file_of(form), source)
    assert red(report) == set(), report.table()
    assert {check.name for check in report.not_done} == {"training is in it"}
    numbers = {check.name: check.numbers for check in report.checks}
    assert numbers["tokenizer"]["plain"] > 400
    assert numbers["greedy answers"]["prompts"] == 20
    if form == "f32":
        assert numbers["greedy answers"]["same"] == 20
        assert numbers["distance"]["mean_kl"] < 1e-8
        assert 3 < numbers["stopping"]["ended"] == numbers["stopping"]["reference_ended"]


def test_the_order_of_checks(source: Source, file_of: FileOf) -> None:
    names = [check.name for check in verify_gguf(file_of("f16"), source, prompts=["the tea"]).checks]
    assert names == [
        "container", "reread", "metadata", "tensor names", "tensor values", "training is in it", "tokenizer",
        "begin and end tokens", "chat template", "runs", "long text", "greedy answers", "distance", "stopping", "stop ids",
    ]  # fmt: skip


# ---- metadata


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"llama.attention.layer_norm_rms_epsilon": 1e-3}, "layer_norm_rms_epsilon"),
        ({"llama.attention.layer_norm_rms_epsilon": None}, "layer_norm_rms_epsilon is missing"),
        ({"llama.rope.freq_base": 500000.0}, "freq_base"),
        ({"llama.attention.head_count_kv": 4}, "head_count_kv"),
        ({"llama.attention.head_count": None}, "head_count is missing"),
        ({"llama.context_length": 4096}, "context_length"),
        ({"llama.block_count": 3}, "block_count"),
        ({"llama.attention.key_length": 8}, "key_length"),
        ({"general.file_type": 7}, "file_type"),
        ({"general.file_type": None}, "file_type"),
        ({"tokenizer.ggml.eos_token_id": 1}, "eos_token_id"),
        ({"tokenizer.ggml.add_bos_token": True}, "add_bos_token"),
        ({"tokenizer.ggml.add_bos_token": None}, "add_bos_token is missing"),
        ({"tokenizer.chat_template": "{{ messages }}"}, "chat_template"),
        ({"tokenizer.chat_template": None}, "chat_template is missing"),
    ],
)
def test_every_value_is_compared(
    values: dict[str, Any], words: str, source: Source, file_of: FileOf, tmp_path: Path
) -> None:
    container = read_container(damaged(file_of("f32"), tmp_path / "bad.gguf", values=values))
    check = check_metadata(container, source)
    assert check.passed is False
    assert words in check.found


def test_an_end_of_turn_that_is_not_named(source: Source, file_of: FileOf, tmp_path: Path) -> None:
    values = {"tokenizer.ggml.eos_token_id": source.tokenizer.pad_token_id, "tokenizer.ggml.eot_token_id": None}
    container = read_container(damaged(file_of("f32"), tmp_path / "bad.gguf", values=values))
    assert "neither eos_token_id nor eot_token_id" in check_metadata(container, source).found


def test_another_architecture(source: Source, file_of: FileOf, tmp_path: Path) -> None:
    container = read_container(damaged(file_of("f32"), tmp_path / "bad.gguf", arch="qwen2"))
    assert "architecture is 'qwen2'" in check_metadata(container, source).found


def test_tokens_that_changed_places(source: Source, file_of: FileOf, tmp_path: Path) -> None:
    tokens = list(read_container(file_of("f32")).get("tokenizer.ggml.tokens"))
    tokens[10], tokens[11] = tokens[11], tokens[10]
    bad = damaged(file_of("f32"), tmp_path / "bad.gguf", values={"tokenizer.ggml.tokens": tokens})
    assert "2 tokens differ" in check_metadata(read_container(bad), source).found


@pytest.mark.parametrize("key", ["block_count", "embedding_length", "context_length"])
def test_values_that_contradict_the_tensors(key: str, file_of: FileOf, tmp_path: Path) -> None:
    good = check_metadata_alone(read_container(file_of("f32")))
    assert good.passed is True, good
    bad = damaged(file_of("f32"), tmp_path / "bad.gguf", values={f"llama.{key}": 0})
    assert check_metadata_alone(read_container(bad)).passed is False


# ---- tensors


def _permute(tensors: dict[str, np.ndarray]) -> None:
    """Undo the order of rows that llama.cpp's rotary embedding needs."""
    rows = tensors[Q]
    tensors[Q] = rows.reshape(4, -1, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape).copy()


def _swap(tensors: dict[str, np.ndarray]) -> None:
    tensors[K], tensors[V] = tensors[V], tensors[K]


def _poison(tensors: dict[str, np.ndarray]) -> None:
    tensors["blk.1.ffn_up.weight"][3, 5] = np.nan


def _nudge(tensors: dict[str, np.ndarray]) -> None:
    tensors["output_norm.weight"][7] += 1e-6


@pytest.mark.parametrize(
    ("change", "words"),
    [(_permute, Q), (_swap, K), (_poison, "not finite"), (_nudge, "output_norm")],
    ids=["permuted", "swapped", "nan", "one number"],
)
def test_numbers_that_are_not_the_weights(
    change: Callable[[dict[str, np.ndarray]], None], words: str, source: Source, file_of: FileOf, tmp_path: Path
) -> None:
    container = read_container(damaged(file_of("f32"), tmp_path / "bad.gguf", change=change))
    check = check_values(container, planned(source))
    assert check.passed is False
    assert words in check.found or words == K
    assert check_names(container, planned(source)).passed is True


def _drop(tensors: dict[str, np.ndarray]) -> None:
    del tensors["blk.1.attn_v.weight"]


def _add(tensors: dict[str, np.ndarray]) -> None:
    tensors["blk.1.attn_x.weight"] = tensors[V].copy()


def _cut(tensors: dict[str, np.ndarray]) -> None:
    tensors["output.weight"] = tensors["output.weight"][:-1]


@pytest.mark.parametrize(("change", "words"), [(_drop, "missing"), (_add, "extra"), (_cut, "another shape")])
def test_tensors_that_are_not_the_models(
    change: Callable[[dict[str, np.ndarray]], None], words: str, source: Source, file_of: FileOf, tmp_path: Path
) -> None:
    container = read_container(damaged(file_of("f32"), tmp_path / "bad.gguf", change=change))
    check = check_names(container, planned(source))
    assert check.passed is False
    assert f"1 {words}" in check.found or f"1 of {words}" in check.found


@pytest.mark.parametrize("form", ["f16", "bf16", "q8_0", "q5_0", "q4_0"])
def test_each_form_is_within_its_rounding_and_no_further(
    form: str, source: Source, file_of: FileOf, tmp_path: Path
) -> None:
    plan = planned(source)
    container = read_container(file_of(form))
    assert check_values(container, plan).passed is True
    # Weights that are further off than the form can be.
    step = {"f16": 2e-3, "bf16": 2e-2, "q8_0": 3e-2, "q5_0": 0.2, "q4_0": 0.3}[form]
    other = [each for each in plan if each.name == Q]
    weights = other[0].read()
    far = [_Fixed(Q, other[0].shape, weights + step * weights.abs().amax() * torch.sign(weights))]
    assert check_values(container, far).passed is False


class _Fixed:
    """A planned tensor with given numbers."""

    sources: tuple[str, ...] = ()

    def __init__(self, name: str, shape: tuple[int, ...], numbers: torch.Tensor) -> None:
        self.name, self.shape, self.numbers = name, shape, numbers

    def read(self) -> torch.Tensor:
        return self.numbers


def test_a_model_larger_than_memory(source: Source, file_of: FileOf, monkeypatch: pytest.MonkeyPatch) -> None:
    """What needs the model in memory is not done and says so; the file's own checks are."""
    monkeypatch.setattr("luthier.export.verify.reference.free_memory", lambda: 1000)
    report = verify_gguf(file_of("f16"), source)
    assert {check.name for check in report.not_done} >= {"greedy answers", "distance", "stopping"}
    assert not red(report)
    distance = next(check for check in report.checks if check.name == "distance")
    assert "in float32 takes" in distance.found
    assert "1e-06 GB are free" in distance.found


# ---- what llama.cpp sees


def test_gaps_are_what_the_reference_prefers(source: Source) -> None:
    reference = Reference(source)
    prompt = source.tokenizer("the tea", add_special_tokens=False)["input_ids"]
    (said,) = reference.answers([prompt], 6)
    other = list(said)
    other[2] = (other[2] + 1) % 256
    rows = [Row(list(prompt), list(said), "", ended=False), Row(list(prompt), other, "", ended=False)]
    answer(reference, rows, [], "F16")
    logp = torch.log_softmax(reference.logits([*prompt, *said])[len(prompt) + 1], -1)
    assert rows[0].gaps == [0.0] * len(said)
    assert rows[1].gaps[:2] == [0.0, 0.0]
    assert rows[1].gaps[2] == pytest.approx(float(logp.max() - logp[other[2]]), abs=1e-4)
    assert check_greedy(rows[:1], "F16").passed is True
    assert check_greedy(rows, "F16").passed is False
    assert check_greedy(rows, "Q8_0").passed is True  # reported only
    rows[1].gaps = [0.0, 0.0, 9e-3]
    assert check_greedy(rows, "F16").passed is True
    assert check_greedy(rows, "F32").passed is False


def verified(file: Path, out: Path, source: Source, **more: Any) -> set[str]:
    return red(verify_gguf(damaged(file, out, **more), source))


def test_another_pre_tokenizer(source: Source, file_of: FileOf, tmp_path: Path) -> None:
    found = verified(file_of("f32"), tmp_path / "bad.gguf", source, values={"tokenizer.ggml.pre": "llama-bpe"})
    assert found == {"tokenizer"}


def test_another_chat_template(source: Source, file_of: FileOf, tmp_path: Path) -> None:
    template = source.tokenizer.chat_template.replace("<|im_end|>\\n", "<|im_end|>\\n\\n")
    found = verified(file_of("f32"), tmp_path / "bad.gguf", source, values={"tokenizer.chat_template": template})
    assert found == {"metadata", "chat template"}


def test_a_begin_token_too_many(source: Source, file_of: FileOf, tmp_path: Path) -> None:
    values = {"tokenizer.ggml.add_bos_token": True}
    found = verified(file_of("f32"), tmp_path / "bad.gguf", source, values=values)
    assert found >= {"metadata", "begin and end tokens", "chat template"}


def test_an_answer_that_never_ends(source: Source, file_of: FileOf, tmp_path: Path) -> None:
    end = source.tokenizer.eos_token_id
    tokens = list(read_container(file_of("f32")).get("tokenizer.ggml.tokens"))
    types = list(read_container(file_of("f32")).get("tokenizer.ggml.token_type"))
    # llama.cpp knows ends by their names, too.
    tokens[end], types[end] = "<|no_end|>", 4
    values = {"tokenizer.ggml.eos_token_id": 5, "tokenizer.ggml.eot_token_id": 5, "tokenizer.ggml.tokens": tokens,
              "tokenizer.ggml.token_type": types}  # fmt: skip
    found = verified(file_of("f32"), tmp_path / "bad.gguf", source, values=values)
    assert found >= {"metadata", "stop ids", "stopping"}


def test_a_permuted_projection_is_another_model(source: Source, file_of: FileOf, tmp_path: Path) -> None:
    found = verified(file_of("f32"), tmp_path / "bad.gguf", source, change=_permute)
    assert found >= {"tensor values", "greedy answers", "distance"}


def test_another_epsilon_is_another_model(source: Source, file_of: FileOf, tmp_path: Path) -> None:
    values = {"llama.attention.layer_norm_rms_epsilon": 0.05}
    found = verified(file_of("f32"), tmp_path / "bad.gguf", source, values=values)
    assert found >= {"metadata", "distance"}
    assert "tensor values" not in found


def test_what_llama_cpp_refuses_is_told(source: Source, file_of: FileOf, tmp_path: Path) -> None:
    report = verify_gguf(damaged(file_of("f32"), tmp_path / "bad.gguf", arch="nonsense"), source)
    runs = next(check for check in report.checks if check.name == "runs")
    assert runs.passed is False
    assert "llama.cpp ended" in runs.found
    assert {check.name for check in report.not_done} >= {"greedy answers", "distance", "stopping"}


def test_a_cut_file_ends_the_verification(source: Source, file_of: FileOf, tmp_path: Path) -> None:
    bad = tmp_path / "cut.gguf"
    bad.write_bytes(file_of("f32").read_bytes()[:-100])
    report = verify_gguf(bad, source)
    assert red(report) == {"container"}
    assert "cut off" in report.checks[0].found


def test_without_llama_cpp_it_says_so(source: Source, file_of: FileOf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("luthier.export.verify.llama.importlib.util.find_spec", lambda name: None)
    report = verify_gguf(file_of("f32"), source)
    assert red(report) == set()
    missing = {check.name: check.found for check in report.not_done}
    assert missing.keys() >= {"tokenizer", "chat template", "runs", "stop ids"}
    assert "pip install 'luthier[gguf]'" in missing["tokenizer"]
    assert [row for row in report.table() if row[0] == "not done"]


# ---- without the model


def test_a_file_alone(file_of: FileOf) -> None:
    report = verify_file(file_of("q8_0"))
    assert red(report) == set(), report.table()
    assert {check.name for check in report.not_done} >= {"tensor names", "greedy answers", "distance"}


def test_a_bad_file_alone(file_of: FileOf, tmp_path: Path) -> None:
    assert "tensor values" in red(verify_file(damaged(file_of("f32"), tmp_path / "a.gguf", change=_poison)))
    template = "{{ raise_exception('no') }}"
    bad = damaged(file_of("f32"), tmp_path / "b.gguf", values={"tokenizer.chat_template": template})
    assert "chat template" in red(verify_file(bad))


def test_a_report_is_plain_values(file_of: FileOf, source: Source) -> None:
    import json

    report = verify_gguf(file_of("f16"), source, prompts=["the tea", "1999"])
    plain = json.loads(json.dumps(report.as_dict()))
    assert plain["failed"] is False
    assert {check["result"] for check in plain["checks"]} == {"ok", "not done"}
    assert len(report.table()) == len(plain["checks"])
