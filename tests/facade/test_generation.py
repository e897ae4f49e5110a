"""generate, fast_generate and modes on live weights."""

from __future__ import annotations

from threading import Thread
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, TextIteratorStreamer, TextStreamer

from luthier import FastLanguageModel, SamplingParams
from luthier.core.errors import LuthierError

if TYPE_CHECKING:
    from pathlib import Path

GREEDY = {"temperature": 0.0, "max_tokens": 8}


def answer(model: Any, inputs: Any, **options: Any) -> list[int]:
    found = model.generate(**inputs, max_new_tokens=8, do_sample=False, **options)
    return found[0, inputs["input_ids"].shape[1] :].tolist()


def ids_of(outputs: Any) -> list[list[int]]:
    return [list(each.outputs[0].token_ids) for each in outputs]


# ---- modes


def test_modes_change_the_model_in_place(tuned: tuple[Any, Any]) -> None:
    model, tokenizer = tuned
    assert FastLanguageModel.for_training(model) is model
    assert (model.training, tokenizer.padding_side) == (True, "right")
    FastLanguageModel.for_inference(model)
    assert (model.training, model.config.use_cache, tokenizer.padding_side) == (False, True, "left")
    model.for_training()
    assert model.training
    model.for_inference()
    assert not model.training
    for call in (FastLanguageModel.for_inference, FastLanguageModel.for_training):
        with pytest.raises(TypeError, match="takes the model"):
            call(tokenizer)


@pytest.mark.parametrize(("asked", "on"), [(True, True), ("unsloth", False), (False, False)])
def test_recomputing_is_back_after_an_answer(tiny: Path, asked: Any, on: bool) -> None:
    model, tokenizer = FastLanguageModel.from_pretrained(str(tiny), max_seq_length=128, load_in_4bit=False)
    model = FastLanguageModel.get_peft_model(model, r=4, use_gradient_checkpointing=asked)
    model.for_training()
    layer = model.base_model.model.model.layers[0]
    assert layer.gradient_checkpointing is on
    answer(model, tokenizer("tea", return_tensors="pt"))
    assert (layer.gradient_checkpointing, model.training, layer.training) == (on, True, True)
    model.for_inference()
    assert not layer.gradient_checkpointing


# ---- generate


def test_generate_takes_encodings_as_scripts_give_them(tuned: tuple[Any, Any]) -> None:
    model, tokenizer = tuned
    inputs = tokenizer("some tea", return_tensors="pt").to("cpu")
    usual = answer(model, inputs)
    options = {"max_new_tokens": 8, "do_sample": False}
    length = inputs["input_ids"].shape[1]
    for found in (
        model.generate(inputs, **options),
        model.generate(input_ids=inputs, **options),
        model.generate(inputs["input_ids"], **options),
        model.generate(**inputs, token_type_ids=inputs["input_ids"] * 0, **options),
    ):
        assert found[0, length:].tolist() == usual


def test_generate_is_that_of_transformers(tuned: tuple[Any, Any], tiny: Path) -> None:
    model, tokenizer = tuned
    model.save_pretrained("adapter")
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32), "adapter")
    inputs = tokenizer("river", return_tensors="pt")
    assert answer(model, inputs) == answer(theirs.eval(), inputs)


def test_rows_of_other_lengths_do_not_change_an_answer(tuned: tuple[Any, Any]) -> None:
    model, tokenizer = tuned
    FastLanguageModel.for_inference(model)
    both = tokenizer(["a", "a much longer one"], return_tensors="pt", padding=True)
    alone = answer(model, tokenizer("a", return_tensors="pt"))
    for inputs in (both, {"input_ids": both["input_ids"]}):
        assert model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, -len(alone) :].tolist() == alone


def test_what_follows_the_end_is_the_end(tuned: tuple[Any, Any]) -> None:
    model, tokenizer = tuned
    ids = tokenizer(["a", "b"], return_tensors="pt")["input_ids"]
    first = answer(model, {"input_ids": ids[:1]})[0]
    found = model.generate(input_ids=ids, max_new_tokens=5, do_sample=False, eos_token_id=[first])
    assert found[0, 1] == first
    if found.shape[1] > 2:
        assert set(found[0, 2:].tolist()) == {tokenizer.eos_token_id}


def test_too_long(tuned: tuple[Any, Any]) -> None:
    model, tokenizer = tuned
    with pytest.raises(ValueError, match="512 together"):
        model.generate(**tokenizer("tea", return_tensors="pt"), max_new_tokens=510)


def test_streamers(tuned: tuple[Any, Any], capsys: pytest.CaptureFixture[str]) -> None:
    model, tokenizer = tuned
    inputs = tokenizer("tea", return_tensors="pt")
    whole = tokenizer.decode(answer(model, inputs), skip_special_tokens=True)
    answer(model, inputs, streamer=TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True))
    assert capsys.readouterr().out.strip() == whole.strip()
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    thread = Thread(target=model.generate, kwargs={**inputs, "streamer": streamer, "max_new_tokens": 8})
    thread.start()
    assert "".join(streamer) == whole
    thread.join()


