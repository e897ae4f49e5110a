"""Every key of LLaMA-Factory is honoured, left out with a reason, or refused with one; other tools' files are told apart."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from luthier.config import compat
from luthier.config.convert import flat_yaml, nested_yaml
from luthier.config.load import homes, load_config
from luthier.core.errors import ConfigError

ROOT = Path(__file__).parents[2]
GROUPS = yaml.safe_load((ROOT / "docs/llamafactory_keys.yaml").read_text())
KEYS = [key for keys in GROUPS.values() for key in keys]
RECIPES = sorted((ROOT / "tests/recipes/llamafactory").glob("*.yaml"))


def test_names_are_listed_once() -> None:
    assert len(KEYS) == len(set(KEYS)) > 300


@pytest.mark.parametrize("key", KEYS)
def test_every_key_has_one_fate(key: str) -> None:
    fates = [compat.RENAMED, compat.SWITCHES, compat.IGNORED, compat.REFUSED, compat.ONLY, homes()]
    assert sum(key in table for table in fates) == 1


def test_every_reason_is_a_sentence() -> None:
    for table in (compat.IGNORED, compat.REFUSED, {key: reason for key, (_, reason) in compat.ONLY.items()}):
        assert [key for key, reason in table.items() if len(reason.split()) < 3] == []


def test_the_page_is_current() -> None:
    subprocess.run([sys.executable, ROOT / "docs/make_dialect.py", "--check"], check=True)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_converted_settings_are_the_same(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    loaded = load_config(path, ["default_system=say 1e-4: 'yes' # 你 🙂"])
    for text in (nested_yaml(loaded, str(path)), flat_yaml(loaded.config)):
        (tmp_path / "new.yaml").write_text(text)
        assert load_config(tmp_path / "new.yaml").config == loaded.config
    assert f"{path.name}:2" in nested_yaml(loaded, str(path))


def test_what_is_left_out_is_written_down() -> None:
    loaded = load_config({"model_name_or_path": "m", "finetuning_type": "full", "lora_rank": 4, "flash_attn": "fa2"})
    text = nested_yaml(loaded, "x.yaml")
    assert f"flash_attn is left out: {compat.IGNORED['flash_attn']}" in text
    assert "lora_rank is left out: tuning full has no such setting" in text


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (0.0, 1.0, 0)),
        ({"do_sample": True}, (0.95, 0.7, 50)),
        ({"do_sample": True, "temperature": 0.3}, (0.3, 0.7, 50)),
        ({"do_sample": False, "temperature": 0.3}, (0.0, 1.0, 0)),
        ({"temperature": 0.3, "top_k": 5, "num_beams": 1, "skip_special_tokens": True}, (0.3, 1.0, 5)),
    ],
)
def test_how_answers_are_drawn(given: dict, expected: tuple) -> None:
    how = load_config({"model_name_or_path": "m", **given}).config.generate
    assert (how.temperature, how.top_p, how.top_k) == expected


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("num_beams", 4, "without beams"),
        ("skip_special_tokens", False, "without special tokens"),
        ("export_quantization_bit", 4, "export_format: gguf"),
        ("export_legacy_format", True, "pickles"),
        ("export_hub_model_id", "me/model", "hf upload"),
        ("mixture_of_depths", "convert", "changes the architecture"),
    ],
)
def test_refusals(key: str, value: object, reason: str) -> None:
    with pytest.raises(ConfigError, match=f"{key} is not supported: .*{reason}"):
        load_config({"model_name_or_path": "m", key: value})


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("deepspeed", "examples/deepspeed/ds_z3_config.json", "accelerate launch --use_deepspeed"),
        ("fsdp", "full_shard auto_wrap", "accelerate launch --use_fsdp"),
        ("vllm_enforce_eager", True, "engine: vllm"),
        ("sglang_config", {"tp_size": 1}, "our decoder answers"),
    ],
)
def test_what_others_need_is_left_out(key: str, value: object, reason: str) -> None:
    loaded = load_config({"model_name_or_path": "m", key: value})
    assert loaded.config == load_config({"model_name_or_path": "m"}).config
    assert any(f"{key} is left out: " in each and reason in each for each in loaded.notices)


def test_ppo_answers_each_prompt_once() -> None:
    rollout = load_config({"model_name_or_path": "m", "stage": "ppo", "max_new_tokens": 40}).config.rollout
    assert (rollout.num_generations, rollout.max_completion_length) == (1, 40)
    more = {"num_generations": 4, "max_completion_length": 9}
    rollout = load_config({"model_name_or_path": "m", "stage": "ppo", "max_new_tokens": 40, **more}).config.rollout
    assert (rollout.num_generations, rollout.max_completion_length) == (4, 9)


AXOLOTL = {"base_model": "a/b", "datasets": [{"path": "c", "type": "alpaca"}], "sequence_len": 4096, "adapter": "qlora",
           "lora_r": 8, "micro_batch_size": 2, "flash_attention": True, "gpu_memory_limit": 3, "learning_rate": 1e-4}  # fmt: skip
TRL = {
    "model_name_or_path": "m",
    "dataset_name": "a/b",
    "per_device_train_batch_size": 2,
    "use_peft": True,
    "lora_r": 4,
}
UNSLOTH = {"model_name": "m", "max_seq_length": 2048, "r": 16, "random_state": 3407}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (AXOLOTL, ["settings of Axolotl", "base_model: a/b -> model_name_or_path", "lora_r: 8 -> lora_rank",
                   "Not needed here: flash_attention", "Without a counterpart: 'gpu_memory_limit'"]),
        (TRL, ["settings of TRL", "dataset_name: a/b -> dataset", "use_peft: True -> finetuning_type: lora"]),
        (UNSLOTH, ["settings of Unsloth", "max_seq_length: 2048 -> cutoff_len", "random_state: 3407 -> seed"]),
    ],
)  # fmt: skip
def test_files_of_neighbours(settings: dict, said: list[str], tmp_path: Path) -> None:
    path = tmp_path / "theirs.yaml"
    path.write_text(yaml.safe_dump(settings))
    with pytest.raises(ConfigError) as raised:
        load_config(path)
    message = str(raised.value)
    assert message.startswith(f"{path}: ")
    assert len(message.splitlines()) == 1
    assert [each for each in said if each not in message] == []
    assert "learning_rate" not in message


@pytest.mark.parametrize(
    ("key", "near"), [("lora_rnak", "did you mean 'lora_rank'"), ("lora_r", "it is lora_rank here")]
)
def test_unknown_keys_name_the_nearest(key: str, near: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown key '{key}'.*{near}"):
        load_config({"model_name_or_path": "m", key: 1})
