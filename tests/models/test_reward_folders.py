"""Folders of reward models: what plain transformers and peft make of them, and what we make of theirs."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import TINY_CONFIGS, byte_tokenizer, make_folder
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification
from tunings import CASES, SMALL, stir

from luthier.config.schema import ModelConfig
from luthier.core.errors import ConfigError, ModelError
from luthier.core.types import Message
from luthier.models.adapters import load_adapter
from luthier.models.device import place
from luthier.models.load import find, load_for_inference, load_model, merge_in, put_kernels, resolve
from luthier.models.policy import Policy
from luthier.models.reward_files import check_reward_form, distinct_pad, is_reward_folder, read_head
from luthier.models.reward_model import load_reward_model
from luthier.models.value import make_head, only_values, save_with_head, start_head

TEXTS = [list(range(5, 30)), list(range(40, 90)), [7, 7, 7, 258]]
READ_BY_PEFT = [name for name in SMALL if name not in ("full", "freeze", "bottleneck")]


def settings(folder: Path, **more: Any) -> ModelConfig:
    return ModelConfig(model_name_or_path=str(folder), **{"dtype": "float32", "threads": 1, **more})


def trained(base: Path, tuning: Any, folder: Path, **more: Any) -> Policy:
    """A reward model whose learning parameters have moved, written into `folder`."""
    config = settings(base, **more)
    model = stir(tuning.apply(only_values(load_model(find(config), config, place(config)))))
    put_kernels(model, config)
    policy = Policy(model, value_head=make_head(model, 5)).eval()
    save_with_head(policy, folder, byte_tokenizer(), str(base))
    return policy


def ours(folder: Path, **more: Any) -> torch.Tensor:
    config = settings(folder, **more)
    return load_reward_model(str(folder), config, place(config)).score([t[:3] for t in TEXTS], [t[3:] for t in TEXTS])


def theirs(model: Any) -> torch.Tensor:
    """Plain transformers, one sequence at a time."""
    model.eval()
    with torch.no_grad():
        found = [model(input_ids=torch.tensor([t]), attention_mask=torch.ones(1, len(t))).logits[0] for t in TEXTS]
    return torch.cat(found)


def plain(folder: Path, **more: Any) -> Any:
    more |= {"dtype": torch.float32, "attn_implementation": "eager"}
    return AutoModelForSequenceClassification.from_pretrained(folder, **more)


def plain_adapter(base: Path, folder: Path) -> Any:
    from peft import PeftModel

    return PeftModel.from_pretrained(plain(base, num_labels=1), str(folder))


def has_class(name: str) -> bool:
    return type(TINY_CONFIGS[name]()) in AutoModelForSequenceClassification._model_mapping


@pytest.mark.parametrize("name", [name for name in TINY_CONFIGS if has_class(name)])
def test_whole_model_is_one_of_transformers(name: str, tmp_path: Path) -> None:
    base = make_folder(name, tmp_path / "base")
    policy = trained(base, SMALL["full"][0], tmp_path / "reward")
    facts = json.loads((tmp_path / "reward" / "config.json").read_text())
    assert facts["architectures"][0].endswith("ForSequenceClassification")
    assert (facts["pad_token_id"], len(facts.get("id2label", {0: 0}))) == (256, 1)
    names = load_file(tmp_path / "reward" / "model.safetensors")
    assert "score.weight" in names
    assert not any(key.startswith(("lm_head", "embed_out")) for key in names)
    model, report = plain(tmp_path / "reward", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    torch.testing.assert_close(ours(tmp_path / "reward"), theirs(model), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(read_head(tmp_path / "reward", settings(base)).weight, policy.value_head.weight)


@pytest.mark.parametrize("tuning", READ_BY_PEFT)
@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "phi3"])
def test_adapter_is_one_of_peft(name: str, tuning: str, tmp_path: Path) -> None:
    base = make_folder(name, tmp_path / "base")
    policy = trained(base, SMALL[tuning][0], tmp_path / "reward")
    facts = json.loads((tmp_path / "reward" / "adapter_config.json").read_text())
    assert facts["task_type"] == "SEQ_CLS"
    assert facts["modules_to_save"] == ["score"]
    expected = theirs(plain_adapter(base, tmp_path / "reward"))
    torch.testing.assert_close(ours(tmp_path / "reward"), expected, rtol=1e-4, atol=1e-4)
    bare = only_values(load_model(resolve(str(base)), settings(base), place(settings(base))))
    again = load_adapter(bare, tmp_path / "reward", trainable=True)
    learning = {name: p for name, p in policy.model.named_parameters() if p.requires_grad}
    back = {name: p for name, p in again.named_parameters() if p.requires_grad}
    assert learning.keys() == back.keys()
    for key, parameter in learning.items():
        torch.testing.assert_close(back[key], parameter, rtol=0, atol=0)


@pytest.mark.parametrize("case", ["lora-saves", "pissa", "pissa-saves", "dora", "ptuning-lstm", "bottleneck"])
def test_more_adapters(case: str, tiny: Path, tmp_path: Path) -> None:
    policy = trained(tiny, CASES[case][0], tmp_path / "reward")
    expected = theirs_of(policy)
    torch.testing.assert_close(ours(tmp_path / "reward"), expected, rtol=1e-4, atol=1e-5)
    if case != "bottleneck":
        there = theirs(plain_adapter(tiny, tmp_path / "reward"))
        torch.testing.assert_close(there, expected, rtol=1e-4, atol=1e-4)


def theirs_of(policy: Policy) -> torch.Tensor:
    from luthier.models.reward_model import RewardModel

    return RewardModel(policy, None, None, "").score([[] for _ in TEXTS], TEXTS)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_quantized_base_with_adapter(tiny: Path, tmp_path: Path, kind: str) -> None:
    policy = trained(tiny, SMALL["lora"][0], tmp_path / "reward", quantization=kind)
    again = ours(tmp_path / "reward", quantization=kind)
    torch.testing.assert_close(again, theirs_of(policy), rtol=1e-5, atol=1e-5)
    whole = trained(tiny, SMALL["full"][0], tmp_path / "whole")
    narrow = ours(tmp_path / "whole", quantization=kind)
    assert 0 < (narrow - theirs_of(whole)).abs().max() < 1


def test_head_is_kept_in_float32(tiny: Path, tmp_path: Path) -> None:
    trained(tiny, SMALL["lora"][0], tmp_path / "adapter")
    config = settings(tmp_path / "adapter")
    names = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert names["base_model.model.score.weight"].dtype == torch.float32
    model = load_model(resolve(str(tiny)), config, place(config)).bfloat16()
    assert make_head(model, 0).weight.dtype == torch.float32


def test_fresh_head_is_a_function_of_the_seed(tiny: Path) -> None:
    config = settings(tiny)
    model = load_model(resolve(str(tiny)), config, place(config))
    torch.manual_seed(0)
    first = start_head(model, resolve(str(tiny)), config, seed=7).weight
    assert torch.equal(torch.rand(3), torch.manual_seed(0) and torch.rand(3))
    torch.testing.assert_close(start_head(model, resolve(str(tiny)), config, seed=7).weight, first, rtol=0, atol=0)
    assert not torch.equal(start_head(model, resolve(str(tiny)), config, seed=8).weight, first)
    many = torch.cat([make_head(model, seed).weight[0].detach() for seed in range(300)])
    assert abs(float(many.std()) * (32 + 1) ** 0.5 - 1) < 0.05


def test_head_is_that_of_the_model_that_is_gone_on_with(tiny: Path, tmp_path: Path) -> None:
    policy = trained(tiny, SMALL["lora"][0], tmp_path / "reward")
    config = settings(tmp_path / "reward")
    found = start_head(policy.model, find(config), config, seed=1)
    torch.testing.assert_close(found.weight, policy.value_head.weight, rtol=0, atol=0)
    with pytest.raises(ModelError, match="holds no value head"):
        start_head(policy.model, find(config), config, seed=1, resume=tiny)


def test_heads_of_others(tiny: Path, tmp_path: Path) -> None:
    """TRL's value heads, classifiers of several classes, and models without any head."""
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    head = nn.Linear(32, 1)
    state = {**model.state_dict(), "v_head.summary.weight": head.weight, "v_head.summary.bias": head.bias}
    (tmp_path / "trl").mkdir()
    model.config.save_pretrained(tmp_path / "trl")
    byte_tokenizer().save_pretrained(tmp_path / "trl")
    save_file(
        {key: x.detach().clone() for key, x in state.items()}, tmp_path / "trl" / "model.safetensors", {"format": "pt"}
    )
    hidden = torch.stack([model.model(torch.tensor([t])).last_hidden_state[0, -1] for t in TEXTS])
    torch.testing.assert_close(ours(tmp_path / "trl"), (hidden @ head.weight.T)[:, 0].detach(), rtol=1e-4, atol=1e-5)
    assert not is_reward_folder(tmp_path / "trl")
    plain(tiny, num_labels=3).save_pretrained(tmp_path / "three")
    byte_tokenizer().save_pretrained(tmp_path / "three")
    with pytest.raises(ModelError, match="classifier of 3 classes"):
        ours(tmp_path / "three")
    with pytest.raises(ModelError, match=r"no value head \(no score.weight in .*there are: .*model.safetensors"):
        ours(tiny)


