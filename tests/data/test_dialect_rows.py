"""Rows and registries as LLaMA-Factory's users have them: what each one means here, and what is said of a broken one."""

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import byte_tokenizer

from luthier.config.load import load_config
from luthier.config.schema import DataConfig
from luthier.core.errors import ConfigError, DataError, ModelError
from luthier.core.findings import RowError
from luthier.data.kept import read_or_prepare
from luthier.data.loader import Layout, MapLoader
from luthier.data.prepare import Preparer, prepare, stream_units
from luthier.data.rows import read_example
from luthier.data.sources import Source, find_sources
from luthier.data.template import ChatTemplate
from luthier.models.inspect import check_folder

CALL = '{"name": "weather", "arguments": {"city": "苏州 🙂"}}'
TOOLS = '[{"name": "weather", "description": "城市"}]'


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def said(row, kind: str = "answer", **entry) -> list[str]:
    """Every turn of a row as role:text, endings behind a bar."""
    example = read_example(row, Source(name="x", **{"formatting": "alpaca", **entry}), kind)
    turns = [_line(m) for m in example.context]
    for ending in example.endings:
        turns += ["|", *map(_line, ending)]
    return [*turns, *([f"tools:{example.tools}"] if example.tools else []), *_tag(example)]


def _line(message) -> str:
    calls = "".join(f" call {c['name']}({json.dumps(c['arguments'], ensure_ascii=False)})" for c in message.tool_calls)
    thought = f" ({message.reasoning})" if message.reasoning else ""
    return f"{message.role}:{message.content}{thought}{calls}"


def _tag(example) -> list[str]:
    return [] if example.desirable is None else [f"good:{example.desirable}"]


COLUMNS = {"prompt": "问", "query": "附", "response": "答", "system": "sys", "history": "past", "tools": "fns"}
TAGS = {"role_tag": "role", "content_tag": "text", "user_tag": "U", "assistant_tag": "A", "observation_tag": "O",
        "function_tag": "F", "system_tag": "S"}  # fmt: skip
SHAREGPT = {"formatting": "sharegpt"}
ASKED = [{"from": "human", "value": "你好 🙂"}]

