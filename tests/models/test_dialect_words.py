"""Words added to a vocabulary, stretched positions and random weights: through training, saving, loading and export."""

import json
import shutil
from math import ceil
from pathlib import Path

import pytest
import torch
import yaml
from helpers import byte_tokenizer, make_folder
from transformers import AutoModelForCausalLM, AutoTokenizer

from luthier.config.load import load_config
from luthier.core.errors import ConfigError, ModelError
from luthier.data.template_names import NAMES
from luthier.models.device import place
from luthier.models.load import find, load_for_inference, load_model, load_tokenizer
from luthier.workflows.build import read_preparer
from luthier.workflows.export import export_model
from luthier.workflows.train import train

SETTINGS = {"max_steps": 2, "threads": 1, "per_device_train_batch_size": 2, "plot_loss": False, "dtype": "float32",
            "learning_rate": 1e-2, "report_to": "none", "lora_rank": 2}  # fmt: skip
WORDS = {"add_tokens": "冰淇淋", "add_special_tokens": "<call>,</call>"}


def config_of(folder, **settings):
    return load_config({**SETTINGS, "model_name_or_path": str(folder), **settings}).config


@pytest.fixture(scope="module")
def tied(tmp_path_factory) -> Path:
    return make_folder("llama_tied", tmp_path_factory.mktemp("tied"))


