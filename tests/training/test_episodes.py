"""Episodes of several turns: what is drawn, what is learned from, and what an environment may do to a run."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import byte_tokenizer, make_folder
from safetensors.torch import load_file, save_file

from luthier.config.load import load_config
from luthier.core.errors import TrainingError
from luthier.core.types import Completion, Example, Message, Sampling, Segment
from luthier.data.prompts import PromptRow
from luthier.runs.store import read_events
from luthier.training import rollout as rollout_module
from luthier.training.episodes import Episode, answer_prompts
from luthier.workflows.train import train

WORLD = '''
from dataclasses import dataclass, field
from itertools import count
from luthier.core.types import Example, Message

@dataclass(frozen=True)
class World:
    """Says "go on" after every turn; every so many times it fails."""
    fails_every: int = 0
    calls: object = field(default_factory=count, init=False)

    def examples(self):
        asked = (Message(role="user", content=f"begin {n}") for n in range(4))
        return [Example(context=(each,), extra={"number": n}, origin=f"world:{n}") for n, each in enumerate(asked)]

    def step(self, example, turns):
        if self.fails_every and next(self.calls) % self.fails_every == 0:
            raise ValueError("the world is closed today" if self.fails_every == 1 else "the world stumbled")
        return Message(role="user", content=f"go on {example.extra['number']} {len(turns)}")

def letters(text, example):
    return len(set(text)) / 9
'''
BETWEEN = "\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"


class Asked:
    """An engine that ends every answer at once and remembers how it was asked."""

    def __init__(self) -> None:
        self.seeds: list[tuple[int | None, int]] = []

    def generate(self, prompts: Any, how: Any, n: int = 1) -> list[list[Completion]]:
        self.seeds += [(each.sampling_seed, number) for each in how for number in range(n)]
        return [
            [Completion(prompt_tokens=tuple(p), tokens=(7,), text="a", logp=(-1.0,), finish_reason="stop")] * n
            for p in prompts
        ]


def test_every_turn_of_every_episode_has_numbers_of_its_own() -> None:
    engine, environment = Asked(), SimpleNamespace(step=lambda example, turns: Message(role="user", content="more"))
    row = PromptRow(Example(context=(Message(role="user", content="q"),)), (1, 2))
    hows = [Sampling(max_new_tokens=20, temperature=1.0, sampling_seed=seed) for seed in (1000, 1001)]
    template = SimpleNamespace(between=lambda *_: [5])
    groups = answer_prompts([row, row], engine, hows, 3, environment=environment, template=template, max_turns=3)  # pyright: ignore
    assert [len(e.answer.completion.tokens) for g in groups for e in g.episodes] == [5] * 6
    assert len(engine.seeds) == len(set(engine.seeds)) == 18


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose answers end after a few tokens: one direction of every state speaks for the end."""
    folder = make_folder("llama", tmp_path_factory.mktemp("short"))
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][:, 0] = 0.1
    weights["lm_head.weight"][258, 0] = 1.0
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "world.py").write_text(WORLD)
    return folder


def settings(model: Path, run: Path, **more: Any) -> Any:
    base = {"model_name_or_path": str(model), "output_dir": str(run), "stage": "grpo", "lora_rank": 4, "max_steps": 2,
            "learning_rate": 1e-3, "per_device_train_batch_size": 4, "dtype": "float32", "plot_loss": False,
            "cutoff_len": 400, "threads": 1, "num_generations": 4, "max_completion_length": 300,
            "rollout_minibatches": 2, "rollout_epochs": 1, "max_turns": 3,
            "environment": f"{model}/world.py:World", "rewards": [f"{model}/world.py:letters"]}  # fmt: skip
    return load_config({**base, **more}).config


def completions(run: Path) -> list[dict[str, Any]]:
    groups = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    return [each for group in groups for each in group["completions"]]


@pytest.fixture
def learned(monkeypatch: pytest.MonkeyPatch) -> list[Episode]:
    """What goes into updates, as it is once everything is scored and credited."""
    kept: list[Episode] = []
    original = rollout_module.Collector._updates

    def updates(self: Any, groups: Any, step: int) -> Any:
        kept.extend(episode for group in groups for episode in group.episodes)
        return original(self, groups, step)

    monkeypatch.setattr(rollout_module.Collector, "_updates", updates)
    return kept


def pieces(segment: Segment) -> list[tuple[bool, list[int]]]:
    """Runs of tokens that are learned, or are not."""
    found: list[tuple[bool, list[int]]] = []
    for token, weight in zip(segment.tokens, segment.weight, strict=True):
        if not found or found[-1][0] != bool(weight):
            found.append((bool(weight), []))
        found[-1][1].append(token)
    return found