ROWS: dict[str, tuple[dict, list[str]]] = {
    "alpaca": ({"row": {"instruction": "你好 🙂", "input": "x", "output": "嗨 👋"}}, ["user:你好 🙂\nx", "|", "assistant:嗨 👋"]),
    "empty input": ({"row": {"instruction": "q", "input": "", "output": "a"}}, ["user:q", "|", "assistant:a"]),
    "only an input": ({"row": {"instruction": "", "input": "q", "output": "a"}}, ["user:q", "|", "assistant:a"]),
    "columns and history": (
        {"row": {"问": "q", "附": None, "答": "a", "sys": "S", "past": [["p", "r"]], "fns": TOOLS}, "columns": COLUMNS},
        ["system:S", "user:p", "assistant:r", "user:q", "|", "assistant:a", f"tools:{TOOLS}"],
    ),
    "ranking": (
        {"row": {"instruction": "q", "chosen": "a", "rejected": "b"}, "kind": "pair", "ranking": True},
        ["user:q", "|", "assistant:a", "|", "assistant:b"],
    ),
    "tags": (
        {
            "row": {"talk": [{"role": "S", "text": "s"}, {"role": "U", "text": "q"}, {"role": "F", "text": CALL},
                             {"role": "O", "text": "21"}, {"role": "A", "text": "a"}]},
            "columns": {"messages": "talk"}, "tags": TAGS, **SHAREGPT,
        },
        ["system:s", "user:q", 'assistant: call weather({"city": "苏州 🙂"})', "tool:21", "|", "assistant:a"],
    ),
    "leading system turn": (
        {"row": {"conversations": [{"from": "system", "value": "in"}, *ASKED, {"from": "gpt", "value": "a"}], "system": "col"}, **SHAREGPT},
        ["system:in", "user:你好 🙂", "|", "assistant:a"],
    ),
    "system column": (
        {"row": {"conversations": [*ASKED, {"from": "gpt", "value": "a"}], "system": "col"}, **SHAREGPT},
        ["system:col", "user:你好 🙂", "|", "assistant:a"],
    ),
    "calls as a list, tools as text": (
        {"row": {"conversations": [*ASKED, {"from": "function_call", "value": f"[{CALL}, {CALL}]"}], "tools": TOOLS}, **SHAREGPT},
        ["user:你好 🙂", "|", 'assistant: call weather({"city": "苏州 🙂"}) call weather({"city": "苏州 🙂"})', f"tools:{TOOLS}"],
    ),
    "a thought before a call": (
        {"row": {"conversations": [*ASKED, {"from": "function_call", "value": f"<think>\nHm\n</think>\n\n{CALL}"}]}, **SHAREGPT},
        ["user:你好 🙂", "|", 'assistant: (Hm) call weather({"city": "苏州 🙂"})'],
    ),
    "ranking of turns": (
        {"row": {"conversations": ASKED, "chosen": {"from": "gpt", "value": "a"}, "rejected": {"from": "gpt", "value": "b"}},
         "kind": "pair", "ranking": True, **SHAREGPT},
        ["user:你好 🙂", "|", "assistant:a", "|", "assistant:b"],
    ),
    "openai": (
        {"row": {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"},
                              {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": json.loads(CALL)}]},
                              {"role": "tool", "content": "21"}, {"role": "assistant", "content": "a"}]}, "formatting": "openai"},
        ["system:s", "user:q", 'assistant: call weather({"city": "苏州 🙂"})', "tool:21", "|", "assistant:a"],
    ),
    "parts of text": (
        {"row": {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}, {"type": "text", "text": "r"}]},
                              {"role": "assistant", "content": "a"}]}, "formatting": "openai"},
        ["user:qr", "|", "assistant:a"],
    ),
    **{
        f"tag {value!r}": (
            {"row": {"instruction": "q", "output": "a", "kto_tag": value}, "kind": "tagged", "ranking": False},
            ["user:q", "|", "assistant:a", f"good:{good}"],
        )
        for value, good in ((True, True), ("True", True), ("false", False), (0, False))
    },
    "prompt without answer": ({"row": {"instruction": "q"}, "kind": "prompt"}, ["user:q"]),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_what_each_row_means(name) -> None:
    given, wanted = ROWS[name]
    assert said(**given) == wanted


def test_texts_of_pretraining() -> None:
    for row, columns in (({"text": "你好"}, {}), ({"instruction": "你好"}, {}), ({"body": "你好"}, {"prompt": "body"})):
        assert read_example(row, Source(name="x", columns=columns), "text").text == "你好"


BROKEN = {
    "two questions": ({"conversations": [*ASKED, *ASKED]}, SHAREGPT, "expected role assistant after user"),
    "odd": ({"conversations": ASKED}, SHAREGPT, "an answer of the assistant as the last turn, found role user"),
    "no JSON": ({"conversations": [*ASKED, {"from": "function_call", "value": "weather()"}]}, SHAREGPT, "expected JSON with name"),
    "a picture": ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, {"formatting": "openai"}, "parts of text only"),
    "a column of pictures": ({"instruction": "<image>q", "output": "a", "images": ["a.png"]}, {}, r"\[images\] expected no pictures"),
    "mapped pictures": ({"instruction": "q", "output": "a", "pics": ["a"]}, {"columns": {"images": "pics"}}, r"\[pics\] expected no pictures"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_one_broken_row_is_named_by_file_and_line(name) -> None:
    row, entry, message = BROKEN[name]
    with pytest.raises(RowError, match=message):
        said(row, **entry)
    good = {"conversations": [*ASKED, {"from": "gpt", "value": "好 🙂"}]} if entry == SHAREGPT else None
    good = good or {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    if entry not in (SHAREGPT, {"formatting": "openai"}):
        good = {"instruction": "你好", "output": "好 🙂"}
    Path("rows.jsonl").write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in (good, row, good)))
    registry = {"mine": {"file_name": "rows.jsonl", **entry}}
    config = DataConfig(dataset=("mine",), dataset_dir=registry)
    store, report = prepare(("mine",), Preparer(ChatTemplate(byte_tokenizer()), config, "answer"))
    assert (report.rows, len(store)) == (3, 2)
    (finding,) = report.errors()
    assert str(finding).endswith("skip") or "rows.jsonl:2" in str(finding)
    assert finding.where.endswith("rows.jsonl:2")


