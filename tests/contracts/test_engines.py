"""Every engine on the shelf answers greedily like the model itself, whatever else is in the batch."""

import sys
from pathlib import Path

import fake_vllm
import numpy as np
import pytest
import torch
from helpers import TINY_CONFIGS, byte_tokenizer, make_folder
from transformers import AutoModelForCausalLM

from luthier.core.anatomy import family_of
from luthier.core.errors import ModelError
from luthier.core.registry import ENGINES
from luthier.core.types import Sampling
from luthier.engines import sample
from luthier.engines.local import LocalEngine
from luthier.engines.pages import PageStore
from luthier.engines.text import TextStream
from luthier.kernels import native
from luthier.models.decoder_parts import PAGE, obstacle, read_parts, weight_of
from luthier.models.decoder_plain import TorchDecoder
from luthier.models.patch import FOREST, install, register_attention
from luthier.tuning.lora import Lora

GREEDY = Sampling(max_new_tokens=12)
PROMPTS = [list(b"hello there"), list(b"a"), list("你好 🙂".encode()), list(b"hello there, " * 5)]


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM needs a GPU: its engine is held to the contract through a stand-in that speaks its interface."""
    monkeypatch.setitem(sys.modules, "vllm", fake_vllm)


def load(name: str, folder: Path):
    register_attention()
    folder = make_folder(name, folder / name)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=FOREST).eval()


@pytest.fixture(params=["llama", "gemma2"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    return load(request.param, tmp_path_factory.mktemp("engine"))


@pytest.fixture
def llama(tmp_path_factory: pytest.TempPathFactory):
    return load("llama", tmp_path_factory.mktemp("engine"))


def greedy(model, prompt: list[int], ends: list[int], count: int = GREEDY.max_new_tokens) -> list[int]:
    """One token at a time through whole forward passes: the specification."""
    ids = list(prompt)
    for _ in range(count):
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
    decode = byte_tokenizer().decode
    for (one,), tokens in zip(answers, expected, strict=True):
        assert one.finish_reason == ("stop" if tokens[-1] in engine.end_ids else "length")
        assert one.text == decode(tokens, skip_special_tokens=True)
    assert "".join(engine.stream(PROMPTS[0], GREEDY)) == decode(expected[0], skip_special_tokens=True)


OTHERS = [n for n, make in TINY_CONFIGS.items() if "decoder" not in family_of(make().model_type).kernels]


@pytest.mark.parametrize("family", OTHERS)
def test_what_the_decoder_does_not_compute_it_declines(family: str) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(TINY_CONFIGS[family]())
    assert "has no decoder facts" in str(obstacle(model))


@pytest.mark.parametrize("decoder", ["native", "torch"])
@pytest.mark.parametrize("family", [name for name in TINY_CONFIGS if name not in OTHERS])
def test_local_answers_like_every_family(family: str, decoder: str, tmp_path: Path, monkeypatch) -> None:
    model = load(family, tmp_path)
    assert obstacle(model) is None
    if decoder == "torch":
        monkeypatch.setattr(native, "unusable", lambda: "switched off")
    elif reason := native.unusable():
        pytest.skip(reason)
    engine = LocalEngine(model, byte_tokenizer(), batch_size=3)
    assert ("torch" in engine.description) == (decoder == "torch")
    long = list(range(60)) * 3
    prompts = [*PROMPTS, long, long[:100]]
    how = Sampling(max_new_tokens=30)
    for (one,), prompt in zip(engine.generate(prompts, how), prompts, strict=True):
        assert list(one.tokens) == greedy(model, prompt, engine.end_ids, 30)
        torch.testing.assert_close(torch.tensor(one.logp), logps(model, prompt, one.tokens, 1.0), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["bfloat16", "int8"])
def test_narrow_weights_are_near(llama, kind: str) -> None:
    """Log-probabilities of the same tokens move by little; int8 weights are within half a step of their group."""
    if reason := native.unusable():
        pytest.skip(reason)
    exact = LocalEngine(llama, byte_tokenizer()).generate(PROMPTS, GREEDY)
    near = LocalEngine(llama, byte_tokenizer(), kind=kind).generate(PROMPTS, GREEDY)
    for (a,), (b,) in zip(exact, near, strict=True):
        assert a.logp[0] == pytest.approx(b.logp[0], abs=0.05)
    weight, x = torch.randn(37, 130), torch.randn(5, 130)
    packed = native.module().PackedLinear(weight, {"bfloat16": 1, "int8": 2}[kind])
    want = x @ weight.t()
    assert (packed(x) - want).norm() / want.norm() < 0.02


def test_a_group_computes_its_prompt_once(llama) -> None:
    engine = LocalEngine(llama, byte_tokenizer(), batch_size=8)
    prompt = list(range(100)) * 3
    answers = engine.generate([prompt], Sampling(max_new_tokens=5, temperature=1.0, sampling_seed=1), n=16)[0]
    assert engine.counts["prompt_tokens"] == len(prompt)
    assert len(answers) == 16
    assert len({a.tokens for a in answers}) > 1
    one = greedy(llama, prompt, engine.end_ids, 5)
    assert all(list(a.tokens) == one for a in engine.generate([prompt], Sampling(max_new_tokens=5), n=3)[0])


def test_prompts_that_begin_alike_compute_the_beginning_once(llama) -> None:
    engine = LocalEngine(llama, byte_tokenizer())
    system = list(range(64))
    engine.generate([[*system, 7, i] for i in range(5)], GREEDY)
    assert engine.counts == engine.counts | {"prompt_tokens": 64 + 5 * 2, "shared_tokens": 4 * 64}
    assert engine._batch.pages.num_used == 0


def test_next_turn_continues_the_pages_of_the_answer(llama) -> None:
    engine = LocalEngine(llama, byte_tokenizer())
    first = engine.generate([list(range(40))], Sampling(max_new_tokens=30))[0][0]
    before = engine.counts["prompt_tokens"]
    engine.generate([[*range(40), *first.tokens, 5]], GREEDY)
    assert engine.counts["prompt_tokens"] - before <= PAGE + 1


def test_new_weights_forget_old_pages(llama) -> None:
    engine = LocalEngine(llama, byte_tokenizer())
    prompt = list(range(50))
    engine.generate([prompt], GREEDY)
    with torch.no_grad():
        llama.lm_head.weight.add_(torch.randn(llama.lm_head.weight.shape))
        llama.model.layers[0].mlp.down_proj.weight.mul_(-1)
    engine.sync(llama, 1)
    (one,) = engine.generate([prompt], GREEDY)[0]
    assert one.version == 1
    assert list(one.tokens) == greedy(llama, prompt, engine.end_ids)


def test_lora_counts(llama) -> None:
    tuned = Lora(rank=4).apply(llama.requires_grad_(False))
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    engine = LocalEngine(tuned.eval(), byte_tokenizer())
    assert list(engine.generate(PROMPTS[:1], GREEDY)[0][0].tokens) == greedy(tuned, PROMPTS[0], engine.end_ids)
    assert not torch.equal(
        weight_of(read_parts(tuned).layers[0].linears["out"][0]),
        tuned.get_base_model().model.layers[0].self_attn.o_proj.base_layer.weight,
    )


@pytest.mark.parametrize("name", ENGINES.names())
def test_draws_follow_the_seed_and_differ_without(model, name: str) -> None:
    engine = ENGINES.get(name)(model, byte_tokenizer())
    how = Sampling(max_new_tokens=12, temperature=1.0, sampling_seed=3)
    assert engine.generate(PROMPTS[:1], how, n=2) == engine.generate(PROMPTS[:1], how, n=2)
    free = engine.generate(PROMPTS[:1], Sampling(max_new_tokens=12, temperature=5.0), n=3)[0]
    assert len({one.tokens for one in free}) > 1


def test_a_seeded_answer_does_not_depend_on_its_neighbours(llama) -> None:
    engine = LocalEngine(llama, byte_tokenizer())
    how = Sampling(max_new_tokens=12, temperature=1.0, sampling_seed=3)
    alone = engine.generate(PROMPTS[:1], how)[0]
    assert engine.generate(PROMPTS, how)[0] == alone


def test_draws_follow_the_distribution() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0, -30.0]]).repeat(4000, 1)
    rng = np.random.default_rng(0)
    for how, allowed in (
        (Sampling(temperature=1.0), {0, 1, 2, 3}),
        (Sampling(temperature=1.0, top_k=2), {0, 1}),
        (Sampling(temperature=1.0, top_p=0.7), {0, 1}),
        (Sampling(temperature=1.0, min_p=0.1), {0, 1, 2}),
        (Sampling(temperature=0.5, top_p=1e-9), {0}),
    ):
        tokens, logp, drawn = sample.choose(logits, how, [rng] * len(logits))
        assert set(tokens) == allowed
        kept = torch.tensor(sorted(allowed))
        want = torch.softmax(logits[0, kept] / how.temperature, -1)
        have = torch.bincount(torch.tensor(tokens), minlength=5)[kept] / len(tokens)
        torch.testing.assert_close(have, want, rtol=0, atol=0.03)
        own = torch.log_softmax(logits[0], -1)
        assert logp[0] == pytest.approx(own[tokens[0]].item(), abs=1e-5)
        assert (drawn is None) == (how.temperature == 1)


@pytest.mark.parametrize("name", ENGINES.names())
def test_repetition_penalty_as_in_transformers(llama, name: str) -> None:
    how = Sampling(max_new_tokens=12, repetition_penalty=1.8)
    want = ENGINES.get("hf")(llama, byte_tokenizer()).generate(PROMPTS, how)
    have = ENGINES.get(name)(llama, byte_tokenizer()).generate(PROMPTS, how)
    assert [a[0].tokens for a in have] == [a[0].tokens for a in want]


def logps(model, prompt: list[int], tokens: tuple[int, ...], temperature: float) -> torch.Tensor:
    """Log-probabilities of the tokens of an answer, from one forward pass over all of it."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + list(tokens)]), use_cache=False).logits[0].float() / temperature
    return torch.log_softmax(logits[len(prompt) - 1 : -1], -1).gather(1, torch.tensor(tokens)[:, None])[:, 0]