# ---- fast_generate


@pytest.mark.parametrize("four_bits", [False, True])
def test_fast_generate_with_and_without_the_adapter(tiny: Path, four_bits: bool) -> None:
    model, tokenizer = FastLanguageModel.from_pretrained(
        str(tiny), max_seq_length=128, dtype="float32", load_in_4bit=four_bits, fast_inference=True
    )
    inputs = tokenizer("tea", return_tensors="pt")
    base = answer(model, inputs)
    model = FastLanguageModel.get_peft_model(model, r=4, target_modules=["q_proj", "o_proj", "up_proj"])
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    learned = answer(model, inputs)
    assert learned != base
    assert ids_of(model.fast_generate("tea", GREEDY)) == [base]
    model.save_lora("saved")
    request = model.load_lora("saved")
    assert ids_of(model.fast_generate(["tea", "tea"], SimpleNamespace(**GREEDY), lora_request=request)) == [learned] * 2
    assert ids_of(model.fast_generate("tea", GREEDY, lora_request=None)) == [base]
    assert answer(model, inputs) == learned
    assert list(model.peft_config) == ["default"]
    assert sum(p.requires_grad for p in model.parameters()) == 12


def test_fast_generate_sees_what_was_learned_since(tuned: tuple[Any, Any]) -> None:
    model, tokenizer = tuned
    inputs = tokenizer("tea", return_tensors="pt")
    for _ in range(2):
        model.save_lora("saved")
        assert ids_of(model.fast_generate("tea", GREEDY, lora_request=model.load_lora("saved"))) == [
            answer(model, inputs)
        ]
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.data = parameter.data * 1.7


def test_an_adapter_answers_on_a_model_that_has_none(tuned: tuple[Any, Any], tiny: Path) -> None:
    model, tokenizer = tuned
    model.save_lora("saved")
    kept = load_file("saved/adapter_model.safetensors")
    assert kept
    assert all("lora_A" in key or "lora_B" in key for key in kept)
    other, _ = FastLanguageModel.from_pretrained(str(tiny), max_seq_length=128, dtype="float32", load_in_4bit=False)
    names = [name for name, _ in other.named_modules()]
    found = ids_of(other.fast_generate("tea", GREEDY, lora_request=other.load_lora("saved", load_tensors=True)))
    assert found == [answer(model, tokenizer("tea", return_tensors="pt"))]
    assert [name for name, _ in other.named_modules()] == names
    with pytest.raises(OSError, match="nowhere"):
        other.load_lora("nowhere")
    with pytest.raises(TypeError, match="no adapter"):
        other.save_lora("x")


def test_a_merged_adapter_is_in_the_way(tuned: tuple[Any, Any]) -> None:
    model, _ = tuned
    model.merge_adapter()
    with pytest.raises(LuthierError, match="unmerge_adapter"):
        model.fast_generate("tea", GREEDY)
    model.unmerge_adapter()
    assert len(model.fast_generate("tea", GREEDY)) == 1


def test_sampling_parameters(plain: tuple[Any, Any]) -> None:
    model, tokenizer = plain
    drawn = SamplingParams(n=3, temperature=1.5, top_k=-1, top_p=0.9, min_p=0.01, max_tokens=4, seed=7)
    found = model.fast_generate({"prompt": "tea"}, drawn)
    assert [len(each.token_ids) <= 4 for each in found[0].outputs] == [True] * 3
    again = model.fast_generate([{"prompt_token_ids": tokenizer("tea").input_ids}], drawn)
    assert [each.token_ids for each in found[0].outputs] == [each.token_ids for each in again[0].outputs]
    (whole,) = model.fast_generate("tea", GREEDY)
    text = whole.outputs[0].text
    stop = text[1]
    for include in (False, True):
        params = {**GREEDY, "stop": [stop], "include_stop_str_in_output": include}
        (cut,) = model.fast_generate("tea", params)
        assert cut.outputs[0].text == text[: text.index(stop) + include]
    assert (whole.prompt, whole.prompt_token_ids) == ("tea", tuple(tokenizer("tea").input_ids))
    with pytest.raises(TypeError, match="temprature"):
        model.fast_generate("tea", {"temprature": 1})
    with pytest.raises(LuthierError, match="sees at most"):
        model.fast_generate("tea" * 400, GREEDY)


def test_tensors_go_to_generate(plain: tuple[Any, Any]) -> None:
    model, tokenizer = plain
    inputs = tokenizer("tea", return_tensors="pt")
    found = model.fast_generate(**inputs, max_new_tokens=8, do_sample=False)
    assert found[0, 3:].tolist() == answer(model, inputs)
    assert ids_of(model.fast_generate_batches(["tea", "a"], n_batches=2, sampling_params=GREEDY))[0] == answer(
        model, inputs
    )