def test_only_what_the_model_wrote_is_learned(short: Path, tmp_path: Path, learned: list[Episode]) -> None:
    train(settings(short, tmp_path / "run"), quiet=True)
    tokenizer = byte_tokenizer()
    assert len(learned) == 16
    for episode in learned:
        segment, turns, completion = episode.segment, episode.answer.turns, episode.answer.completion
        assert segment is not None
        parts = pieces(segment)
        assert [is_learned for is_learned, _ in parts] == [False, True] * 3
        number = episode.answer.example.extra["number"]
        assert [turn.role for turn in turns] == ["assistant", "user"] * 2 + ["assistant"]
        assert [turn.content for turn in turns[1::2]] == [f"go on {number} 1", f"go on {number} 3"]
        said = [tokenizer.decode(tokens) for is_learned, tokens in parts if not is_learned]
        assert said == [BETWEEN.format(f"begin {number}")[1:], *(BETWEEN.format(turn.content) for turn in turns[1::2])]
        wrote = [tokens for is_learned, tokens in parts if is_learned]
        assert [tokenizer.decode(tokens, skip_special_tokens=True) for tokens in wrote] == [
            turn.content for turn in turns[::2]
        ]
        assert all(tokens[-1] == 258 for tokens in wrote[:-1])
        assert completion.text == turns[-1].content
        assert completion.learned is not None
        assert segment.weight == [0.0] * len(completion.prompt_tokens) + [float(each) for each in completion.learned]
        for name in ("advantage", "old_logp"):
            stream = torch.tensor(segment.streams[name])
            assert not stream[torch.tensor(segment.weight) == 0].any()
        old, weight = torch.tensor(segment.streams["old_logp"]), torch.tensor(segment.weight)
        assert (old[weight > 0] < 0).all()
        advantages = torch.tensor(segment.streams["advantage"])[weight > 0].tolist()
        assert advantages == pytest.approx([episode.advantage] * len(advantages))
    # The trainer, which sees a whole episode at once, finds what the engine found turn by turn.
    assert max(event["rollout/logp_gap_max"] for event in read_events(tmp_path / "run", "train")) < 1e-3
    kept = completions(tmp_path / "run")
    assert [[turn["content"] for turn in each["turns"]] for each in kept] == [
        [turn.content for turn in episode.answer.turns] for episode in learned
    ]
    assert [each["tokens"] for each in kept] == [len(episode.answer.completion.tokens) for episode in learned]


def test_one_turn_is_the_default_and_an_episode_may_run_out_of_room(short: Path, tmp_path: Path) -> None:
    train(settings(short, tmp_path / "one", max_turns=1, max_steps=1), quiet=True)
    assert all("turns" not in each for each in completions(tmp_path / "one"))
    # What the environment says takes 29 tokens, so there is room for three of its turns at most.
    train(settings(short, tmp_path / "room", max_completion_length=90, max_turns=9, max_steps=1), quiet=True)
    for each in completions(tmp_path / "room"):
        assert each["finish_reason"] == "length"
        assert each["tokens"] <= 90
        assert len(each["turns"]) <= 7
        assert each["turns"][-1]["role"] == "assistant"


def test_held_out_prompts_are_played_too(short: Path, tmp_path: Path) -> None:
    train(settings(short, tmp_path / "run", val_size=1, eval_steps=1, max_steps=1), quiet=True)
    (event,) = read_events(tmp_path / "run", "eval")
    # Greedily this model ends every turn at once.
    assert event["eval_tokens"] == 3 + 2 * len(byte_tokenizer()(BETWEEN.format("go on 0 1")).input_ids)
    assert event["eval_reward"] == 0


def test_an_episode_whose_environment_fails_is_left_out(short: Path, tmp_path: Path, caplog: Any) -> None:
    caplog.set_level("INFO")
    world = {"name": f"{short}/world.py:World", "fails_every": 5}
    train(settings(short, tmp_path / "run", environment=world), quiet=True)
    kept = completions(tmp_path / "run")
    assert 4 <= len(kept) < 16
    assert all(len(each["turns"]) == 5 or each["finish_reason"] == "length" for each in kept)
    assert all(each["reward"] is not None for each in kept)
    said = "the environment failed in an episode, which is left out: ValueError: the world stumbled"
    assert caplog.text.count(said) == 1


def test_an_environment_that_always_fails_stops_the_run(short: Path, tmp_path: Path, caplog: Any) -> None:
    caplog.set_level("INFO")
    world = {"name": f"{short}/world.py:World", "fails_every": 1}
    with pytest.raises(TrainingError, match="the environment failed in every episode") as caught:
        train(settings(short, tmp_path / "run", environment=world), quiet=True)
    assert caught.value.code == "environment"
    assert "ValueError: the world is closed today" in caplog.text + str(caught.value)
    assert json.loads((tmp_path / "run/status.json").read_text())["state"] == "failed"


def test_exercises_of_reasoning_gym_are_prompts_and_reward(tiny: Path, tmp_path: Path) -> None:
    gym = {"name": "reasoning_gym", "task": "chain_sum", "size": 4, "data_seed": 3, "config": {"max_terms": 2}}
    config = settings(
        tiny, tmp_path / "run", environment=gym, rewards=[], max_turns=1, max_completion_length=12, num_generations=2
    )
    train(config, quiet=True)
    groups = [json.loads(line) for line in (tmp_path / "run/samples.jsonl").read_text().splitlines()]
    assert len(groups) == 8
    for group in groups:
        assert "arithmetic problem" in group["prompt"]
        assert group["origin"].startswith("chain_sum:")
        int(group["answer"])
        assert all(set(each["rewards"]) == {"reasoning_gym"} for each in group["completions"])
        assert all(0 <= each["reward"] <= 1 for each in group["completions"])
    assert [event["reward/failed"] for event in read_events(tmp_path / "run", "train")] == [0, 0]
