"""What a request may ask beside its answers, and that requests do not disturb each other."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from luthier.core.errors import ModelError
from luthier.core.types import Sampling
from luthier.engines.local import LocalEngine
from luthier.engines.requests import Request
from luthier.engines.shaping import Piece, Shaping

PROMPTS = [[(7 * i + j) % 90 + 33 for j in range(3 + i % 11)] for i in range(32)]
GREEDY = Sampling(max_new_tokens=12)
SAMPLED = Sampling(max_new_tokens=12, temperature=1.0, sampling_seed=3)


@dataclass
class Listener:
    """Keeps what a reader hears."""

    pieces: list[Piece] = field(default_factory=list)

    def __call__(self, piece: Piece) -> None:
        self.pieces.append(piece)

    def of(self, index: int) -> list[Piece]:
        return [piece for piece in self.pieces if piece.index == index]

    def text(self, index: int = 0) -> str:
        return "".join(piece.text for piece in self.of(index))

    def tokens(self, index: int = 0) -> list[int]:
        return [scored.token for piece in self.of(index) for scored in piece.tokens]


def run(engine: LocalEngine, *requests: Request) -> None:
    while not all(request.done for request in requests):
        engine.step()


def ask(engine: LocalEngine, prompt: Any, how: Sampling = GREEDY, **more: Any) -> tuple[Request, Listener]:
    listener = Listener()
    request = engine.submit(prompt, how, reader=listener, **more)
    run(engine, request)
    return request, listener


def logits_after(model: Any, tokens: Any) -> Tensor:
    with torch.no_grad():
        return model(torch.tensor([list(tokens)])).logits[0, -1].float()


# ---- pieces


def test_pieces_are_the_answer(engine: LocalEngine) -> None:
    for how in (GREEDY, SAMPLED):
        listener = Listener()
        request = engine.submit(PROMPTS[0], how, 3, reader=listener)
        run(engine, request)
        for index, answer in enumerate(request.answers):
            assert answer is not None
            assert listener.text(index) == answer.text
            assert listener.tokens(index) == list(answer.tokens)
            reasons = [piece.finish_reason for piece in listener.of(index)]
            assert reasons[-1] == answer.finish_reason
            assert set(reasons[:-1]) <= {None}
            logps = [scored.logp for piece in listener.of(index) for scored in piece.tokens]
            assert logps == pytest.approx(answer.logp)


def test_nothing_of_a_stop_text_is_heard(engine: LocalEngine) -> None:
    _, whole = ask(engine, PROMPTS[1], Sampling(max_new_tokens=20))
    text = whole.text()
    stop = text[4:7]
    request, listener = ask(engine, PROMPTS[1], Sampling(max_new_tokens=20, stop=(stop,)))
    assert listener.text() == text[: text.index(stop)]
    assert request.answers[0].finish_reason == "stop"  # type: ignore[union-attr]
    told = engine.tokenizer.decode(listener.tokens())
    assert stop[0] not in told[len(listener.text()) :]


def test_a_reader_that_fails_ends_its_request_only(engine: LocalEngine) -> None:
    def fails(piece: Piece) -> None:
        raise ValueError("no more room")

    broken = engine.submit(PROMPTS[0], GREEDY, reader=fails)
    listener = Listener()
    other = engine.submit(PROMPTS[1], GREEDY, reader=listener)
    run(engine, broken, other)
    assert isinstance(broken.error, ValueError)
    assert other.error is None
    assert listener.tokens() == list(engine.generate([PROMPTS[1]], GREEDY)[0][0].tokens)


def test_a_full_context_is_length(engine: LocalEngine) -> None:
    prompt = [65 + i % 20 for i in range(engine.max_tokens - 4)]
    how = Sampling(max_new_tokens=50)
    request, _ = ask(engine, prompt, how, shaping=Shaping(logit_bias=dict.fromkeys(engine.end_ids, -100.0)))
    answer = request.answers[0]
    assert answer is not None
    assert answer.finish_reason == "length"
    assert len(prompt) + len(answer.tokens) in (engine.max_tokens, engine.max_tokens + 1)


def test_cancelled_answers_say_so(engine: LocalEngine) -> None:
    listener = Listener()
    request = engine.submit(PROMPTS[0], Sampling(max_new_tokens=50), 2, reader=listener)
    engine.step()
    engine.cancel(request)
    assert [listener.of(i)[-1].finish_reason for i in range(2)] == ["abort", "abort"]
    assert request.done
    assert engine._batch is not None
    assert engine._batch.pages.num_used == 0


def test_a_reader_may_cancel(engine: LocalEngine) -> None:
    heard: list[Piece] = []

    def reads(piece: Piece) -> None:
        heard.append(piece)
        engine.cancel(asked[0])

    asked = [engine.submit(PROMPTS[0], Sampling(max_new_tokens=50), 3, reader=reads)]
    other = engine.submit(PROMPTS[1], GREEDY)
    run(engine, *asked, other)
    assert [piece.finish_reason for piece in heard] == [None, "abort", "abort", "abort"]
    assert other.answers[0].tokens == engine.generate([PROMPTS[1]], GREEDY)[0][0].tokens  # type: ignore[union-attr]
    assert engine._batch is not None
    assert engine._batch.pages.num_used == 0


# ---- shaping


def test_alternatives_are_those_of_the_model(engine: LocalEngine, model: Any) -> None:
    shaping = Shaping(top_logprobs=4, logit_bias={80: 100.0})
    _, listener = ask(engine, PROMPTS[2], shaping=shaping)
    tokens = listener.tokens()
    assert set(tokens) == {80}
    first = listener.pieces[0].tokens[0]
    expected = torch.log_softmax(logits_after(model, PROMPTS[2]), -1)
    values, ids = expected.topk(4)
    assert [token for token, _ in first.top] == ids.tolist()
    assert [logp for _, logp in first.top] == pytest.approx(values.tolist(), abs=1e-4)
    assert first.logp == pytest.approx(float(expected[80]), abs=1e-4)


@pytest.mark.parametrize(
    "shaping",
    [
        Shaping(presence_penalty=1.5),
        Shaping(frequency_penalty=0.8),
        Shaping(logit_bias={70: 3.0, 71: -50.0}),
        Shaping(frequency_penalty=1.1, presence_penalty=0.3, logit_bias={70: 12.0, 71: 11.0}),
    ],
)
def test_penalties_and_biases(shaping: Shaping, engine: LocalEngine, model: Any) -> None:
    """The answer is what greedy decoding over the changed logits gives, computed here by hand."""
    prompt, answer = PROMPTS[3], []
    for _ in range(8):
        logits = logits_after(model, [*prompt, *answer])
        for token in set(answer):
            times = answer.count(token)
            logits[token] -= shaping.presence_penalty + shaping.frequency_penalty * times
        for token, bias in shaping.logit_bias.items():
            logits[token] += bias
        answer.append(int(logits.argmax()))
    request, _ = ask(engine, prompt, Sampling(max_new_tokens=8), shaping=shaping)
    assert list(request.answers[0].tokens) == answer  # type: ignore[union-attr]
    if len(shaping.logit_bias) == 2 and shaping.frequency_penalty:
        assert answer.count(70) > 2, "the number of times is not at stake here"
        assert answer.count(71) > 1


class Only:
    """Allows a few tokens, one after the other."""

    def __init__(self, tokens: list[int]) -> None:
        self.left = list(tokens)

    def allowed_V(self) -> Tensor | None:
        mask = torch.zeros(320, dtype=torch.bool)
        mask[self.left[0]] = True
        return mask

    def take(self, token: int) -> None:
        assert token == self.left.pop(0)


def test_guides_lead_their_own_answer(engine: LocalEngine) -> None:
    end = next(iter(engine.end_ids))
    wanted = [72, 105, end]
    guided = engine.submit(PROMPTS[0], SAMPLED, 2, shaping=Shaping(guide=lambda: Only(wanted)))
    plain = engine.submit(PROMPTS[1], GREEDY)
    run(engine, guided, plain)
    assert [list(answer.tokens) for answer in guided.answers if answer] == [wanted, wanted]
    assert plain.answers[0].tokens == engine.generate([PROMPTS[1]], GREEDY)[0][0].tokens  # type: ignore[union-attr]


def test_what_a_guide_does_not_speak_of_is_not_allowed(engine: LocalEngine) -> None:
    """The model may know more tokens than the tokenizer: those have no text."""

    class Short:
        def allowed_V(self) -> Tensor | None:
            return torch.arange(80) >= 78

        def take(self, token: int) -> None: ...

    shaping = Shaping(guide=Short, logit_bias={300: 50.0})
    request, _ = ask(engine, PROMPTS[0], Sampling(max_new_tokens=30, temperature=2.0), shaping=shaping)
    assert set(request.answers[0].tokens) == {78, 79}  # type: ignore[union-attr]


def test_a_guide_that_fails_ends_its_request_only(engine: LocalEngine) -> None:
    class Broken:
        def allowed_V(self) -> Tensor | None:
            raise ModelError("lost")

        def take(self, token: int) -> None: ...

    broken = engine.submit(PROMPTS[0], GREEDY, shaping=Shaping(guide=Broken))
    plain = engine.submit(PROMPTS[1], GREEDY)
    run(engine, broken, plain)
    assert str(broken.error) == "lost"
    assert plain.error is None
    nothing = engine.submit(PROMPTS[0], GREEDY, shaping=Shaping(guide=Nothing))
    run(engine, nothing)
    assert "allows no token here" in str(nothing.error)


class Nothing:
    def allowed_V(self) -> Tensor | None:
        return torch.zeros(320, dtype=torch.bool)

    def take(self, token: int) -> None: ...


def test_requests_do_not_disturb_each_other(engine: LocalEngine, model: Any, tokenizer: Any) -> None:
    """32 different requests at once give what each gives alone."""
    ways: list[tuple[Sampling, Shaping]] = [
        (GREEDY, Shaping()),
        (SAMPLED, Shaping()),
        (Sampling(max_new_tokens=7, temperature=0.7, top_p=0.8, sampling_seed=11), Shaping(top_logprobs=2)),
        (GREEDY, Shaping(frequency_penalty=0.5)),
        (Sampling(max_new_tokens=9, repetition_penalty=1.3), Shaping(logit_bias={75: 2.0})),
    ]
    asked = [(prompt, *ways[i % len(ways)]) for i, prompt in enumerate(PROMPTS)]
    together = [engine.submit(prompt, how, shaping=shaping) for prompt, how, shaping in asked]
    run(engine, *together)
    alone = LocalEngine(model, tokenizer, batch_size=1)
    for request, (prompt, how, shaping) in zip(together, asked, strict=True):
        single = alone.submit(prompt, how, shaping=shaping)
        run(alone, single)
        assert request.answers[0].tokens == single.answers[0].tokens  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("prompt", "shaping", "message"),
    [
        ([5, 9999], Shaping(), "the prompt has token 9999, but this llama model knows tokens 0 to 319"),
        ([5, -1], Shaping(), "the prompt has token -1"),
        ([5], Shaping(logit_bias={400: 1.0}), "logit_bias has token 400"),
        ([5], Shaping(adapter="other"), "no adapter is called 'other'; there are: none"),
        ([], Shaping(), "the prompt is empty"),
    ],
)
def test_what_is_refused(prompt: list[int], shaping: Shaping, message: str, engine: LocalEngine) -> None:
    with pytest.raises(ModelError, match=message):
        engine.submit(prompt, GREEDY, shaping=shaping)
