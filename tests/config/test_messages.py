"""What a person reads after each mistake in a settings file, word by word."""

from pathlib import Path

import pytest

from luthier.config.load import load_config
from luthier.core.errors import ConfigError

MISTAKES = {
    "misspelt": ("learnig_rate: 1e-4", "f.yaml:2: unknown key 'learnig_rate' (value '0.0001'); did you mean 'learning_rate'?"),
    "negative": ("learning_rate: -1", "f.yaml:2: learning_rate: input should be greater than or equal to 0, found '-1'"),
    "nan": ("learning_rate: .nan", "f.yaml:2: learning_rate: expected a finite number, found 'nan'"),
    "text for a number": ("learning_rate: fast", "f.yaml:2: learning_rate: expected a number, found text 'fast'"),
    "user's spelling": ("lora_rank: 2.5", "f.yaml:2: lora_rank: expected a whole number, found '2.5'"),
    "list": ("lora_target: 3", "f.yaml:2: lora_target: expected a list, found '3'"),
    "switch": ("bf16: maybe", "f.yaml:2: bf16: expected true or false, found 'maybe'"),
    "twice": ("seed: 1\nseed: 2", "f.yaml:3: key 'seed' stands twice, first in line 2"),
    "flat and nested": ("model:\n  model_name_or_path: n", "f.yaml:3: model.model_name_or_path is given twice, first at f.yaml:1"),
    "section": ("model: 3", "f.yaml:2: model is a section: expected `key: value` lines, found '3'"),
    "nested key": ("model:\n  dtyp: float32", "f.yaml:3: unknown key 'model.dtyp' (value 'float32'); did you mean 'dtype'?"),
    "tuning": ("finetuning_type: lroa", "f.yaml:2: unknown tuning 'lroa'; did you mean 'lora'? It may be one of: bottleneck, freeze, full, ia3, lora, oft, prefix, prompt, ptuning, ptuning_v2, vera"),
    "foreign": ("tuning:\n  name: freeze\n  rank: 3", "f.yaml:4: unknown key 'tuning.rank' (value '3'); tuning has: layers, modules, extra_modules, llama_pro, expand"),
    "octal": ("seed: 010", "f.yaml:2: seed: 010 means different numbers to different YAML readers; write the decimal number, or quote it"),
    "tag": ("run_name: !!python/object:os.system x", "f.yaml:2: tag 'tag:yaml.org,2002:python/object:os.system' is not allowed; nothing was run"),
    "tab": ("\tseed: 1", "f.yaml:2: not YAML: found character '\\t' that cannot start any token. A tab, or a missing blank after a colon?"),
    "documents": ("---\nseed: 1", "f.yaml holds 2 documents separated by ---; expected one"),
    "val_size": ("val_size: 1.5", "val_size is a share below 1 or a whole number of rows"),
    "stream": ("streaming: true", "streaming: true needs max_steps, because the number of rows is not known beforehand"),
    "launcher": ("ray_num_workers: 4", "f.yaml:2: ray_num_workers is not supported: start one process a device with `accelerate launch -m luthier train FILE`; Ray is not used"),
    "smoothing": ("stage: dpo\npref_loss: hinge\ndpo_label_smoothing: 0.1", "objective: label_smoothing has no meaning for the loss hinge; leave one of them out"),
    "preference loss": ("stage: dpo\npref_loss: bco", "f.yaml:3: pref_loss: input should be 'sigmoid', 'hinge', 'ipo' or 'robust', found text 'bco'"),
    "smoothing of cpo": ("stage: cpo\nobjective.loss: ipo\nobjective.label_smoothing: 0.1", "objective: label_smoothing has no meaning for the loss ipo; leave one of them out"),
    "prompt of tagged": ("stage: kto\ntrain_on_prompt: true", "train_on_prompt has no meaning for preference rows: only their answers are compared; leave it out"),
    "stream of tagged": ("stage: kto\nstreaming: true\nmax_steps: 3", "streaming: true reads rows one by one, but here each prompt also gets the answer of another row; leave it out"),
    "bco": ("stage: dpo\npref_loss: ipo\npref_bco_weight: 1.0", "objective: bco_weight takes plain sums over tokens, but ipo and ld_alpha do not; leave one of them out"),
    "reference of sft": ("ref_model: x", "ref_model is set, but this objective compares with no reference; leave it out"),
    "prompt of pairs": ("stage: dpo\ntrain_on_prompt: true", "train_on_prompt has no meaning for preference rows: only their answers are compared; leave it out"),
    "stream beforehand": ("stage: dpo\nstreaming: true\nmax_steps: 3\nprecompute_reference: true", "precompute_reference: true needs all rows beforehand, but streaming: true reads them while training; leave one of them out"),
    "shift_attn": ("shift_attn: true", "f.yaml:2: shift_attn is not supported: it changes the mathematics of attention and no model is served that way"),
    "best without rows": ("load_best_model_at_end: true", "load_best_model_at_end needs evaluation rows; set val_size or eval_dataset"),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def refusal(text: str, *overrides: str) -> str:
    Path("f.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config("f.yaml", overrides)
    assert caught.value.exit_code == 2
    return str(caught.value)


@pytest.mark.parametrize("name", MISTAKES)
def test_each_mistake_has_its_sentence(name: str) -> None:
    line, message = MISTAKES[name]
    assert refusal(f"model_name_or_path: m\n{line}\n") == message


def test_all_mistakes_are_told_together() -> None:
    text = "learning_rate: fast\nnum_train_epochs: 0\nlora_rnk: 4\n"
    assert set(refusal(text, "sed=1", "seed").splitlines()) == {
        "command line: 'seed' is not of the form key=value",
        "f.yaml:3: unknown key 'lora_rnk' (value '4'); did you mean 'lora_rank'?",
        "command line: unknown key 'sed' (value '1'); did you mean 'seed'?",
        "settings: model_name_or_path is required; give it in the file or as model_name_or_path=...",
        "f.yaml:1: learning_rate: expected a number, found text 'fast'",
        "f.yaml:2: num_train_epochs: input should be greater than 0, found '0'",
    }


def test_missing_file_names_its_neighbours() -> None:
    Path("sft.yaml").write_text("seed: 1\n")
    with pytest.raises(ConfigError, match="stf.yaml does not exist; there are: sft.yaml"):
        load_config("stf.yaml")


def test_not_utf8() -> None:
    Path("f.yaml").write_bytes(b"run_name: caf\xe9\n")
    with pytest.raises(ConfigError, match="f.yaml is not UTF-8 \\(byte 13\\)"):
        load_config("f.yaml")


def test_alias_bomb_ends_early() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
    assert "more than 10000 values" in refusal("\n".join(lines))


def test_secrets_of_the_terminal_do_not_run() -> None:
    assert "\x1b" not in refusal('"\\e[31mseed": 1\n')


@pytest.mark.parametrize("name", ["qwen2_vl", "llava_next_yi", "minicpm_v", "glm4_5v", "qwen3_omni", "kimi_vl"])
def test_templates_of_models_that_see_are_refused_before_anything_is_read(name: str) -> None:
    settings = {"model_name_or_path": "Some/Model-VL", "dataset": "x", "template": name, "image_max_pixels": 262144}
    with pytest.raises(ConfigError, match=f"template: {name} is of models that read pictures"):
        load_config(settings)


@pytest.mark.parametrize("name", ["qwen", "glm4_moe", "minicpm3", "gemma3", "yi", "llama4"])
def test_templates_of_text_are_not(name: str) -> None:
    load_config({"model_name_or_path": "m", "template": name})
