"""Every engine on the shelf answers greedily like the model itself, whatever else is in the batch."""

from pathlib import Path

import pytest
import torch
from helpers import byte_tokenizer, make_folder
from transformers import AutoModelForCausalLM

from luthier.core.registry import ENGINES
from luthier.core.types import Sampling
from luthier.models.patch import FOREST, install, register_attention

GREEDY = Sampling(max_new_tokens=12)
PROMPTS = [list(b"hello there"), list(b"a"), list("你好 🙂".encode())]


@pytest.fixture(params=["llama", "gemma2"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    register_attention()
    folder: Path = make_folder(request.param, tmp_path_factory.mktemp(request.param))
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=FOREST).eval()


def greedy(model, prompt: list[int], ends: list[int]) -> list[int]:
    """One token at a time through whole forward passes: the specification."""
    ids = list(prompt)
    for _ in range(GREEDY.max_new_tokens):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        if ids[-1] in ends:
            break
    return ids[len(prompt) :]


@pytest.mark.parametrize("name", ENGINES.names())
@pytest.mark.parametrize("kernels", [True, False])
def test_greedy_answers(model, name: str, kernels: bool) -> None:
    engine = ENGINES.get(name)(model, byte_tokenizer(), batch_size=2)
    expected = [greedy(model, prompt, engine.end_ids) for prompt in PROMPTS]
    if kernels:
        install(model)
    answers = engine.generate(PROMPTS, GREEDY)
    assert [list(one[0].tokens) for one in answers] == expected
    assert [list(one[0].prompt_tokens) for one in answers] == PROMPTS
    for (one,), tokens in zip(answers, expected, strict=True):
        assert one.finish_reason == ("stop" if tokens[-1] in engine.end_ids else "length")
    assert "".join(engine.stream(PROMPTS[0], GREEDY)) == byte_tokenizer().decode(expected[0], skip_special_tokens=True)


@pytest.mark.parametrize("name", ENGINES.names())
def test_draws_follow_the_seed_and_differ_without(model, name: str) -> None:
    engine = ENGINES.get(name)(model, byte_tokenizer())
    how = Sampling(max_new_tokens=12, temperature=1.0, sampling_seed=3)
    assert engine.generate(PROMPTS[:1], how, n=2) == engine.generate(PROMPTS[:1], how, n=2)
    free = engine.generate(PROMPTS[:1], Sampling(max_new_tokens=12, temperature=5.0), n=3)[0]
    assert len({one.tokens for one in free}) > 1


@pytest.mark.parametrize("name", ENGINES.names())
def test_fault_of_the_model_reaches_the_reader(model, name: str, monkeypatch) -> None:
    engine = ENGINES.get(name)(model, byte_tokenizer())
    monkeypatch.setattr(model, "generate", lambda **_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(engine.stream(PROMPTS[0], GREEDY))
