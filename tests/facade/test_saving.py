"""What the saving methods of scripts write, where, and that it is the model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, ClassVar

import huggingface_hub
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from luthier import FastLanguageModel
from luthier.core.errors import ConfigError, ExportError, LuthierError, RunError
from luthier.facade.saving_words import forms_of, gigabytes, method_of

IDS = torch.tensor([[65, 66, 257, 67, 258, 10]])


def logits(model: Any) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(input_ids=IDS).logits.float()


def near(found: torch.Tensor, wanted: torch.Tensor, share: float = 0.05) -> bool:
    return bool((found - wanted).abs().mean() < share * wanted.abs().mean())


# ---- merged folders


@pytest.mark.parametrize("load_in_4bit", [False, True])
def test_merged_16bit_is_an_ordinary_folder_that_says_the_same(tiny: Path, load_in_4bit: bool) -> None:
    model, tokenizer = FastLanguageModel.from_pretrained(str(tiny), max_seq_length=64, load_in_4bit=load_in_4bit)
    model = FastLanguageModel.get_peft_model(model, r=4)
    base = logits(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    wanted = logits(model)
    assert (
        model.save_pretrained_merged("model", tokenizer, save_method="merged_16bit", maximum_memory_usage=0.5) is None
    )
    merged = AutoModelForCausalLM.from_pretrained("model")
    assert merged.dtype == torch.bfloat16
    assert near(logits(merged), wanted)
    assert not near(logits(merged), base)
    assert "quantization_config" not in json.loads(Path("model/config.json").read_text())
    assert AutoTokenizer.from_pretrained("model").chat_template == tokenizer.chat_template
    assert json.loads(Path("model/verify.json").read_text())[0]["failed"] is False
    assert sorted(Path().iterdir()) == [Path("model")]  # nothing else is left
    assert "sft" not in Path("model/README.md").read_text()
    again, _ = FastLanguageModel.from_pretrained("model", max_seq_length=64, load_in_4bit=False)
    assert near(logits(again), wanted)


def test_the_model_goes_on_learning_after_it_was_saved(tuned: tuple[Any, Any]) -> None:
    model, tokenizer = tuned
    wanted, named = logits(model), model.peft_config["default"].base_model_name_or_path
    model.save_pretrained_merged("model", tokenizer)
    assert torch.equal(logits(model), wanted)
    assert model.peft_config["default"].base_model_name_or_path == named
    assert any(parameter.requires_grad for parameter in model.parameters())


def test_lora_and_shards_and_a_second_call_into_the_same_folder(tuned: tuple[Any, Any], said: list[str]) -> None:
    model, tokenizer = tuned
    model.save_pretrained_merged("model", tokenizer, save_method="lora")
    assert Path("model/adapter_model.safetensors").is_file()
    again, _ = FastLanguageModel.from_pretrained("model", max_seq_length=64, load_in_4bit=False, dtype="float32")
    torch.testing.assert_close(logits(again), logits(model), atol=1e-5, rtol=1e-5)
    model.save_pretrained_merged("model", tokenizer, max_shard_size="30KB")
    shards = sorted(Path("model").glob("model-*.safetensors"))
    assert len(shards) > 1
    assert Path(
        "model/adapter/adapter_config.json"
    ).is_file()  # what lay there is kept, where nobody takes it for the model
    assert any("held an adapter, which lies in model/adapter now" in line for line in said)
    assert near(logits(AutoModelForCausalLM.from_pretrained("model")), logits(model))
    model.save_pretrained_merged("model", tokenizer)
    assert not list(Path("model").glob("model-*.safetensors"))


def test_merged_4bit_is_bitsandbytes_form(tuned: tuple[Any, Any], said: list[str]) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    model, tokenizer = tuned
    model.save_pretrained_merged("model", tokenizer, save_method="merged_4bit")
    config = json.loads(Path("model/config.json").read_text())
    assert config["quantization_config"]["bnb_4bit_quant_type"] == "nf4"
    assert any(line.startswith("merged_4bit rounds the merged weights") for line in said)
    narrow = AutoModelForCausalLM.from_pretrained("model").model.layers[0].mlp.up_proj.weight
    found = bitsandbytes.functional.dequantize_4bit(narrow.data, narrow.quant_state).float()
    assert near(found, model.merge_and_unload().model.layers[0].mlp.up_proj.weight, 0.25)


def test_full_finetuning_and_a_model_without_adapter(tiny: Path) -> None:
    model, tokenizer = FastLanguageModel.from_pretrained(str(tiny), max_seq_length=64, full_finetuning=True)
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    model.save_pretrained_merged("model", tokenizer)
    assert near(logits(AutoModelForCausalLM.from_pretrained("model")), logits(model))
    with pytest.raises(ValueError, match="'lora': this model has no adapter; take merged_16bit"):
        model.save_pretrained_merged("other", tokenizer, save_method="lora")
    with pytest.raises(ValueError, match="this model has no adapter"):
        model.save_pretrained_ggml("other", tokenizer)


def test_a_model_that_went_on_from_an_adapter(tuned: tuple[Any, Any]) -> None:
    model, tokenizer = tuned
    model.save_pretrained("lora_model")
    tokenizer.save_pretrained("lora_model")
    again, words = FastLanguageModel.from_pretrained(
        "lora_model", max_seq_length=64, load_in_4bit=False, dtype="float32"
    )
    with torch.no_grad():
        for name, parameter in again.named_parameters():
            if "lora_B" in name:
                parameter.mul_(-1)
    again.save_pretrained_merged("model", words)
    assert near(logits(AutoModelForCausalLM.from_pretrained("model")), logits(again))


def test_an_end_token_that_a_template_chose_ends_answers_of_the_merged_model(tuned: tuple[Any, Any]) -> None:
    from luthier import get_chat_template

    model, tokenizer = tuned
    text = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}"
    get_chat_template(tokenizer, (text, "<|im_start|>"))
    model.save_pretrained_merged("model", tokenizer)
    assert json.loads(Path("model/generation_config.json").read_text())["eos_token_id"] == [257, 258]
    assert AutoTokenizer.from_pretrained("model").eos_token_id == 257


# ---- words


@pytest.mark.parametrize(
    "spelling", ["merged_16bit", "Merged 16bit", "merged-16bit ", "lora", "LoRA", "forced_merged_4bit"]
)
def test_methods_are_spelled_as_people_do(spelling: str) -> None:
    assert method_of(spelling) in ("lora", "merged_16bit", "merged_4bit")


@pytest.mark.parametrize("method", ["mxfp4", "fp8", "w4a16", "torchao_int8", "NVFP4"])
def test_methods_out_of_reach_name_those_that_work(tuned: tuple[Any, Any], method: str) -> None:
    with pytest.raises(
        ValueError, match=r"not part of this version: lora .*merged_16bit .*merged_4bit .*save_pretrained_gguf"
    ):
        tuned[0].save_pretrained_merged("model", tuned[1], save_method=method)
    assert not Path("model").exists()


def test_wrong_arguments_are_named_before_anything_is_written(tuned: tuple[Any, Any], said: list[str]) -> None:
    model, tokenizer = tuned
    for call, error, text in (
        (lambda: model.save_pretrained_merged("m", tokenizer, save_method="merged_16"), ValueError, "did you mean 'merged_16bit'"),
        (lambda: model.save_pretrained_merged("m", tokenizer, save_metod="lora"), TypeError, "did you mean 'save_method'"),
        (lambda: model.save_pretrained_merged("m", tokenizer, max_shard_size="5 parsec"), ValueError, "is no size"),
        (lambda: model.save_pretrained_merged("m", tokenizer, safe_serialization=False), ConfigError, "safetensors only"),
        (lambda: model.save_pretrained_gguf("m", tokenizer, quantization_method="q4_k_x"), ValueError, "did you mean 'q4_k_s'|'q4_k_m'"),
        (lambda: model.save_pretrained_gguf("m", tokenizer, push_to_hub=True), ValueError, r"push_to_hub_gguf\(repo_id"),
        (lambda: model.save_pretrained_gguf("m", tokenizer, imatrix_file=True), ValueError, "nothing is fetched here"),
        (lambda: model.save_pretrained_gguf("m", tokenizer, quantization_method="iq1_s"), LuthierError, "importance matrix"),
        (lambda: model.save_pretrained_torchao("m", tokenizer), ValueError, "torchao's forms are not part of this version"),
    ):  # fmt: skip
        with pytest.raises(error, match=text):
            call()
    assert list(Path().iterdir()) == []
    model.save_pretrained_merged("m", tokenizer, is_main_process=False)
    assert list(Path().iterdir()) == []


def test_quantizations_have_the_names_of_scripts() -> None:
    assert forms_of(["not_quantized", "fast_quantized", "quantized", "Q8_0", "q4_k", "BF16"]) == (
        "f16", "q8_0", "q4_k_m", "bf16",
    )  # fmt: skip
    assert forms_of(None) == ("q8_0",)
    assert forms_of(("q5_k", "f32")) == ("q5_k_m", "f32")
    assert gigabytes("2GiB") == pytest.approx(2.147483648)


# ---- faults


def test_a_full_disk_is_seen_before_the_first_byte(tuned: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1000))
    for save in (tuned[0].save_pretrained_merged, tuned[0].save_pretrained_gguf):
        with pytest.raises(RunError, match=r"disk full: saving takes about .* nothing was written"):
            save("model", tuned[1])
    assert list(Path().iterdir()) == []


def test_a_merge_that_is_wrong_is_kept_under_another_name(
    tuned: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from luthier.export import merge

    monkeypatch.setattr(
        merge, "read_merged", lambda files, config, name, read=merge.read_merged: read(files.below, config, name=name)
    )
    with pytest.raises(ExportError, match=r"it was kept in model.unverified"):
        tuned[0].save_pretrained_merged("model", tuned[1])
    assert Path("model.unverified/model.safetensors").is_file()
    assert [path.name for path in Path().iterdir()] == ["model.unverified"]


# ---- GGUF


@pytest.mark.slow
def test_gguf_files_lie_where_scripts_look_for_them(tuned: tuple[Any, Any], tiny: Path) -> None:
    from luthier.export.verify.container import read_container

    model, tokenizer = tuned
    done = model.save_pretrained_gguf("model", tokenizer, quantization_method=["F16", "q4_k_m"])
    name = tiny.name
    assert done == {
        "save_directory": "model",
        "gguf_directory": "model_gguf",
        "gguf_files": [f"model_gguf/{name}.F16.gguf", f"model_gguf/{name}.Q4_K_M.gguf"],
        "modelfile_location": "model_gguf/Modelfile",
        "want_full_precision": False,
        "is_vlm": False,
        "fix_bos_token": False,
    }
    for file in done["gguf_files"]:
        assert read_container(Path(file)).tensors
    modelfile = Path("model_gguf/Modelfile").read_text()
    assert f"FROM ./{name}.F16.gguf\n" in modelfile
    assert tokenizer._ollama_modelfile == modelfile
    reports = json.loads(Path("model_gguf/verify.json").read_text())
    assert [report["subject"] for report in reports] == [Path(file).name for file in done["gguf_files"]]
    assert not any(report["failed"] for report in reports)
    assert near(logits(AutoModelForCausalLM.from_pretrained("model")), logits(model))


def test_an_adapter_alone_as_gguf(tuned: tuple[Any, Any]) -> None:
    model, tokenizer = tuned
    for number, call in enumerate((model.save_pretrained_ggml, model.save_pretrained_gguf)):
        more = {"save_method": "lora"} if number else {}
        (file,) = call(f"out{number}", tokenizer, **more)["gguf_files"]
        assert Path(file).parent.name == f"out{number}_gguf"
        assert Path(file).stat().st_size > 1000


# ---- the hub


class Hub:
    """Stands in for huggingface_hub.HfApi."""

    made: ClassVar[list[tuple[Any, ...]]] = []
    fails = False

    def __init__(self, token: str | None = None) -> None:
        self.token = token

    def create_repo(self, repo_id: str, *, private: bool | None, exist_ok: bool) -> None:
        Hub.made.append(("create", repo_id, private, self.token))

    def create_branch(self, repo_id: str, *, branch: str, exist_ok: bool) -> None:
        Hub.made.append(("branch", branch))

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str, revision: str | None) -> None:
        if Hub.fails:
            raise OSError("the line is cut")
        Hub.made.append(
            ("upload", repo_id, sorted(p.name for p in Path(folder_path).iterdir()), commit_message, revision)
        )


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> type[Hub]:
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(Hub, "made", [])
    monkeypatch.setattr(Hub, "fails", False)
    return Hub


def test_merged_models_are_uploaded(tuned: tuple[Any, Any], hub: type[Hub]) -> None:
    model, tokenizer = tuned
    address = model.push_to_hub_merged(
        "me/model", tokenizer, save_method="lora", token="hf_x", private=True, revision="v2"
    )
    assert address == "https://huggingface.co/me/model"
    create, branch, upload = hub.made
    assert create == ("create", "me/model", True, "hf_x")
    assert branch == ("branch", "v2")
    assert upload[1] == "me/model"
    assert {"adapter_config.json", "README.md", "tokenizer.json"} <= set(upload[2])
    assert list(Path().iterdir()) == []
    model.save_pretrained_merged("me/other", tokenizer, push_to_hub=True, token="hf_x", commit_message="done")
    assert hub.made[-1][3] == "done"
    assert Path("me/other/model.safetensors").is_file()


def test_without_a_token_nothing_is_computed(
    tuned: tuple[Any, Any], hub: type[Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    for call in (tuned[0].push_to_hub_merged, tuned[0].push_to_hub_gguf, tuned[0].push_to_hub_ggml):
        with pytest.raises(ConfigError, match=r"uploading to me/model needs a token: .* nothing was computed"):
            call("me/model", tuned[1])
    assert hub.made == []
    assert list(Path().iterdir()) == []


def test_what_could_not_be_uploaded_is_kept(tuned: tuple[Any, Any], hub: type[Hub]) -> None:
    hub.fails = True
    with pytest.raises(
        ConfigError, match="failed: the line is cut; what was to be uploaded lies in (.*model)$"
    ) as caught:
        tuned[0].push_to_hub_merged("me/model", tuned[1], save_method="lora", token="hf_x")
    assert Path(str(caught.value).rpartition(" ")[2], "adapter_config.json").is_file()


def test_without_a_network_it_is_said(tuned: tuple[Any, Any]) -> None:
    with pytest.raises(ConfigError, match="me/model cannot be uploaded to: .*nothing was computed"):
        tuned[0].push_to_hub_merged("me/model", tuned[1], token="hf_x")


@pytest.mark.slow
def test_gguf_files_are_uploaded_with_what_belongs_to_them(tuned: tuple[Any, Any], hub: type[Hub], tiny: Path) -> None:
    tuned[0].push_to_hub_gguf("me/model", tuned[1], quantization_method=["q8_0"], token="hf_x")
    assert hub.made[-1][2] == sorted([f"{tiny.name}.Q8_0.gguf", "Modelfile", "README.md", "config.json", "verify.json"])
    tuned[0].push_to_hub_ggml("me/adapter", tuned[1], token="hf_x")
    assert any(name.endswith("LoRA-F32.gguf") for name in hub.made[-1][2])
    assert list(Path().iterdir()) == []