@pytest.mark.parametrize(
    "how",
    [
        GREEDY,
        Sampling(max_new_tokens=12, temperature=1.0, sampling_seed=1, top_p=0.9),
        Sampling(max_new_tokens=12, temperature=0.5, sampling_seed=1, top_k=5),
        Sampling(max_new_tokens=12, temperature=3.0, sampling_seed=1, repetition_penalty=1.5),
        Sampling(max_new_tokens=12, repetition_penalty=1.5),
    ],
    ids=["greedy", "own", "cold", "hot", "penalty"],
)
@pytest.mark.parametrize("name", ENGINES.names())
def test_log_probabilities_are_those_of_the_model_and_of_the_draw(model, name: str, how: Sampling) -> None:
    """Neither a smaller choice of tokens nor a penalty moves them: a trainer cannot know of those."""
    engine = ENGINES.get(name)(model, byte_tokenizer(), batch_size=3)
    for answers, prompt in zip(engine.generate(PROMPTS, how, n=2), PROMPTS, strict=True):
        for one in answers:
            if name == "vllm" and how.temperature not in (0, 1):
                assert one.logp is one.drawn_logp is None  # it reports one kind, and that only where nothing is cut
                continue
            want = logps(model, prompt, one.tokens, 1.0)
            torch.testing.assert_close(torch.tensor(one.logp), want, rtol=1e-3, atol=1e-3)
            if how.temperature in (0, 1):
                assert one.drawn_logp is None
            else:
                want = logps(model, prompt, one.tokens, how.temperature)
                torch.testing.assert_close(torch.tensor(one.drawn_logp), want, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ENGINES.names())