def test_plain_folders_are_read(tiny: Path, tmp_path: Path) -> None:
    """What transformers and peft write themselves."""
    from peft import LoraConfig, get_peft_model

    model = plain(tiny, num_labels=1)
    model.save_pretrained(tmp_path / "plain")
    byte_tokenizer().save_pretrained(tmp_path / "plain")
    torch.testing.assert_close(ours(tmp_path / "plain"), theirs(model), rtol=1e-4, atol=1e-5)
    tuned = stir(get_peft_model(model, LoraConfig(r=4, task_type="SEQ_CLS", target_modules=["q_proj", "up_proj"])))
    tuned.peft_config["default"].base_model_name_or_path = str(tmp_path / "plain")
    tuned.save_pretrained(tmp_path / "lora")
    torch.testing.assert_close(ours(tmp_path / "lora"), theirs(tuned), rtol=1e-4, atol=1e-5)


def test_reward_models_do_not_write(tiny: Path, tmp_path: Path) -> None:
    for name in ("lora", "full", "bottleneck"):
        trained(tiny, SMALL[name][0], tmp_path / name)
        config = settings(tmp_path / name)
        with pytest.raises(ModelError, match="is a reward model: it grades answers and writes none"):
            load_for_inference(config, place(config))


@pytest.mark.parametrize("name", [name for name in TINY_CONFIGS if not has_class(name)])
def test_models_without_a_class_are_refused_beforehand(name: str) -> None:
    with pytest.raises(ConfigError, match="no sequence-classification class for model type") as caught:
        check_reward_form(TINY_CONFIGS[name]())
    assert caught.value.exit_code == 2


