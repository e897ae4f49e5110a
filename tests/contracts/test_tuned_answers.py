"""Models under every tuning answer as their forward pass says, through either engine."""

from pathlib import Path

import pytest
import torch
from helpers import byte_tokenizer, make_folder
from tunings import CASES, stirred

from luthier.core.types import Sampling
from luthier.engines.hf import HfEngine
from luthier.engines.local import LocalEngine
from luthier.models.decoder_parts import PAGE, obstacle
from luthier.tuning.prefix import PTuningV2
from luthier.tuning.prompt import Prompt

GREEDY = Sampling(temperature=0, max_new_tokens=8)
PROMPTS = [list(range(5, 5 + n)) for n in (3, 17, 9, 40)]


def expected(model, prompt: list[int], count: int) -> tuple[int, ...]:
    """The greedy answer, by a whole forward pass for every token."""
    ids = list(prompt)
    for _ in range(count):
        rows = torch.tensor([ids])
        with torch.no_grad():
            ids.append(int(model(input_ids=rows, attention_mask=torch.ones_like(rows)).logits[0, -1].argmax()))
    return tuple(ids[len(prompt) :])


def check(engine, model) -> None:
    for prompt, (answer,) in zip(PROMPTS, engine.generate(PROMPTS, GREEDY), strict=True):
        assert answer.tokens == expected(model, prompt, len(answer.tokens))
        assert answer.prompt_tokens == tuple(prompt)


@pytest.fixture(scope="module", params=["llama", "gemma3"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(request.param, tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize("name", CASES)
def test_our_decoder_reads_every_tuning(folder: Path, name: str) -> None:
    model = stirred(name, folder)
    if name.startswith("bottleneck"):
        assert obstacle(model) == "bottleneck adapters stand behind its blocks"
        return
    assert obstacle(model) is None
    check(LocalEngine(model, byte_tokenizer()), model)


@pytest.mark.parametrize("name", ["lora", "bottleneck", "prompt", "prefix"])
def test_transformers_generates_for_every_kind(folder: Path, name: str) -> None:
    model = stirred(name, folder)
    check(HfEngine(model, byte_tokenizer()), model)


@pytest.mark.parametrize("tokens", [1, PAGE - 1, PAGE, PAGE + 1, 2 * PAGE, 40])
@pytest.mark.parametrize("kind", [Prompt, PTuningV2])
def test_virtual_tokens_fill_any_part_of_a_page(tiny: Path, kind, tokens: int) -> None:
    from tunings import fresh

    model = kind(tokens=tokens).apply(fresh(tiny)).eval()
    engine = LocalEngine(model, byte_tokenizer(), batch_size=3)
    for _ in range(2):
        check(engine, model)
        engine.forget()
    several = engine.generate(PROMPTS[1:2], GREEDY, n=3)[0]
    assert len({answer.tokens for answer in several}) == 1
