"""The form: every setting is there, with its limits, and in both languages."""

import json
import re
from pathlib import Path

import pytest
from asking import asking

from luthier.config.load import json_schema, load_config
from luthier.core.registry import OBJECTIVES, TUNINGS
from luthier.server.ui.form import declarations, form, words, words_of
from luthier.server.ui.groups import BASIC, GROUPS


def test_every_setting_has_chinese_words_and_none_is_left_over() -> None:
    used: dict[str, set[str]] = {}
    for section, key, facts, names in declarations():
        for name in names or ("",):
            own = f"{section}.{name}.{key}"
            spelled = own if name and own in words("zh")["settings"] else None
            found = words_of(section, key, names, "zh")
            spelled = spelled or next(k for k, v in words("zh")["settings"].items() if v is found)
            used.setdefault(spelled, set()).add(facts.get("description", ""))
    assert used.keys() == words("zh")["settings"].keys()
    assert {key: helps for key, helps in used.items() if len(helps) > 1} == {}, "one text for two meanings"


def test_chinese_words_are_chinese() -> None:
    said = words("zh")
    texts = [*said["groups"].values(), *said["objectives"].values(), *said["tunings"].values()]
    texts += [help for _, help in said["settings"].values()]
    assert [text for text in texts if not re.search(r"[一-鿿]", text)] == []
    assert [text for text in texts if re.search(r"[一-鿿] *[,;!?(]", text)] == [], "punctuation"
    assert list(said["groups"]) == list(GROUPS)
    assert list(said["objectives"]) == OBJECTIVES.names()
    assert list(said["tunings"]) == TUNINGS.names()


def test_names_and_numbers_are_those_of_the_english_help() -> None:
    for section, key, facts, names in declarations():
        english, chinese = facts["description"], words_of(section, key, names, "zh")[1]
        for token in re.findall(r"arXiv:[\d.]+|`[a-z_ ]+`", english):
            assert token in chinese, (section, key, token)


def test_form_holds_every_setting() -> None:
    found = form("en")
    keys = {field.key for field in found.fields}
    for section, schema in json_schema()["properties"].items():
        for each in schema.get("oneOf", [schema]):
            assert {f"{section}.{key}" for key in each["properties"] if "oneOf" not in schema or key != "name"} <= keys
    assert {field.group for field in found.fields} == set(GROUPS)
    assert keys >= BASIC
    assert all(field.help and field.label for field in found.fields)


def test_limits_and_kinds() -> None:
    fields = {(field.key, tuple(field.only)): field for field in form("en").fields}
    epochs = fields["train.num_train_epochs", ()]
    assert (epochs.kind, epochs.least, epochs.open_least, epochs.default) == ("number", 0, True, 3.0)
    share = fields["model.vllm_memory_fraction", ()]
    assert (share.least, share.most, share.open_least, share.open_most) == (0, 1, True, True)
    batch = fields["train.per_device_train_batch_size", ()]
    assert (batch.kind, batch.least, batch.open_least) == ("integer", 1, False)
    assert fields["data.packing", ()].optional
    assert fields["data.packing", ()].kind == "flag"
    assert (fields["data.dataset_dir", ()].kind, fields["data.dataset", ()].kind) == ("text", "names")
    assert fields["data.enable_thinking", ()].choices == ["true", "false", "auto", "none"]
    assert fields["data.too_long", ()].choices == ["cut", "skip", "fail"]
    assert fields["train.swanlab_mode", ()].optional
    assert fields["objective.beta", ("dpo",)].help != fields["objective.beta", ("kto",)].help


def test_limits_are_those_of_the_settings() -> None:
    """A value on the border is taken or refused as the form says."""
    tried = 0
    for field in form("en").fields:
        section, _, key = field.key.partition(".")
        names = {"tuning": {"name": field.only[0]}, "objective": {"name": field.only[0]}} if field.only else {}
        for limit, is_open, beyond in (
            (field.least, field.open_least, -1), (field.most, field.open_most, 1),
        ):  # fmt: skip
            if limit is None or key == "pissa_iterations":  # -1 is another tool's word for 0
                continue
            values: dict = {"model": {"model_name_or_path": "m"}}
            if section in names:
                values[section] = dict(names[section])
            value = (
                (limit if is_open else limit + beyond)
                if field.kind == "number"
                else int(limit) + beyond * (not is_open)
            )
            values.setdefault(section, {})[key] = value
            with pytest.raises(Exception, match=rf"{key}: .*found '{re.escape(str(value))}'"):
                load_config(values)
            tried += 1
    assert tried > 100


def test_shelves() -> None:
    found = form("en")
    goals = {option.name: option.goal for option in found.objectives}
    assert (goals["sft"], goals["pt"], goals["dpo"], goals["kto"], goals["rm"], goals["grpo"], goals["ppo"]) == (
        "teach", "continue", "prefer", "prefer", "judge", "reward", "reward")  # fmt: skip
    needs = {option.name: option.needs for option in found.objectives}
    assert (needs["sft"], needs["kto"], needs["grpo"]) == (["conversation"], ["tagged"], ["prompt"])
    refused = {option.name: option.refused for option in found.tunings}
    assert "quantized weights are frozen" in refused["full"]["quantization.nf4"]
    assert refused["lora"] == {}
    assert {"qwen", "llama3"} <= set(found.templates)
    assert found.formats == ["auto", "alpaca", "openai", "sharegpt", "text"]


def test_over_http(tmp_path: Path) -> None:
    with asking(tmp_path) as page:
        chinese = page.get("/form", language="zh")
        assert next(f for f in chinese["fields"] if f["key"] == "train.learning_rate")["label"] == "学习率"
        assert chinese["groups"]["model"] == "模型"
        assert page.get("/form")["groups"]["model"] == "Model"
        page.get("/form", 422, language="de")
        assert page.get("/schema") == json.loads(json.dumps(json_schema()))