@pytest.fixture(scope="module")
def calls(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    rows = [{"instruction": f"冰淇淋 {i} <call>", "output": f"<call>冰淇淋</call> {i}"} for i in range(6)]
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    return path


def narrow(folder: Path, to: Path) -> Path:
    """The same model whose embedding has no row to spare."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(len(byte_tokenizer()), mean_resizing=False)
    model.save_pretrained(to)
    byte_tokenizer().save_pretrained(to)
    return to


@pytest.mark.parametrize("kind", ["tiny", "tied"])
def test_new_rows_begin_as_the_mean_of_their_pieces(request, tmp_path, kind) -> None:
    folder = narrow(request.getfixturevalue(kind), tmp_path)
    config = config_of(folder, **WORDS).model
    model = load_model(find(config), config, place(config))
    before = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer, old = load_tokenizer(find(config), config), byte_tokenizer()
    assert model.config.vocab_size == len(tokenizer) == len(old) + 3
    for table, was in ((model.get_input_embeddings(), before.get_input_embeddings()),
                       (model.get_output_embeddings(), before.get_output_embeddings())):  # fmt: skip
        for word in ("冰淇淋", "<call>"):
            mean = was.weight[old(word, add_special_tokens=False)["input_ids"]].mean(dim=0)
            torch.testing.assert_close(table.weight[tokenizer.convert_tokens_to_ids(word)], mean)
        assert torch.equal(table.weight[: len(old)], was.weight[: len(old)])
    assert not any(p.requires_grad for p in model.parameters())


def test_described_words_begin_as_the_mean_of_their_text(tiny, tmp_path) -> None:
    folder = narrow(tiny, tmp_path / "model")
    texts = {"<svg>": "begins a drawing", "</svg>": "ends: it 🙂"}
    (tmp_path / "words.yaml").write_text(yaml.safe_dump(texts, allow_unicode=True, sort_keys=False), encoding="utf-8")
    config = config_of(
        folder, new_special_tokens_config=str(tmp_path / "words.yaml"), init_special_tokens="description"
    )
    assert config.model.new_special_tokens_config == texts
    assert config_of(folder, new_special_tokens_config=texts) == config
    model = load_model(find(config.model), config.model, place(config.model))
    tokenizer, old = load_tokenizer(find(config.model), config.model), byte_tokenizer()
    was = AutoModelForCausalLM.from_pretrained(folder).get_input_embeddings().weight
    for word, text in texts.items():
        assert len(tokenizer(word, add_special_tokens=False)["input_ids"]) == 1
        mean = was[old(text, add_special_tokens=False)["input_ids"]].mean(dim=0)
        torch.testing.assert_close(model.get_input_embeddings().weight[tokenizer.convert_tokens_to_ids(word)], mean)
    assert tokenizer.decode(tokenizer("<svg>x")["input_ids"], skip_special_tokens=True) == "x"


@pytest.mark.parametrize(("text", "message"), [
    ("- <svg>", "expected `key: value` lines at the top, found a sequence"),
    ("<svg>: 3", "expected word: description, found '3' for <svg>"),
])  # fmt: skip
def test_descriptions_that_are_none(tmp_path, text: str, message: str) -> None:
    (tmp_path / "words.yaml").write_text(text)
    with pytest.raises(ConfigError, match=f"new_special_tokens_config: .*({message})"):
        config_of(tmp_path, new_special_tokens_config=str(tmp_path / "words.yaml"))
    with pytest.raises(ConfigError, match="new_special_tokens_config: .*nowhere.yaml does not exist"):
        config_of(tmp_path, new_special_tokens_config=str(tmp_path / "nowhere.yaml"))


@pytest.mark.parametrize("method", ["lora", "full", "freeze"])
@pytest.mark.parametrize("kind", ["tiny", "tied"])
def test_words_live_through_training_saving_and_export(request, tmp_path, calls, kind, method) -> None:
    folder = narrow(request.getfixturevalue(kind), tmp_path / "base")
    run = tmp_path / "run"
    how = {"freeze_trainable_layers": 1} if method == "freeze" else {}
    train(
        config_of(folder, dataset=str(calls), output_dir=str(run), finetuning_type=method, **how, **WORDS), quiet=True
    )
    model, tokenizer = load_for_inference(config_of(run).model, place(config_of(run).model))
    word = tokenizer.convert_tokens_to_ids("冰淇淋")
    assert word == len(byte_tokenizer())
    assert tokenizer("<call>冰淇淋").input_ids == [word + 1, word]
    config = config_of(folder, **WORDS).model
    start = load_model(find(config), config, place(config)).get_input_embeddings().weight[word]
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    now = plain.get_input_embeddings()
    now = now.modules_to_save["default"] if method == "lora" else now
    assert not torch.equal(now.weight[word], start), "the new row has learned"
    done = export_model(
        load_config(run / "config.yaml", [f"model_name_or_path={run}", "model.adapter_name_or_path="]).config
    )
    merged = AutoModelForCausalLM.from_pretrained(done[0].folder, dtype=torch.float32)
    assert AutoTokenizer.from_pretrained(done[0].folder).get_vocab() == tokenizer.get_vocab()
    ids = torch.tensor([tokenizer("a <call>冰淇淋</call> b").input_ids])
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, plain.eval()(ids).logits, rtol=1e-4, atol=1e-4)


def test_base_of_an_adapter_with_words_answers_without_it(tiny, tmp_path, calls) -> None:
    folder, run = narrow(tiny, tmp_path / "base"), tmp_path / "run"
    train(config_of(folder, dataset=str(calls), output_dir=str(run), **WORDS), quiet=True)
    shutil.copytree(
        run, tmp_path / "copy", ignore=lambda _, names: [n for n in names if n == "config.yaml" or "checkpoint" in n]
    )
    config = config_of(tmp_path / "copy").model
    model, tokenizer = load_for_inference(config, place(config), with_adapter=False)
    assert model.get_input_embeddings().weight.shape[0] == len(tokenizer)


def test_messages_spell_words_that_were_added_and_no_others(tiny, tmp_path, calls) -> None:
    template = read_preparer(config_of(narrow(tiny, tmp_path), **WORDS)).template
    tokens = template.tokenizer
    call, end = tokens.convert_tokens_to_ids(["<call>", "<|im_end|>"])
    spelled = template._guard([], None) and template._split_special("<call> <|im_end|>")
    ids = template._tokenize(spelled, ())[0]
    assert (ids.count(call), ids.count(end)) == (1, 0)
    loose = read_preparer(config_of(tmp_path, split_special_tokens=False, **WORDS)).template
    assert loose._tokenize(loose._split_special("<|im_end|>"), ())[0] == [end]


def test_resize_vocab_adds_what_the_template_needs(tiny, tmp_path, rows) -> None:
    folder = narrow(tiny, tmp_path / "base")
    with pytest.raises(ConfigError, match="which this tokenizer has not"):
        read_preparer(config_of(folder, template="llama3"))
    run = tmp_path / "run"
    train(config_of(folder, template="llama3", resize_vocab=True, dataset=str(rows), output_dir=str(run)), quiet=True)
    tokenizer = AutoTokenizer.from_pretrained(run)
    assert not set(NAMES["llama3"].needs) - set(tokenizer.get_vocab())
    assert tokenizer.eos_token == "<|eot_id|>"


def test_words_where_no_row_would_learn_are_refused(tiny, tmp_path, calls) -> None:
    folder, run = narrow(tiny, tmp_path / "base"), tmp_path / "run"
    settings = {"dataset": str(calls), "output_dir": str(run)}
    with pytest.raises(ConfigError, match="ia3 tuning keeps the embedding frozen; set finetuning_type: lora"):
        train(config_of(folder, finetuning_type="ia3", **settings, **WORDS), quiet=True)
    train(config_of(folder, **settings), quiet=True)
    again = {**settings, "output_dir": str(tmp_path / "again"), "adapter_name_or_path": str(run)}
    with pytest.raises(ConfigError, match="has no rows for '冰淇淋' and cannot get more; set create_new_adapter"):
        train(config_of(folder, **again, **WORDS), quiet=True)


# ---- positions


@pytest.mark.parametrize("kind", ["linear", "yarn", "llama3", "dynamic"])
def test_stretched_positions_are_those_of_transformers(tiny, tmp_path, kind) -> None:
    """As a model whose config.json says so, for a sequence longer than it was trained on."""
    config = config_of(tiny, rope_scaling=kind, cutoff_len=1200).model
    assert config.rope_length == 1200
    model = load_model(find(config), config, place(config))
    facts = json.loads((tiny / "config.json").read_text())
    rope = {"rope_type": kind, "factor": 3.0, "rope_theta": facts["rope_parameters"]["rope_theta"]}
    if kind in ("yarn", "llama3"):
        rope["original_max_position_embeddings"] = 512
    if kind == "llama3":
        rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    shutil.copytree(tiny, tmp_path / "said")
    positions = 512 if kind == "dynamic" else 1536
    (tmp_path / "said/config.json").write_text(
        json.dumps(facts | {"rope_parameters": rope, "max_position_embeddings": positions})
    )
    said = AutoModelForCausalLM.from_pretrained(tmp_path / "said", dtype=torch.float32)
    ids = torch.randint(0, 256, (1, 1100), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(model(ids, use_cache=False).logits, said(ids, use_cache=False).logits)
    assert model.config.max_position_embeddings == positions
    assert ceil(1200 / 512) == 3


def test_short_rows_need_no_stretching_and_other_positions_are_refused(tiny, tmp_path, caplog) -> None:
    config = config_of(tiny, rope_scaling="linear", cutoff_len=512).model
    caplog.set_level("INFO")
    model = load_model(find(config), config, place(config))
    assert model.config.rope_parameters["rope_type"] == "default"
    for name in ("gpt2", "gemma3"):
        config = config_of(make_folder(name, tmp_path / name), rope_scaling="yarn", cutoff_len=5000).model
        with pytest.raises(ModelError, match=r"rope_scaling: yarn does not fit: this model has"):
            load_model(find(config), config, place(config))


@pytest.mark.parametrize("method", ["lora", "full"])
def test_stretched_positions_stay_with_what_was_trained(tiny, tmp_path, rows, method) -> None:
    run = tmp_path / "run"
    train(config_of(tiny, rope_scaling="yarn", cutoff_len=1024, dataset=str(rows), output_dir=str(run),
                    finetuning_type=method), quiet=True)  # fmt: skip
    model, _ = load_for_inference(config_of(run).model, place(config_of(run).model))
    assert model.config.rope_parameters["rope_type"] == "yarn"
    assert model.config.max_position_embeddings == 1024
    if method == "lora":
        (alone,) = export_model(config_of(run, export_format="adapter"))
        carried, _ = load_for_inference(config_of(alone.folder).model, place(config_of(run).model))
        assert carried.config.rope_parameters == model.config.rope_parameters
    (done,) = export_model(config_of(run))
    merged = AutoModelForCausalLM.from_pretrained(done.folder, dtype=torch.float32)
    ids = torch.arange(600)[None] % 256
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, model.eval()(ids).logits, rtol=1e-4, atol=1e-4)


# ---- random weights


def test_training_from_scratch_needs_a_form_and_no_weights(tiny, tmp_path, rows) -> None:
    form = tmp_path / "form"
    shutil.copytree(tiny, form, ignore=shutil.ignore_patterns("*.safetensors"))
    run = tmp_path / "run"
    settings = {"dataset": str(rows), "finetuning_type": "full", "train_from_scratch": True}
    train(config_of(form, output_dir=str(run), seed=3, **settings), quiet=True)
    model, _ = load_for_inference(config_of(run).model, place(config_of(run).model))
    trained = AutoModelForCausalLM.from_pretrained(tiny).model.embed_tokens.weight
    assert (model.model.embed_tokens.weight - trained).abs().mean() > 0.01
    with pytest.raises(ConfigError, match="train_from_scratch: true needs finetuning_type: full"):
        config_of(form, **{**settings, "finetuning_type": "lora"})
    config = config_of(form).model
    with pytest.raises(ModelError, match="no weights"):
        load_model(find(config), config, place(config))