# ---- registries


def write_registry(path: Path, **entries) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(entries))
    (path.parent / "a.jsonl").write_text('{"instruction": "q", "output": "a"}\n' * 5)


def test_each_form_of_dataset_dir() -> None:
    entry = {"file_name": "a.jsonl", "num_samples": 3}
    write_registry(Path("data/dataset_info.json"), mine=entry)
    write_registry(Path("other/own.json"), mine=entry)
    for place in ("data", "data/dataset_info.json", "other/own.json"):
        (source,) = find_sources(("mine",), DataConfig(dataset_dir=place))
        assert (source.path.name, source.max_rows, source.formatting) == ("a.jsonl", 3, "alpaca")
    (source,) = find_sources(("mine",), DataConfig(dataset_dir={"mine": {"file_name": "data/a.jsonl"}}, max_samples=2))
    assert (source.path, source.max_rows) == (Path("data/a.jsonl").resolve(), 2)
    (source,) = find_sources(("org/set",), DataConfig(dataset_dir="ONLINE"))
    assert source.hub == "org/set"


def test_a_registry_on_the_hub(monkeypatch) -> None:
    write_registry(Path("cached/dataset_info.json"), mine={"file_name": "a.jsonl"})
    asked = []
    monkeypatch.setattr(
        "huggingface_hub.hf_hub_download", lambda *given, **more: asked.append(given) or "cached/dataset_info.json"
    )
    (source,) = find_sources(("mine",), DataConfig(dataset_dir="REMOTE:org/sets"))
    assert asked == [("org/sets", "dataset_info.json")]
    assert source.path == Path("cached/a.jsonl").resolve()
    with pytest.raises(
        DataError, match="'mne' is neither a file .* REMOTE:org/sets/dataset_info.json; did you mean 'mine'"
    ):
        find_sources(("mne",), DataConfig(dataset_dir="REMOTE:org/sets"))


def test_a_data_set_on_the_hub(monkeypatch) -> None:
    import datasets

    asked = []
    monkeypatch.setattr(
        datasets,
        "load_dataset",
        lambda *given, **more: asked.append((given, more)) or [{"instruction": "q", "output": "a"}],
    )
    entry = {"hf_hub_url": "org/set", "ms_hub_url": "org/other", "subset": "zh", "folder": "v2", "split": "test"}
    config = DataConfig(dataset=("mine",), dataset_dir={"mine": entry})
    store, _ = prepare(("mine",), Preparer(ChatTemplate(byte_tokenizer()), config, "answer"))
    assert asked[-1] == (("org/set", "zh"), {"data_dir": "v2", "split": "test", "streaming": True})
    assert store.origins == ["org/set:1"]