def test_stop_texts(llama, name: str) -> None:
    engine = ENGINES.get(name)(llama, byte_tokenizer())
    whole = engine.generate(PROMPTS[:1], Sampling(max_new_tokens=40))[0][0].text
    stop = next(whole[i : i + 3] for i in range(4, len(whole)) if whole[i : i + 3].isascii())
    (one,) = engine.generate(PROMPTS[:1], Sampling(max_new_tokens=40, stop=(stop,)))[0]
    assert one.text == whole[: whole.index(stop)]
    assert one.finish_reason == "stop"
    assert len(one.logp) == len(one.tokens)


def test_streamed_text_is_whole_characters() -> None:
    stream = TextStream(byte_tokenizer(), ["STOP", "🙂x"])
    encode = byte_tokenizer().encode
    parts = [stream.push(t) for t in encode("你好 🙂 ST fine 🙂STO")]
    assert "".join(parts) == "你好 🙂 ST fine 🙂"
    assert all("\ufffd" not in part for part in parts)
    assert stream.push(encode("P")[0]) == ""
    assert stream.stopped
    assert stream.text == "你好 🙂 ST fine 🙂"


def test_cancel_frees_the_place(llama) -> None:
    engine = LocalEngine(llama, byte_tokenizer(), batch_size=1)
    stream = engine.stream(PROMPTS[0], Sampling(max_new_tokens=500))
    next(stream)
    stream.close()
    assert engine._batch.pages.num_used == 0
    assert len(engine.generate(PROMPTS[1:2], GREEDY)[0]) == 1
    request = engine.submit(PROMPTS[0], GREEDY)
    engine.cancel(request)
    assert request.done