def test_shared_prompts_and_bounded_batches(tiny: Path, tmp_path: Path) -> None:
    """Order is kept, a prompt is computed once, and nothing depends on what stands together."""
    trained(tiny, SMALL["full"][0], tmp_path / "reward")
    config = settings(tmp_path / "reward")
    model = load_reward_model(str(tmp_path / "reward"), config, place(config))
    one, two = list(range(60)), list(range(90, 150))
    prompts = [one, two, one, two, one, [3]]
    answers = [[5, 258], [6, 258], [7, 8, 9, 258], [1] * 30, [5, 258], [258]]
    every = model.score(prompts, answers)
    alone = torch.cat([model.score([p], [a]) for p, a in zip(prompts, answers, strict=True)])
    torch.testing.assert_close(every, alone, rtol=1e-4, atol=1e-5)
    sizes = []
    plainly = model.policy.forward
    model.policy.forward = lambda batch, **more: (sizes.append(batch.num_tokens), plainly(batch, **more))[1]
    model.score(prompts, answers)
    assert sizes == [60 + 60 + 2 + 4 + 2 + 2 + 30 + 2]
    model.tokens_at_a_time = 70
    torch.testing.assert_close(model.score(prompts, answers), every, rtol=1e-4, atol=1e-5)
    assert max(sizes[1:]) <= 90
    assert len(model.score([], [])) == 0
    with pytest.raises(ModelError, match="answer 1 is empty"):
        model.score([[1], []], [[], []])


