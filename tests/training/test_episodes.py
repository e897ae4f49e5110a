"""Episodes of several turns: what is drawn, and with which numbers."""

from types import SimpleNamespace
from typing import Any

from luthier.core.types import Completion, Example, Message, Sampling
from luthier.data.prompts import PromptRow
from luthier.training.episodes import answer_prompts


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