ENTRIES = {
    "script": ({"script_url": "make.py"}, "script_url is not read: it is code that would run"),
    "modelscope": ({"ms_hub_url": "a/b"}, "ms_hub_url is not read: rows are read from files and the Hugging Face hub"),
    "modelers": ({"om_hub_url": "a/b"}, "om_hub_url is not read"),
    "cloud": ({"cloud_file_name": "s3://a"}, "cloud_file_name is not read: .* download them and name the file"),
    "nothing": ({"formatting": "alpaca"}, "needs file_name or hf_hub_url"),
    "typo": ({"file_name": "a.jsonl", "colums": {}}, "unknown key 'colums'; did you mean 'columns'"),
    "text for a number": ({"file_name": "a.jsonl", "num_samples": "5"}, "num_samples: expected a whole number, found '5'"),
    "list for columns": ({"file_name": "a.jsonl", "columns": ["x"]}, "columns: expected an object"),
    "missing file": ({"file_name": "b.jsonl"}, "b.jsonl does not exist; did you mean 'a.jsonl'"),
    "no object": ("a.jsonl", "expected an object, found 'a.jsonl'"),
}  # fmt: skip


@pytest.mark.parametrize("name", ENTRIES)
def test_entries_that_cannot_be_read_say_why(name) -> None:
    entry, message = ENTRIES[name]
    write_registry(Path("data/dataset_info.json"), mine=entry)
    with pytest.raises(DataError, match=message) as caught:
        find_sources(("mine",), DataConfig())
    assert "data/dataset_info.json: entry 'mine'" in str(caught.value)
    assert caught.value.exit_code == 2


# ---- mixes, seeds, kept tokens


def two_sets() -> None:
    for name, count in (("a", 3), ("b", 9)):
        rows = [{"instruction": f"{name}{i}", "output": str(i)} for i in range(count)]
        Path(f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))


def drawn(mix: str, seed: int = 0, probabilities=()) -> list[int]:
    store = SimpleNamespace(source_index=np.array([0] * 3 + [1] * 9), lengths=lambda: np.ones(12))
    loader = MapLoader(store, np.arange(12), Layout(rows_per_batch=1), seed=seed, mix=mix, probabilities=probabilities)
    return [int(i) for i in loader.order(0)]


def test_each_row_once_and_mixed() -> None:
    order = drawn("interleave_once")
    assert sorted(order) == list(range(12))
    assert order != sorted(order)
    early = [drawn("interleave_once", seed, (0.9, 0.1))[:4] for seed in range(20)]
    assert sum(i < 3 for order in early for i in order) > 45, "drawn by weight"
    assert set(drawn("interleave_once", 0, (0.0, 1.0))) == set(range(3, 12))


@pytest.mark.parametrize(("mix", "counts"), [
    ("concat", (3, 9)), ("interleave_once", (3, 9)), ("interleave_under", None), ("interleave_over", None),
])  # fmt: skip
def test_streams_are_mixed_too(mix, counts) -> None:
    two_sets()
    config = DataConfig(mix_strategy=mix, interleave_probs=(0.5, 0.5) if mix != "concat" else ())
    start = stream_units(("a.jsonl", "b.jsonl"), Preparer(ChatTemplate(byte_tokenizer()), config, "answer"), 7)
    names = [row.value["instruction"] for row, _ in start()]
    assert names == [row.value["instruction"] for row, _ in start()], "again from the beginning"
    found = Counter(name[0] for name in names)
    seen = Counter(names)
    if counts:
        assert (found["a"], found["b"]) == counts
        assert max(seen.values()) == 1
    elif mix == "interleave_under":
        assert found["a"] == 3 or found["b"] == 9
        assert max(seen.values()) == 1
    else:
        assert len(seen) == 12
        assert len(names) > 12


def test_order_has_a_seed_of_its_own() -> None:
    from luthier.workflows.build import seed_of_rows

    config = {"model_name_or_path": "m", "seed": 4}
    assert seed_of_rows(load_config(config).config) == 4
    assert seed_of_rows(load_config({**config, "data_seed": 9}).config) == 9