def test_bad_prompts(llama) -> None:
    engine = LocalEngine(llama, byte_tokenizer())
    with pytest.raises(ModelError, match="the prompt is empty"):
        engine.generate([[]], GREEDY)
    reach = llama.config.max_position_embeddings
    with pytest.raises(ModelError, match=f"the prompt has {reach} tokens, but this llama model sees at most {reach}"):
        engine.generate([[1] * reach], GREEDY)
    (one,) = engine.generate([[1] * (reach - 3)], Sampling(max_new_tokens=50))[0]
    assert one.finish_reason == "length"
    assert len(one.tokens) == 4


def test_nan_is_an_error(llama) -> None:
    with torch.no_grad():
        llama.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    for kind in ("float32", "int8"):
        engine = LocalEngine(llama, byte_tokenizer(), kind=kind)
        for how in (GREEDY, Sampling(temperature=1.0)):
            with pytest.raises(ModelError, match="logits are not finite"):
                engine.generate(PROMPTS, how)
        assert engine._batch.pages.num_used == 0


def test_fault_of_the_model_reaches_the_reader(model, monkeypatch) -> None:
    engine = ENGINES.get("hf")(model, byte_tokenizer())
    monkeypatch.setattr(model, "generate", lambda **_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(engine.stream(PROMPTS[0], GREEDY))


def test_torch_decoder_is_what_runs_without_a_compiler(llama, monkeypatch) -> None:
    monkeypatch.setattr(native, "unusable", lambda: "there is no C++ compiler (c++)")
    engine = LocalEngine(llama, byte_tokenizer(), kind="int8")
    assert isinstance(engine._batch.decoder, TorchDecoder)
    assert engine.description == "torch, float32 weights (there is no C++ compiler (c++))"


def test_pages_are_shared_dropped_and_grown(monkeypatch) -> None:
    monkeypatch.setattr("luthier.engines.pages.KEPT_BYTES", 0)
    store = PageStore((2, 1, 1, 8), torch.float32, torch.device("cpu"), first=2)
    tokens = tuple(range(2 * PAGE))
    table = [store.allocate(), store.allocate()]
    store.keep(tokens, table)
    for page in reversed(table):
        store.release(page)
    assert store.find((*tokens, 1)) == table
    assert store.find((0,) * PAGE) == []
    taken = store.allocate()
    assert taken == table[1]
    assert store.find(tokens) == table[:1]
    store.use(table[0])
    assert store.allocate() not in table
    assert len(store.memory) == 4


@pytest.mark.parametrize("compiled", [True, False])
def test_answers_come_from_the_weights_of_the_last_sync(llama, monkeypatch: pytest.MonkeyPatch, compiled: bool) -> None:
    """While the model goes on learning, in place; another thread may be answering meanwhile."""
    if not compiled:
        monkeypatch.setattr(native, "unusable", lambda: "not wanted here")
    engine = LocalEngine(llama, byte_tokenizer())
    before = engine.generate(PROMPTS, GREEDY)
    with torch.no_grad():
        for parameter in llama.parameters():
            parameter.mul_(-2)
    engine.forget()
    after = engine.generate(PROMPTS, GREEDY)
    assert [a.tokens for (a,) in after] == [b.tokens for (b,) in before]
    for (a,), (b,) in zip(after, before, strict=True):
        assert a.logp == pytest.approx(b.logp, abs=1e-5)
    engine.sync(llama, 1)
    assert engine.generate(PROMPTS, GREEDY)[0][0].logp != before[0][0].logp