def test_text_is_graded_where_tokens_differ(tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trained(tiny, SMALL["full"][0], tmp_path / "reward")
    config = settings(tmp_path / "reward")
    model = load_reward_model(str(tmp_path / "reward"), config, place(config))
    assert model.takes_tokens_of(byte_tokenizer())
    other = byte_tokenizer()
    other.add_tokens(["tea "])
    assert not model.takes_tokens_of(other)
    question, answer = [Message(role="user", content="Tea? 你好")], "Yes 🙂"
    tokenizer = model.tokenizer
    text = "<|im_start|>user\nTea? 你好<|im_end|>\n<|im_start|>assistant\nYes 🙂<|im_end|>"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    with torch.no_grad():
        expected = plain(tmp_path / "reward").eval()(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(model.score_text([question], [answer]), expected, rtol=1e-4, atol=1e-5)


def test_padding_never_ends_an_answer() -> None:
    tokenizer = byte_tokenizer()
    assert distinct_pad(tokenizer) == 256
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.bos_token = "<|endoftext|>"
    assert distinct_pad(tokenizer) == 256
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|my_pad|>"]})
    tokenizer.pad_token = tokenizer.eos_token
    assert distinct_pad(tokenizer, [256]) == tokenizer.convert_tokens_to_ids("<|my_pad|>")


@pytest.mark.parametrize("name", ["llama", "gemma3", "phi3"])
def test_merged_is_the_same_reward(name: str, tmp_path: Path) -> None:
    from luthier.config.load import load_config
    from luthier.workflows.export import export_model

    base = make_folder(name, tmp_path / "base")
    trained(base, SMALL["lora"][0], tmp_path / "reward")
    told = {"model_name_or_path": str(tmp_path / "reward"), "export_dir": str(tmp_path / "merged")}
    export_model(load_config(told).config)
    assert AutoConfig.from_pretrained(tmp_path / "merged").architectures[0].endswith("ForSequenceClassification")
    expected = ours(tmp_path / "reward")
    torch.testing.assert_close(theirs(plain(tmp_path / "merged")), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours(tmp_path / "merged"), expected, rtol=1e-4, atol=1e-4)
    export_model(load_config({**told, "export_dir": str(tmp_path / "adapter"), "export_format": "adapter"}).config)
    torch.testing.assert_close(theirs(plain_adapter(base, tmp_path / "adapter")), expected, rtol=1e-4, atol=1e-4)


def test_merged_head_stays_whole_in_bfloat16(tiny: Path, tmp_path: Path) -> None:
    from luthier.config.load import load_config
    from luthier.workflows.export import export_model

    policy = trained(tiny, SMALL["lora"][0], tmp_path / "reward")
    told = {
        "model_name_or_path": str(tmp_path / "reward"),
        "export_dir": str(tmp_path / "m"),
        "export_dtype": "bfloat16",
    }
    export_model(load_config(told).config)
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    assert tensors["score.weight"].dtype == torch.float32
    assert tensors["model.norm.weight"].dtype == torch.bfloat16
    torch.testing.assert_close(tensors["score.weight"], policy.value_head.weight, rtol=0, atol=0)


def test_reward_adapter_is_merged_below_another(tiny: Path, tmp_path: Path) -> None:
    trained(tiny, SMALL["lora"][0], tmp_path / "one")
    config = settings(tiny)
    merged = merge_in(load_model(resolve(str(tiny)), config, place(config)), [tmp_path / "one"])
    head = read_head(tmp_path / "one", config)
    torch.testing.assert_close(theirs_of(Policy(merged, value_head=head)), ours(tmp_path / "one"), rtol=1e-4, atol=1e-4)