def test_tokenized_rows_are_kept_and_read() -> None:
    two_sets()
    config = DataConfig(tokenized_path="kept")
    preparer = Preparer(ChatTemplate(byte_tokenizer()), config, "answer")
    first, report = read_or_prepare(("a.jsonl",), preparer, "train")
    Path("a.jsonl").unlink()
    again, same = read_or_prepare((), preparer, "train")
    assert list(again) == list(first)
    assert same.as_dict() == report.as_dict()
    other = Preparer(ChatTemplate(byte_tokenizer()), DataConfig(tokenized_path="kept", cutoff_len=64), "answer")
    with pytest.raises(DataError, match="made with another cutoff_len \\(2048, now 64\\); name another folder"):
        read_or_prepare((), other, "train")
    masked = Preparer(ChatTemplate(byte_tokenizer(), mask_history=True), config, "answer")
    with pytest.raises(DataError, match="another mask_history"):
        read_or_prepare((), masked, "train")
    file = Path("kept/train.safetensors")
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(DataError, match="train.safetensors is damaged"):
        read_or_prepare((), preparer, "train")


def test_rows_that_were_refused_are_not_kept() -> None:
    Path("a.jsonl").write_text('{"instruction": "q", "output": "a"}\n{"instruction": "q"}\n')
    preparer = Preparer(ChatTemplate(byte_tokenizer()), DataConfig(tokenized_path="kept"), "answer")
    read_or_prepare(("a.jsonl",), preparer, "train")
    assert not Path("kept").exists()


# ---- settings


CONTRADICTIONS = {
    "streaming: true tokenizes rows while training, but tokenized_path": {"streaming": True, "max_steps": 3, "tokenized_path": "x"},
    "eval_on_each_dataset: true needs eval_dataset": {"eval_on_each_dataset": True},
    "train_on_prompt learns the whole conversation and mask_history": {"train_on_prompt": True, "mask_history": True},
    "rope_length needs rope_scaling": {"rope_length": 4096},
    "train_from_scratch: true and quantization contradict": {"train_from_scratch": True, "finetuning_type": "full", "quantization_bit": 4},
    "train_from_scratch: true and adapter_name_or_path contradict": {"train_from_scratch": True, "finetuning_type": "full", "adapter_name_or_path": "x"},
    "train_from_scratch: true needs stage: pt or sft": {"train_from_scratch": True, "finetuning_type": "full", "stage": "dpo"},
    "interleave_probs needs mix_strategy": {"interleave_probs": "0.5,0.5"},
}  # fmt: skip


@pytest.mark.parametrize("message", CONTRADICTIONS)
def test_contradictions_name_both_keys(message) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_config({"model_name_or_path": "m", "dataset": "a,b", **CONTRADICTIONS[message]})
    assert caught.value.exit_code == 2


def test_thoughts_have_four_answers() -> None:
    for given, wanted in ((None, "none"), (True, True), (False, False), ("auto", "auto")):
        config = load_config({"model_name_or_path": "m", "enable_thinking": given}).config
        assert config.data.enable_thinking == wanted
    assert load_config({"model_name_or_path": "m"}).config.data.enable_thinking == "auto"


# ---- models that read more than text


@pytest.mark.parametrize(("raw", "what"), [
    ({"model_type": "qwen2_vl", "vision_config": {"depth": 1}}, "pictures"),
    ({"model_type": "qwen2_audio", "audio_config": {"x": 1}}, "sounds"),
])  # fmt: skip
def test_multimodal_models_are_refused(raw, what) -> None:
    folder = Path("model")
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(raw))
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(
        ModelError, match=f"type '{raw['model_type']}' that reads {what} .* trains text models"
    ) as caught:
        check_folder(folder, allow_remote_code=False, allow_pickle=False)
    assert caught.value.exit_code == 2


def test_keys_of_pictures_are_left_out_with_a_line() -> None:
    loaded = load_config({"model_name_or_path": "m", "image_max_pixels": 262144, "freeze_vision_tower": True})
    assert [line.partition(" is left out")[0].rpartition(" ")[2] for line in loaded.notices] == [
        "image_max_pixels",
        "freeze_vision_tower",
    ]
