"""What names the reward model: a folder, an adapter beside its base, the address of a server."""

import json
from pathlib import Path

import pytest
from helpers import losses, make_folder
from score_server import serving

from luthier.config.load import load_config
from luthier.core.errors import ConfigError, ModelError
from luthier.runs.store import read_events
from luthier.workflows.judges import judges_of
from luthier.workflows.train import train

ADDRESS = "http://127.0.0.1:9/v1/score"


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"say tea {i}", "answer": "tea"}) + "\n" for i in range(8)))
    return file


def settings(tiny: Path, rows: Path, run: Path, **more):
    base = {"model_name_or_path": str(tiny), "dataset": str(rows), "output_dir": str(run), "stage": "ppo",
            "lora_rank": 4, "learning_rate": 1e-3, "max_steps": 2, "per_device_train_batch_size": 4, "dtype": "float32",
            "plot_loss": False, "cutoff_len": 128, "max_new_tokens": 6, "threads": 1}  # fmt: skip
    return load_config({**base, **more}).config


@pytest.fixture(scope="module")
def reward(tiny: Path, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that grades."""
    run = tmp_path_factory.mktemp("reward") / "run"
    train(settings(tiny, pairs, run, stage="rm", learning_rate=1e-2), quiet=True)
    return run


def test_an_adapter_beside_its_base_is_the_reward_model(
    tiny: Path, prompts: Path, reward: Path, tmp_path: Path
) -> None:
    named = {"whole": {"reward_model": str(reward)},
             "beside": {"reward_model": str(tiny), "reward_model_adapters": str(reward), "reward_model_type": "lora"}}  # fmt: skip
    for name, more in named.items():
        train(settings(tiny, prompts, tmp_path / name, **more), quiet=True)
    assert losses(tmp_path / "beside") == losses(tmp_path / "whole")
    found = [[e["reward/reward_model"] for e in read_events(tmp_path / name, "train")] for name in named]
    assert found[0] == found[1]
    assert found[0] != [0.0, 0.0]


def test_an_adapter_of_another_model_names_both(prompts: Path, reward: Path, tiny: Path, tmp_path: Path) -> None:
    other = make_folder("qwen2", tmp_path / "other")
    config = settings(tiny, prompts, tmp_path / "run", reward_model=str(other), reward_model_adapters=str(reward))
    with pytest.raises(ModelError, match=f"{reward} was trained on {tiny}, but reward_model is {other}; name {tiny}"):
        train(config, quiet=True)
    config = settings(tiny, prompts, tmp_path / "run", reward_model=str(tiny), reward_model_adapters=str(other))
    with pytest.raises(ModelError, match=f"{other} holds no adapter"):
        train(config, quiet=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("more", "message"), [
    ({"reward_model": "a", "reward_model_adapters": "b, c"}, "names 2 folders .b, c.; one is used at a time"),
    ({"reward_model_adapters": "b"}, r"reward_model_adapters .b. needs reward_model: .*found none"),
    ({"reward_model": ADDRESS, "reward_model_adapters": "b"}, f"needs reward_model: .*found {ADDRESS}"),
    ({"reward_model": "a", "reward_model_type": "api"}, r"set reward_model to its address.*found a[)]"),
    ({"reward_model": "ftp://x/y", "reward_model_type": "api"}, r"set reward_model to its address.*found ftp://x/y"),
    ({"reward_model": ADDRESS, "reward_model_type": "lora"}, "is an address .*reward_model_type: lora is of folders"),
])  # fmt: skip
def test_what_contradicts_itself(more: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        judges_of(settings(tmp_path, tmp_path / "rows", tmp_path / "run", **more))


def test_a_server_is_sent_what_the_policy_saw(tiny: Path, prompts: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving() as server:
        server.reply = lambda texts: {"scores": [float(text.count("a")) for text in texts]}
        more = {"reward_model": server.url, "reward_model_type": "api", "ppo_whiten_rewards": True}
        train(settings(tiny, prompts, tmp_path / "run", **more), quiet=True)
    texts = [text for _, _, body in server.seen for text in body["messages"]]
    samples = [json.loads(line) for line in (tmp_path / "run/samples.jsonl").read_text().splitlines()]
    answers = [answer for sample in samples for answer in sample["completions"]]
    assert len(texts) == len(answers) == 8
    assert [answer["rewards"]["reward_model"] for answer in answers] == [text.count("a") for text in texts]
    assert all("say tea" in text and "<|" in text for text in texts)
    assert (tmp_path / "run/adapter_model.safetensors").is_file()
