"""`llamafactory-cli`'s words and ways of writing settings, on the command line of this package."""

import json
from pathlib import Path

import pytest
from helpers import Jobs

from luthier.cli.arguments import translate
from luthier.config.load import load_config

OPTIONS = {"train": frozenset({"--resume", "--json", "--help"}), "serve": frozenset({"--port"}), "evaluate": frozenset(),
           "doctor": frozenset({"--build"})}  # fmt: skip


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("train a.yaml lora_rank=4", "train a.yaml lora_rank=4"),
        ("train a.yaml --lora_rank 4 --resume auto", "train a.yaml --resume auto lora_rank=4"),
        ("train --learning-rate=1e-4 a.yaml --json", "train a.yaml --json learning_rate=1e-4"),
        ("train --do_train --stage sft --max_steps -1", "train do_train=true stage=sft max_steps=-1"),
        ("train a.yaml --train.seed 3 --help", "train a.yaml --help train.seed=3"),
        ("train a.yaml --halp", "train a.yaml --halp"),
        ("eval a.yaml --n_shot 2", "evaluate a.yaml n_shot=2"),
        ("env --build", "doctor --build"),
        ("runs list --all_of_it", "runs list --all_of_it"),
    ],
)
def test_words_and_settings(given: str, expected: str) -> None:
    assert translate(given.split(), OPTIONS, {}) == expected.split()


def test_the_server_is_where_the_environment_says() -> None:
    environ = {"API_PORT": "8123", "API_HOST": "0.0.0.0", "API_KEY": "secret"}
    assert translate(["api", "a.yaml"], OPTIONS, environ) == [
        "serve",
        "a.yaml",
        "serve.host=0.0.0.0",
        "serve.port=8123",
    ]
    assert environ["LUTHIER_API_KEY"] == "secret"
    assert translate(["api", "a.yaml", "--port", "1"], OPTIONS, {"API_PORT": "8123"}) == [
        "serve",
        "a.yaml",
        "--port",
        "1",
    ]
    assert translate(["serve", "a.yaml"], OPTIONS, environ) == ["serve", "a.yaml"]


def test_words_that_open_a_page() -> None:
    options = {"ui": frozenset({"--port", "--host"})}
    assert translate(["webui"], options, {}) == ["ui"]
    environ = {"GRADIO_SERVER_NAME": "0.0.0.0", "GRADIO_SERVER_PORT": "1"}
    assert translate(["webui", "--port", "2"], options, environ) == ["ui", "--port", "2", "--host", "0.0.0.0"]
    model = ["--model_name_or_path", "m", "a.yaml"]
    assert translate(["webchat", *model, "--port", "2"], options, {}) == ["ui", "--port", "2"]


def test_json_is_read_like_yaml(tmp_path: Path) -> None:
    text = '{\n\t"model_name_or_path": "m",\n\t"default_system": "\\ud83d\\ude42 \\u4f60", "learning_rate": 1e-5\n}'
    (tmp_path / "a.json").write_text(text)
    loaded = load_config(tmp_path / "a.json")
    assert (loaded.config.data.default_system, loaded.config.train.learning_rate) == ("🙂 你", 1e-5)
    assert loaded.place("train.learning_rate") == f"{tmp_path / 'a.json'}:3"


@pytest.mark.slow
def test_commands(tiny: Path, rows: Path, tmp_path: Path, jobs: Jobs) -> None:
    run = lambda *argv, **env: jobs.run(*argv, cwd=tmp_path, **env)  # noqa: E731
    assert run("version").out.strip()[0].isdigit()
    assert "--no-browser" in run("webui", "--help").out
    small = ["--model_name_or_path", tiny, "--dataset", rows, "--dtype", "float32", "--threads", "1", "--lora_rank", "4",
             "--per_device_train_batch_size", "4"]  # fmt: skip
    trained = run("train", *small, "--do_train", "--output_dir", "run", "--max_steps", "2", "--json")
    assert trained.code == 0, trained.err
    (tmp_path / "chat.json").write_text(json.dumps({"model_name_or_path": str(tiny), "adapter_name_or_path": "run"}))
    said = run("chat", "chat.json", "--message", "hi", "--json", "--max_new_tokens", "3")
    assert said.code == 0, said.err
    graded = run("eval", "--model_name_or_path", "run", "--eval_dataset", rows, "--max_new_tokens", "3", "--json")
    assert graded.code == 0, graded.err
    exported = run("export", "chat.json", "--export_dir", "merged", "--json")
    assert exported.code == 0, exported.err
    assert (tmp_path / "merged/model.safetensors").is_file()
    nothing = run("export", "export_dir=x")
    assert (nothing.code, "the model comes first" in nothing.err) == (2, True)


def test_convert_never_writes_over(tmp_path: Path, jobs: Jobs) -> None:
    (tmp_path / "a.yaml").write_text(
        "model_name_or_path: m\nstage: dpo\npref_beta: 0.3\nplot_loss: true\nflash_attn: fa2\n"
    )
    done = jobs.run("convert", "a.yaml", "lora_rank=4", "--out", "b.yaml", cwd=tmp_path)
    assert done.code == 0, done.err
    assert load_config(tmp_path / "b.yaml").config == load_config(tmp_path / "a.yaml", ["lora_rank=4"]).config
    assert "beta: 0.3  # a.yaml:3, pref_beta" in (tmp_path / "b.yaml").read_text()
    again = jobs.run("convert", "a.yaml", "--out", "b.yaml", cwd=tmp_path)
    assert (again.code, "--force writes over it" in again.err) == (2, True)
    assert jobs.run("convert", "a.yaml", "--out", "b.yaml", "--force", cwd=tmp_path).code == 0
    assert "rank" not in (tmp_path / "b.yaml").read_text()
