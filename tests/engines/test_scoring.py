"""Log-probabilities and embeddings of prompts are those of the model."""

from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from helpers import make_folder
from tunings import fresh

from luthier.core.errors import ModelError
from luthier.core.types import Sampling
from luthier.engines.local import LocalEngine
from luthier.engines.shaping import Piece
from luthier.kernels import native

PROMPTS = [[(13 * i + 5 * j) % 200 + 20 for j in range(1 + 17 * i)] for i in range(7)]


def by_hand(model: Any, prompt: list[int]) -> torch.Tensor:
    with torch.no_grad():
        logits = model(torch.tensor([prompt])).logits[0, :-1].float()
    return torch.log_softmax(logits, -1)


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3"])
@pytest.mark.parametrize("decoder", ["native", "torch"])
def test_scores_are_those_of_the_model(
    family: str, decoder: str, tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if decoder == "torch":
        monkeypatch.setattr(native, "unusable", lambda: "not wanted")
    model = fresh(make_folder(family, tmp_path / "m"))
    engine = LocalEngine(model, tokenizer)
    for prompt, scored in zip(PROMPTS, engine.score(PROMPTS, top=3), strict=True):
        assert [each.token for each in scored] == prompt
        assert (scored[0].logp, scored[0].top) == (0.0, ())
        logp = by_hand(model, prompt)
        for place, each in enumerate(scored[1:]):
            assert each.logp == pytest.approx(float(logp[place, each.token]), abs=1e-4)
            assert [t for t, _ in each.top] == logp[place].topk(3).indices.tolist()
    assert engine._batch is not None
    assert engine._batch.pages.num_used == 0


def test_what_stands_before_is_computed_once(engine: LocalEngine, model: Any) -> None:
    """Few-shot prompts: a shared beginning, and only the endings are asked for."""
    start = [50 + i % 90 for i in range(96)]
    prompts = [[*start, 60 + i, 61, 62 + i] for i in range(6)]
    real, seen = engine._batch.decoder.hidden, []  # type: ignore[union-attr]

    def counted(step: Any, pages: Any) -> Any:
        seen.append(len(step.ids))
        return real(step, pages)

    engine._batch.decoder.hidden = counted  # type: ignore[union-attr, method-assign]
    scored = engine.score(prompts, first=[97] * 6, top=1)
    assert sum(seen) <= 99 + 5 * 3
    for prompt, tokens in zip(prompts, scored, strict=True):
        assert [each.token for each in tokens] == prompt[97:]
        logp = by_hand(model, prompt)
        assert [e.logp for e in tokens] == pytest.approx(
            [float(logp[96 + i, token]) for i, token in enumerate(prompt[97:])], abs=1e-4
        )


def test_long_prompts_go_in_parts(engine: LocalEngine, model: Any) -> None:
    prompts = [[(i * k) % 250 + 5 for i in range(engine.max_tokens)] for k in (3, 7)]
    for prompt, scored in zip(prompts, engine.score(prompts), strict=True):
        logp = by_hand(model, prompt)
        expected = logp.gather(1, torch.tensor(prompt[1:])[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor([e.logp for e in scored[1:]]), expected, rtol=0, atol=1e-4)


def test_few_logits_exist_at_a_time(engine: LocalEngine, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("luthier.engines.scoring.ROWS_OF_LOGITS", 5)
    real, rows = engine._batch.decoder.logits, []  # type: ignore[union-attr]

    def counted(hidden: Any) -> Any:
        rows.append(len(hidden))
        return real(hidden)

    monkeypatch.setattr(engine._batch.decoder, "logits", counted)
    (scored,) = engine.score(PROMPTS[3:4])
    assert sum(rows) == len(PROMPTS[3]) - 1
    assert max(rows) == 5
    logp = by_hand(model, PROMPTS[3])
    expected = [float(logp[i, token]) for i, token in enumerate(PROMPTS[3][1:])]
    assert [each.logp for each in scored[1:]] == pytest.approx(expected, abs=1e-4)


def test_answers_grow_while_prompts_are_scored(engine: LocalEngine, model: Any, tokenizer: Any) -> None:
    prompts = [[(i * k) % 200 + 20 for i in range(400)] for k in range(1, 13)]
    expected = LocalEngine(model, tokenizer).score(prompts)
    request = engine.submit(PROMPTS[2], Sampling(max_new_tokens=5))
    assert engine.score(prompts) == expected
    assert request.done
    assert request.answers[0] == engine.generate([PROMPTS[2]], Sampling(max_new_tokens=5))[0][0]
    assert engine._batch is not None
    assert engine._batch.pages.num_used == 0


def test_a_step_that_fails_meanwhile_is_not_the_scorers(engine: LocalEngine) -> None:
    def fails() -> None:
        raise RuntimeError("a bit flipped")

    expected = engine.score(PROMPTS)
    engine._batch.advance = fails  # type: ignore[union-attr, method-assign]
    request = engine.submit(PROMPTS[2], Sampling(max_new_tokens=5))
    assert engine.score(PROMPTS) == expected
    assert str(request.error) == "a bit flipped"


def test_new_weights_end_what_is_scored(engine: LocalEngine, model: Any) -> None:
    prompts = [[(i * k) % 200 + 20 for i in range(400)] for k in range(1, 5)]
    swap = Thread(target=engine.sync, args=(model, 1))

    def reads(piece: Piece) -> None:
        swap.start()

    old = engine._batch
    request = engine.submit(PROMPTS[2], Sampling(max_new_tokens=1), reader=reads)
    with pytest.raises(ModelError, match="the weights changed while prompts were read"):
        engine.score(prompts * 20)
    swap.join()
    assert request.done
    assert engine.version == 1
    assert old is not None
    assert old.pages.num_used == 0
    assert len(engine.score(prompts)) == 4


def test_answers_go_on_from_what_was_scored(engine: LocalEngine, model: Any, tokenizer: Any) -> None:
    prompt = [50 + i % 90 for i in range(70)]
    engine.score([prompt])
    how = Sampling(max_new_tokens=6)
    assert (
        engine.generate([prompt], how)[0][0].tokens
        == LocalEngine(model, tokenizer).generate([prompt], how)[0][0].tokens
    )
    assert engine.counts["shared_tokens"] == 64


def test_embeddings_are_means_of_hidden_states(engine: LocalEngine, model: Any) -> None:
    found = engine.embed(PROMPTS)
    assert found.shape == (len(PROMPTS), model.config.hidden_size)
    assert found.dtype == torch.float32
    for prompt, row in zip(PROMPTS, found, strict=True):
        with torch.no_grad():
            hidden = model.model(torch.tensor([prompt])).last_hidden_state[0]
        torch.testing.assert_close(row, hidden.float().mean(0), rtol=0, atol=1e-4)


def test_prompts_that_do_not_fit(engine: LocalEngine) -> None:
    with pytest.raises(ModelError, match="sees at most"):
        engine.score([[5] * (engine.max_tokens + 1)])
    with pytest.raises(ModelError, match="the prompt is empty"):
        engine.embed([[]])
