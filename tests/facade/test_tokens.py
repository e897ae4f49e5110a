"""add_new_tokens: rows that begin well, and stay what they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import make_folder

from luthier import FastLanguageModel, add_new_tokens

NEW = ["<tool>", "</tool>", *(f"<w{i}>" for i in range(80))]


def load(folder: Path, **options: Any) -> tuple[Any, Any]:
    return FastLanguageModel.from_pretrained(
        str(folder), max_seq_length=64, **{"load_in_4bit": False, "dtype": "float32", **options}
    )


def trained(table: torch.Tensor) -> torch.Tensor:
    """The rows of the byte tokenizer but that of padding, which is zero in an embedding."""
    return table[:259][table[:259].abs().sum(1) > 0]


@pytest.fixture(scope="module", params=["llama", "llama_tied"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(request.param, tmp_path_factory.mktemp("new") / request.param)


def test_rows_begin_as_the_mean_of_those_that_were_trained(folder: Path) -> None:
    model, tokenizer = load(folder)
    before = [table.weight.detach().clone() for table in (model.get_input_embeddings(), model.get_output_embeddings())]
    assert add_new_tokens(model, tokenizer, NEW[:2]) is None
    assert tokenizer.convert_tokens_to_ids(NEW[:2]) == [259, 260]
    assert tokenizer("a<tool>b")["input_ids"] == [64, 259, 65]
    for old, table in zip(before, (model.get_input_embeddings(), model.get_output_embeddings()), strict=True):
        assert table.weight.shape == old.shape  # padded already: never smaller, and no larger than needed
        torch.testing.assert_close(table.weight[259], trained(old).mean(0))
        assert torch.equal(table.weight[:259], old[:259])
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert tied == model.config.tie_word_embeddings


def test_interpolation_goes_towards_the_pieces(folder: Path) -> None:
    model, tokenizer = load(folder)
    old = model.get_input_embeddings().weight.detach().clone()
    pieces = tokenizer("<tool>")["input_ids"]
    add_new_tokens(model, tokenizer, ["<tool>"], method="interpolation", interpolation=0.25)
    expected = 0.75 * trained(old).mean(0) + 0.25 * old[pieces].mean(0)
    torch.testing.assert_close(model.get_input_embeddings().weight[259], expected)


def test_matrices_grow_and_known_words_are_skipped(folder: Path, said: list[str]) -> None:
    model, tokenizer = load(folder)
    add_new_tokens(model, tokenizer, [*NEW, "<|im_end|>", NEW[0]])
    assert model.get_input_embeddings().weight.shape[0] == len(tokenizer) == 259 + len(NEW) == model.config.vocab_size
    assert "1 of the new tokens are in the vocabulary already" in said
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert tied == model.config.tie_word_embeddings


def test_the_adapter_learns_them_and_saved_rows_come_back_and_are_merged(folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    model, tokenizer = load(folder)
    add_new_tokens(model, tokenizer, NEW)
    model = FastLanguageModel.get_peft_model(model, r=2)
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert any("embed_tokens.modules_to_save" in name for name in learning)
    with torch.no_grad():
        for parameter in learning.values():
            parameter.add_(0.1 * torch.randn_like(parameter))
    ids = torch.tensor([[65, 259, 260, 66]])
    wanted = model(input_ids=ids).logits
    model.save_pretrained("adapter")
    tokenizer.save_pretrained("adapter")
    again, _ = load(Path("adapter"))
    torch.testing.assert_close(again(input_ids=ids).logits, wanted, atol=1e-5, rtol=1e-4)
    model.save_pretrained_merged("merged", tokenizer)
    merged = AutoModelForCausalLM.from_pretrained("merged", dtype=torch.float32)
    table = next(p for name, p in learning.items() if "embed_tokens" in name)
    assert torch.equal(merged.get_input_embeddings().weight, table.to(torch.bfloat16).float())
    assert (merged(input_ids=ids).logits - wanted).abs().mean() < 0.05 * wanted.abs().mean()


def test_what_cannot_be_done_is_said(folder: Path) -> None:
    model, tokenizer = load(folder)
    with pytest.raises(ValueError, match=r"method 'men' is unknown; did you mean 'mean'\?"):
        add_new_tokens(model, tokenizer, ["<a>"], method="men")
    with pytest.raises(ValueError, match="interpolation is 2; it lies between 0 and 1"):
        add_new_tokens(model, tokenizer, ["<a>"], interpolation=2)
    with pytest.raises(TypeError, match="no model that FastLanguageModel"):
        add_new_tokens(torch.nn.Linear(1, 1), tokenizer, ["<a>"])
    model = FastLanguageModel.get_peft_model(model, r=2)
    with pytest.raises(ValueError, match="add_new_tokens comes before get_peft_model"):
        add_new_tokens(model, tokenizer, ["<a>"])


def test_a_four_bit_base_and_full_tuning_keep_what_learns(tiny: Path) -> None:
    model, tokenizer = load(tiny, load_in_4bit=True)
    add_new_tokens(model, tokenizer, NEW)
    assert model.get_input_embeddings().weight.shape[0] == 259 + len(NEW)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    model, tokenizer = load(tiny, full_finetuning=True)
    add_new_tokens(model, tokenizer, NEW)
    assert all(parameter.requires_grad for parameter in model.parameters())
