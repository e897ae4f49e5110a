"""vLLM as an engine: what it is handed, what its numbers mean, and what it declines."""

import builtins
import sys
from pathlib import Path
from typing import Any

import fake_vllm
import pytest
import torch
from helpers import byte_tokenizer, make_folder
from safetensors import safe_open
from tunings import CASES, fresh, stir, stirred

from luthier.config.rollout import RolloutConfig
from luthier.config.schema import ModelConfig, RunConfig
from luthier.core.errors import ConfigError, DependencyError, ModelError
from luthier.core.types import Sampling
from luthier.engines import vllm
from luthier.engines.vllm import VllmEngine
from luthier.engines.weights import obstacle, published_weights
from luthier.models.quantized import make_mergeable, quantize
from luthier.tuning.lora import Lora
from luthier.workflows.build import check_engine, make_engine

GREEDY = Sampling(max_new_tokens=8)
PROMPTS = [list(range(5, 5 + n)) for n in (3, 17, 9)]
VIRTUAL = ("prompt", "ptuning", "prefix")


@pytest.fixture(autouse=True)
def stand_in(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "real" not in request.node.name:
        monkeypatch.setitem(sys.modules, "vllm", fake_vllm)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder("llama", tmp_path_factory.mktemp("llama"))


def expected(model: Any, prompt: list[int], count: int) -> tuple[int, ...]:
    """The greedy answer, by a whole forward pass for every token."""
    ids = list(prompt)
    for _ in range(count):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return tuple(ids[len(prompt) :])


def check(engine: VllmEngine, model: Any) -> None:
    for prompt, (answer,) in zip(PROMPTS, engine.generate(PROMPTS, GREEDY), strict=True):
        assert answer.tokens == expected(model, prompt, len(answer.tokens))


@pytest.mark.parametrize("name", CASES)
def test_it_gets_the_weights_of_every_tuning_or_says_why_not(llama: Path, name: str) -> None:
    model = stirred(name, llama)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    if name.startswith((*VIRTUAL, "bottleneck")):
        reason = "a soft prompt or a prefix is not weights" if name.startswith(VIRTUAL) else "bottleneck adapters stand"
        with pytest.raises(ModelError, match=f"engine: vllm cannot run this model: {reason}"):
            VllmEngine(model, byte_tokenizer())
        return
    check(VllmEngine(model, byte_tokenizer()), model)
    after = model.state_dict()
    assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())


@pytest.mark.parametrize("family", ["llama", "llama_tied", "qwen3_moe", "mixtral", "gemma3", "gpt2"])
def test_weights_have_the_names_and_values_of_published_files(tmp_path: Path, family: str) -> None:
    folder = make_folder(family, tmp_path)
    with safe_open(folder / "model.safetensors", "pt") as file:
        stored = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  not a mapping
    model = fresh(folder)
    ours = dict(published_weights(model))
    assert set(stored) <= set(ours)
    assert all("lm_head" in name for name in set(ours) - set(stored))  # tied to the embedding, which is there
    for name, tensor in stored.items():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=0)


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral"])
def test_adapters_on_experts_are_merged(tmp_path: Path, family: str) -> None:
    model = stir(Lora(rank=2, experts=True).apply(fresh(make_folder(family, tmp_path))))
    assert any("experts" in name for name, p in model.named_parameters() if p.requires_grad)
    check(VllmEngine(model, byte_tokenizer()), model)


def test_narrow_weights_are_handed_over_as_what_they_stand_for(llama: Path) -> None:
    model = fresh(llama)
    quantize(model, "nf4", double=True, dtype=torch.float32)
    check(VllmEngine(model, byte_tokenizer()), model)
    tuned = stir(Lora(rank=4).apply(model))
    make_mergeable(tuned)
    check(VllmEngine(tuned, byte_tokenizer()), tuned)


