"""One file, three spellings, one configuration; and where each value came from."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from luthier.config import compat
from luthier.config.load import SHELVES, dump, homes, json_schema, load_config
from luthier.config.schema import SECTIONS
from luthier.config.yaml_file import parse_scalar, parse_yaml
from luthier.core.errors import ConfigError
from luthier.core.registry import OBJECTIVES

FLAT = """
model_name_or_path: meta/some-model
trust_remote_code: true
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 16
lora_target: q_proj,v_proj
dataset: identity,alpaca_en_demo
template: llama3
cutoff_len: 1024
overwrite_cache: true
preprocessing_num_workers: 16
output_dir: saves/llama3
logging_steps: 10
save_steps: 100
plot_loss: true
overwrite_output_dir: true
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1e-4
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
ddp_timeout: 180000000
val_size: 0.1
eval_strategy: steps
eval_steps: 500
save_strategy: no
"""


def test_file_of_llama_factory_means_what_it_says(tmp_path: Path) -> None:
    path = tmp_path / "llama3_lora_sft.yaml"
    path.write_text(FLAT)
    loaded = load_config(path, ["lora_rank=32", "report_to=none"])
    config = loaded.config
    assert (config.tuning.rank, config.tuning.targets) == (32, ("q_proj", "v_proj"))
    assert config.data.dataset == ("identity", "alpaca_en_demo")
    assert config.train.learning_rate == 1e-4
    assert config.model.dtype == "bfloat16"
    assert not config.model.allow_remote_code
    assert config.train.save_strategy == "no"
    assert loaded.place("tuning.rank") == "command line"
    assert loaded.place("data.cutoff_len") == f"{path}:11"
    assert loaded.place("train.seed") == "default"
    said = "\n".join(loaded.notices)
    for key in ("trust_remote_code", "overwrite_cache", "preprocessing_num_workers", "ddp_timeout"):
        assert f"{key} is left out: {compat.IGNORED[key]}" in said


def test_preference_keys_of_llama_factory() -> None:
    flat = {"model_name_or_path": "m", "stage": "dpo", "pref_beta": 0.2, "pref_loss": "ipo", "pref_ftx": 0.5, "ref_model": "r",
            "simpo_gamma": None}  # fmt: skip
    config = load_config(flat, ["lora_rank=4"]).config
    assert (config.objective.beta, config.objective.loss, config.objective.sft_weight) == (0.2, "ipo", 0.5)
    assert config.model.ref_model == "r"
    assert (
        load_config({**flat, "pref_loss": "sigmoid", "dpo_label_smoothing": 0.1}).config.objective.label_smoothing
        == 0.1
    )
    assert load_config({"model_name_or_path": "m", "pref_beta": 0.2}).config.objective.rows == "answer"


@pytest.mark.parametrize(
    ("given", "name", "fields"),
    [
        ({"stage": "dpo"}, "dpo", {"beta": 0.1, "loss": "sigmoid"}),
        ({"stage": "dpo", "pref_loss": "hinge"}, "dpo", {"loss": "hinge"}),
        ({"stage": "dpo", "pref_loss": "orpo", "pref_beta": 0.3}, "orpo", {"beta": 0.3}),
        ({"stage": "dpo", "pref_loss": "simpo", "simpo_gamma": 0.5}, "simpo", {"beta": 2.0, "gamma": 0.5}),
        ({"stage": "dpo", "pref_loss": "simpo", "pref_ftx": 1.0}, "simpo", {"sft_weight": 1.0}),
        ({"stage": "dpo", "pref_loss": "kto_pair"}, "kto", {"beta": 0.1}),
        ({"objective": {"name": "dpo", "loss": "orpo"}}, "orpo", {"beta": 0.1}),
        ({"stage": "kto", "pref_beta": 0.2, "kto_chosen_weight": 1.5, "kto_rejected_weight": 0.5}, "kto",
         {"beta": 0.2, "desirable_weight": 1.5, "undesirable_weight": 0.5}),
        ({"stage": "rm", "pref_beta": 0.2}, "rm", {"margin": 0.0}),
    ],
)  # fmt: skip
def test_objectives_of_llama_factory(given: dict[str, Any], name: str, fields: dict[str, Any]) -> None:
    config = load_config({"model_name_or_path": "m", **given}).config
    assert OBJECTIVES.name_of(config.objective) == name
    assert {key: getattr(config.objective, key) for key in fields} == fields
    assert load_config(dump(config)).config == config


def test_a_loss_of_the_command_line_becomes_its_objective() -> None:
    given = {"model_name_or_path": "m", "stage": "dpo", "pref_loss": "sigmoid"}
    assert OBJECTIVES.name_of(load_config(given, ["pref_loss=orpo"]).config.objective) == "orpo"
    with pytest.raises(ConfigError, match="pref_loss: .*'sigmoid', 'hinge', 'ipo' or 'robust', found text 'orop'"):
        load_config(given, ["pref_loss=orop"])


def test_ppo_keys_of_llama_factory() -> None:
    given = {"model_name_or_path": "m", "ppo_epochs": 2, "ppo_buffer_size": 3, "ppo_score_norm": True}
    rollout = load_config(given).config.rollout
    assert (rollout.rollout_epochs, rollout.rollout_minibatches, rollout.score_scaling) == (2, 3, True)


def test_flat_nested_and_dotted_spellings_agree(tmp_path: Path) -> None:
    nested = {"model": {"model_name_or_path": "m", "dtype": "float32"}, "tuning": {"name": "freeze", "layers": 3}}
    dotted = {"model.model_name_or_path": "m", "model.dtype": "float32", "tuning.name": "freeze", "tuning.layers": 3}
    flat = {"model_name_or_path": "m", "dtype": "float32", "finetuning_type": "freeze", "freeze_trainable_layers": 3}
    configs = [load_config(each).config for each in (nested, dotted, flat)]
    assert configs[0] == configs[1] == configs[2]


def test_dump_is_read_back() -> None:
    config = load_config({"model_name_or_path": "m", "dataset": "a.jsonl,b.jsonl", "interleave_probs": [1, 2],
                          "mix_strategy": "interleave_under", "lora_alpha": 7, "columns": {"prompt": "q"}}).config  # fmt: skip
    text = yaml.safe_dump(dump(config), sort_keys=False)
    assert load_config(parse_yaml(text, "x").values).config == config


def test_setting_of_another_tuning_is_left_out_of_flat_files() -> None:
    config = load_config({"model_name_or_path": "m", "finetuning_type": "full", "lora_rank": 8}).config
    assert type(config.tuning).__name__ == "Full"


def test_paths_are_looked_for_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "rows.jsonl").write_text("{}\n")
    (tmp_path / "job" / "run.yaml").write_text("model_name_or_path: m\ndataset: rows.jsonl, other\noutput_dir: out\n")
    monkeypatch.chdir(tmp_path)
    config = load_config("job/run.yaml").config
    assert config.data.dataset == ("job/rows.jsonl", "other")
    assert config.train.output_dir == "out"
    monkeypatch.chdir(tmp_path / "job")
    assert load_config("run.yaml").config.data.dataset == ("rows.jsonl", "other")


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-4", 1e-4), ("2E5", 2e5), (".5", 0.5), ("1_000", 1000), ("-3", -3), ("yes", True), ("off", False), ("~", None),
     ("[a, b]", ["a", "b"]), ("C:\\x", "C:\\x"), ("a: b", "a: b"), ("12:30", "12:30"), ("'010'", "010"), ("1e", "1e")],
)  # fmt: skip
def test_scalars(text: str, value: Any) -> None:
    assert parse_scalar(text, "command line") == value


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        load_config(parse_yaml(text, "x").values)
    except ConfigError as error:
        assert str(error)


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=1e-30, max_value=1e30))
def test_every_float_that_python_writes_is_a_number(value: float) -> None:
    config = load_config({"model_name_or_path": "m"}, [f"learning_rate={value!r}"]).config
    assert config.train.learning_rate == value


def test_key_names_are_given_once() -> None:
    from dataclasses import fields

    names = [each.name for cls in SECTIONS.values() for each in fields(cls)]
    assert len(names) == len(set(names))
    tables = [set(compat.RENAMED), set(compat.IGNORED), set(compat.REFUSED), set(compat.SWITCHES), set(homes())]
    for i, one in enumerate(tables):
        for other in tables[i + 1 :]:
            assert not one & other


def test_renamed_keys_lead_to_settings() -> None:
    from dataclasses import fields

    targets = {*compat.RENAMED.values(), *compat.VALUES, *(target for target, _ in compat.SWITCHES.values())}
    tables = (*compat.PRESETS, *compat.BECOMES)
    presets = {dotted for conditions, settings in tables for dotted in (*conditions, *settings)}
    assert presets & compat.WORDS.keys() == compat.WORDS.keys()
    for dotted in (targets | presets | compat.MEANS.keys()) - compat.WORDS.keys():
        section, _, key = dotted.partition(".")
        classes = [SECTIONS[section]] if section in SECTIONS else [cls for _, cls in SHELVES[section][0].items()]
        assert key == "name" or any(key in {f.name for f in fields(cls)} for cls in classes), dotted


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"quantization_bit": 4}, "nf4"),
        ({"quantization_bit": 4, "quantization_type": "fp4"}, "fp4"),
        ({"quantization_bit": 8, "quantization_type": "nf4"}, "int8"),
        ({"quantization_bit": None}, "none"),
        ({"quantization_type": "nf4"}, "none"),
        ({"load_in_4bit": True}, "nf4"),
        ({"load_in_8bit": True}, "int8"),
        ({"load_in_4bit": False}, "none"),
        ({"finetuning_type": "qlora"}, "nf4"),
        ({"finetuning_type": "qlora", "quantization_bit": 8}, "int8"),
        ({"finetuning_type": "qlora", "quantization": "fp4"}, "fp4"),
        ({"tuning": {"name": "qlora", "rank": 4}}, "nf4"),
    ],
)
def test_words_for_quantization(given: dict, expected: str) -> None:
    config = load_config({"model_name_or_path": "m", **given}).config
    assert config.model.quantization == expected
    assert type(config.tuning).__name__ == "Lora"
    assert load_config(dump(config)).config == config


def test_quantization_is_combined_over_file_and_command_line() -> None:
    given = {"model_name_or_path": "m", "quantization_bit": 4, "quantization_method": "bnb"}
    model = load_config(given, ["quantization_type=fp4"]).config.model
    assert (model.quantization, model.quantization_backend) == ("fp4", "bitsandbytes")


@pytest.mark.parametrize("name", ["full", "freeze"])
def test_a_quantized_base_cannot_learn(name: str) -> None:
    with pytest.raises(
        ConfigError, match="quantized weights are frozen, but this tuning trains them; set finetuning_type: lora"
    ):
        load_config({"model_name_or_path": "m", "quantization": "nf4", "finetuning_type": name})


def test_other_numbers_of_bits_are_refused() -> None:
    with pytest.raises(ConfigError, match="quantization_bit: expected 4 or 8, found '3'"):
        load_config({"model_name_or_path": "m", "quantization_bit": 3})


def test_every_setting_is_explained() -> None:
    schema = json_schema()["properties"]
    described = [schema[s] for s in SECTIONS] + [c for s in SHELVES for c in schema[s]["oneOf"]]
    for part in described:
        for name, entry in part.get("properties", {}).items():
            assert name == "name" or entry.get("description"), name


def test_every_setting_is_read_somewhere() -> None:
    source = Path(__file__).parents[2] / "src"
    code = "".join(p.read_text() for p in source.rglob("*.py") if p.name not in ("schema.py", "compat.py"))
    assert [key for key in homes() if f".{key}" not in code] == []


def test_schedules_are_those_of_transformers() -> None:
    from typing import get_args

    from transformers import SchedulerType

    from luthier.config.training import Schedule

    by_metric = {"reduce_lr_on_plateau", "greedy"}
    assert set(get_args(Schedule)) == {each.value for each in SchedulerType} - by_metric
