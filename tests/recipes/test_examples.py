"""Every file under examples/ is run, from YAML to an exported folder that plain transformers opens."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import Jobs

from luthier.runs.store import read_events

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
YAMLS = sorted(EXAMPLES.glob("*.yaml"))
pytestmark = pytest.mark.slow


def test_every_example_is_named_in_the_readme() -> None:
    text = (EXAMPLES / "README.md").read_text()
    assert [p.name for p in (*YAMLS, *EXAMPLES.glob("*.py")) if f"`{p.name}`" not in text] == []


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
def test_yaml(path: Path, tiny: Path, tmp_path: Path, jobs: Jobs) -> None:
    (tmp_path / "examples").symlink_to(EXAMPLES)
    small = [f"model_name_or_path={tiny}", "output_dir=run", "max_steps=3", "dtype=float32", "threads=1"]
    ranks = ["lora_rank=4"] if "lora_rank" in path.read_text() else []
    trained = jobs.run("train", path, *small, *ranks, "--json", cwd=tmp_path)
    assert trained.code == 0, trained.err
    assert (trained.last_json["status"], trained.last_json["steps"]) == ("done", 3)
    said = jobs.run("chat", "run", "--message", "hello", "--compare", "--json", "max_new_tokens=4", cwd=tmp_path)
    grades = "stage: rm" in path.read_text()
    if grades:
        assert (said.code, "is a reward model" in said.err) == (2, True)
    else:
        assert said.code == 0, said.err
        assert len(said.last_json["answers"]) == 2
    exported = jobs.run("export", "run", "--json", cwd=tmp_path)
    assert exported.code == 0, exported.err
    folder = tmp_path / exported.last_json["folder"]
    if "export_format: adapter" in path.read_text():
        assert (folder / "adapter_model.safetensors").read_bytes() == (
            tmp_path / "run/adapter_model.safetensors"
        ).read_bytes()
    elif grades:
        assert_same_rewards(tmp_path / "run", folder)
    else:
        assert_same_model(tmp_path / "run", folder)


def assert_same_rewards(run: Path, exported: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    from luthier.config.load import load_config
    from luthier.models.device import place
    from luthier.models.reward_model import load_reward_model

    config = load_config(run, [f"model_name_or_path={run}"]).config.model
    ours = load_reward_model(str(run), config, place(config))
    plain = AutoModelForSequenceClassification.from_pretrained(exported, num_labels=1, dtype=torch.float32).eval()
    ids = ours.tokenizer("What is a fret?").input_ids
    with torch.no_grad():
        expected = plain(torch.tensor([ids])).logits[:, 0]
    torch.testing.assert_close(ours.score([ids[:-1]], [ids[-1:]]), expected, rtol=1e-4, atol=1e-4)


def assert_same_model(run: Path, exported: Path) -> None:
    """The run through luthier and the export through plain transformers say the same."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from luthier.config.load import load_config
    from luthier.models.device import place
    from luthier.models.load import load_for_inference

    config = load_config(run, [f"model_name_or_path={run}"]).config.model
    ours, tokenizer = load_for_inference(config, place(config))
    plain = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32).eval()
    assert AutoTokenizer.from_pretrained(exported).chat_template == tokenizer.chat_template
    ids = torch.tensor([tokenizer("What is a fret?").input_ids])
    with torch.no_grad():
        torch.testing.assert_close(plain(ids).logits, ours(ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_script(path: Path, tiny: Path, tmp_path: Path) -> None:
    more = ["--output-dir", str(tmp_path / "run")] if "--output-dir" in path.read_text() else []
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(path), "--model", str(wide(tiny, tmp_path)), *more]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    if more:
        assert (tmp_path / "run/export/merged/model.safetensors").is_file()
    assert "loss" in done.stdout


def wide(tiny: Path, folder: Path) -> Path:
    """A model with room for the rank that scripts ask for."""
    from helpers import TINY_CONFIGS, byte_tokenizer
    from transformers import AutoModelForCausalLM

    config = TINY_CONFIGS["llama"]()
    config.num_key_value_heads = config.num_attention_heads
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "wide")
    byte_tokenizer().save_pretrained(folder / "wide")
    return folder / "wide"


def test_demo_with_a_tiny_model(tiny: Path, tmp_path: Path) -> None:
    settings = (EXAMPLES / "tickets/tickets.yaml").read_text()
    rows = EXAMPLES / "tickets"
    small = settings.replace("smollm2-135m", str(tiny)).replace("examples/tickets", str(rows))
    small = small.replace("lora_rank: 16", "lora_rank: 4").replace("num_train_epochs: 1", "max_steps: 2")
    (tmp_path / "tickets.yaml").write_text(small + "max_samples: 16\npredict_samples: 4\n")
    (tmp_path / "demo.py").write_text((rows / "demo.py").read_text())
    done = subprocess.run(
        [sys.executable, "demo.py", "--output-dir", "run"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    last = done.stdout.strip().splitlines()[-1]
    fields = dict(part.split("=") for part in last.removeprefix("demo ").split())
    assert list(fields) == ["before", "after", "seconds", "peak_gb", "run"]
    assert len(read_events(tmp_path / "run", "train")) == 2


def test_tickets_hold_out_what_they_say() -> None:
    """No held-out text, name, product sentence or order number is trained on; the script writes these very files."""
    train, held = ([json.loads(line) for line in (EXAMPLES / "tickets" / name).read_text().splitlines()]
                   for name in ("train.jsonl", "heldout.jsonl"))  # fmt: skip
    assert (len(train), len(held)) == (608, 64)
    assert len({row["instruction"] for row in train}) == 608
    answers = {row["output"] for row in train}
    assert not {row["instruction"] for row in held} & {row["instruction"] for row in train}
    orders = {json.loads(text)["order"] for text in answers} - {None}
    assert not {json.loads(row["output"])["order"] for row in held} & orders
    assert {json.loads(row["output"])["intent"] for row in held} <= {json.loads(text)["intent"] for text in answers}