def test_one_layer_is_held_at_a_time(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is merged for a layer is made when that layer is asked for, and the first module behind it."""
    model, merged = stirred("lora", llama), list[object]()
    kind = type(model.get_base_model().model.layers[0].mlp.up_proj)
    monkeypatch.setattr(kind, "merge", lambda self: merged.append(self))
    weights = published_weights(model)
    names = [next(weights)[0], next(weights)[0]]
    assert names == ["model.embed_tokens.weight", "model.layers.0.input_layernorm.weight"]
    assert len(merged) == 8
    assert len(list(weights)) == 19
    assert len(merged) == 14


def test_new_weights_replace_the_old_ones_and_what_was_kept_of_prompts(llama: Path) -> None:
    model = stirred("lora", llama)
    engine = VllmEngine(model, byte_tokenizer())
    first = engine.generate(PROMPTS, GREEDY)
    assert first[0][0].version == 0
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.3)
    assert engine.generate(PROMPTS, GREEDY) == first
    engine.sync(model, 7)
    check(engine, model)
    assert engine.generate(PROMPTS, GREEDY)[0][0].version == 7
    assert engine.llm.resets == 2


def test_an_adapter_that_is_off_is_not_merged(llama: Path) -> None:
    model = stirred("lora", llama)
    with model.disable_adapter():
        engine = VllmEngine(model, byte_tokenizer())
    check(engine, fresh(llama))


def logps(model: Any, prompt: list[int], tokens: tuple[int, ...], temperature: float) -> torch.Tensor:
    with torch.no_grad():
        logits = model(torch.tensor([prompt + list(tokens)]), use_cache=False).logits[0] / temperature
    return torch.log_softmax(logits[len(prompt) - 1 : -1], -1).gather(1, torch.tensor(tokens)[:, None])[:, 0]


@pytest.mark.parametrize("temperature", [0.6, 1.7])
def test_log_probabilities_of_tempered_draws(llama: Path, temperature: float) -> None:
    model = fresh(llama)
    engine = VllmEngine(model, byte_tokenizer(), temperature=temperature)
    assert engine.llm.mode == "processed_logprobs"
    how = Sampling(max_new_tokens=6, temperature=temperature, sampling_seed=1)
    for one in engine.generate(PROMPTS[:1], how, n=3)[0]:
        assert one.logp is None
        want = logps(model, PROMPTS[0], one.tokens, temperature)
        torch.testing.assert_close(torch.tensor(one.drawn_logp), want, rtol=1e-4, atol=1e-4)
    for plain in (GREEDY, Sampling(max_new_tokens=6, temperature=1.0)):
        (one,) = engine.generate(PROMPTS[:1], plain)[0]
        assert one.drawn_logp is None
        want = logps(model, PROMPTS[0], one.tokens, 1.0)
        torch.testing.assert_close(torch.tensor(one.logp), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cut", [{"top_p": 0.9}, {"top_k": 3}, {"min_p": 0.1}, {"repetition_penalty": 1.2}])
def test_numbers_that_would_be_wrong_are_left_out(llama: Path, cut: dict[str, Any]) -> None:
    """What is left of a distribution when some of it is cut off is not what a trainer computes."""
    engine = VllmEngine(fresh(llama), byte_tokenizer(), temperature=0.6)
    (one,) = engine.generate(PROMPTS[:1], Sampling(max_new_tokens=4, temperature=0.6, **cut))[0]
    assert one.logp is None
    assert one.drawn_logp is None


def test_closing_a_stream_cancels_its_request(llama: Path) -> None:
    engine = VllmEngine(fresh(llama), byte_tokenizer())
    stream = engine.stream(PROMPTS[1], Sampling(max_new_tokens=200))
    next(stream)
    assert len(engine.llm.running) == 1
    stream.close()
    assert engine.llm.running == []


def test_prompts_that_do_not_fit(llama: Path) -> None:
    engine = VllmEngine(fresh(llama), byte_tokenizer())
    with pytest.raises(ModelError, match="the prompt is empty"):
        engine.generate([[]], GREEDY)
    with pytest.raises(ModelError, match="the prompt has 512 tokens, but this llama model sees at most 512"):
        engine.generate([[1] * 512], GREEDY)


def test_broken_weights_are_an_error(llama: Path) -> None:
    model = fresh(llama)
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    with pytest.raises(ModelError, match="logits are not finite"):
        VllmEngine(model, byte_tokenizer()).generate(PROMPTS, GREEDY)


def test_without_vllm_the_message_says_what_to_run(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "vllm")
    real_import = builtins.__import__

    def no_vllm(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "vllm":
            raise ImportError("No module named 'vllm'")
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_vllm)
    with pytest.raises(DependencyError) as caught:
        VllmEngine(fresh(llama), byte_tokenizer())
    assert str(caught.value) == (
        "engine: vllm needs vLLM, which cannot be imported (No module named 'vllm'); run: pip install 'luthier[vllm]'"
    )


def test_an_old_vllm_is_named(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm, "version", lambda name: "0.10.2")
    with pytest.raises(DependencyError, match=r"needs vLLM 0\.19 or newer, found 0\.10\.2; run: pip install"):
        VllmEngine(fresh(llama), byte_tokenizer())


def settings(model: dict[str, Any], rollout: dict[str, Any]) -> RunConfig:
    return RunConfig(model=ModelConfig(model_name_or_path="m", **model), rollout=RolloutConfig(**rollout))


def test_settings_choose_it(llama: Path) -> None:
    model = fresh(llama)
    config = settings({"engine": "vllm", "decode_dtype": "bfloat16"}, {"rollout_temperature": 0.7})
    engine = make_engine(model, byte_tokenizer(), config)
    assert isinstance(engine, VllmEngine)
    assert engine.description == "vLLM, bfloat16 weights"
    assert engine.llm.mode == "processed_logprobs"
    assert engine.llm.model.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("model", "rollout", "words"),
    [
        ({"decode_dtype": "int8"}, {}, "decode_dtype: int8 is a form of our decoder"),
        (
            {},
            {"rollout_temperature": 0.7, "rollout_top_p": 0.9, "old_logp": "engine"},
            "engine: vllm reports no log-prob",
        ),
        ({}, {"rollout_temperature": 0.7, "rollout_top_k": 9, "importance_cap": 2}, "engine: vllm reports no log-prob"),
    ],
)
def test_settings_that_cannot_be(model: dict[str, Any], rollout: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_engine(settings({"engine": "vllm", **model}, rollout))


def test_layers_of_bitsandbytes_are_declined(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("luthier.engines.weights.is_of_bitsandbytes", lambda module: True)
    assert obstacle(fresh(llama)) == "layers of bitsandbytes hold codes; set quantization_backend: luthier"


@pytest.mark.gpu
def test_real_vllm_answers_like_the_model(llama: Path) -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed")
    if not torch.cuda.is_available():
        pytest.skip("vLLM is installed, but there is no GPU")
    model = stirred("lora", llama).cuda()
    engine = VllmEngine(model, byte_tokenizer(), batch_size=8, memory_fraction=0.2)
    how = Sampling(max_new_tokens=8, temperature=1.0, sampling_seed=1)
    for prompt, answers in zip(PROMPTS, engine.generate(PROMPTS, how, n=2), strict=True):
        for one in answers:
            want = logps(model.cpu(), prompt, one.tokens, 1.0)
            torch.testing.assert_close(torch.tensor(one.logp), want, rtol=0.02, atol=0.02)
