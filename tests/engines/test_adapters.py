"""Several LoRA adapters over one base: each row of a batch is answered by its own, as if it were merged."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import make_folder
from tunings import CASES, fresh, stir

from luthier.core.errors import ModelError
from luthier.core.types import Sampling
from luthier.engines.local import LocalEngine
from luthier.engines.shaping import Shaping
from luthier.kernels import native
from luthier.models.adapters import add_adapter, load_adapter, save_trained
from luthier.tuning.lora import Lora

GREEDY = Sampling(max_new_tokens=10)
LORAS = {
    "default": Lora(rank=4),
    "patterns": Lora(rank=3, rank_pattern={"down_proj": 2}, alpha_pattern={"q_proj": 9}, rslora=True),
    "named": Lora(rank=2, targets=("v_proj", "o_proj"), alpha=8),
}
PROMPTS = [[(11 * i + j) % 90 + 33 for j in range(4 + 5 * (i % 5))] for i in range(8)]
WHO = [None, "default", "patterns", "named"]


def adapters_of(base: Path, folder: Path, tunings: dict[str, Any]) -> Any:
    """Return a model with all adapters beside its weights; they lie in `folder` too."""
    model: Any = None
    for number, (name, tuning) in enumerate(tunings.items()):
        torch.manual_seed(number)
        tuned = stir(tuning.apply(fresh(base)))
        with torch.no_grad():
            for path, parameter in tuned.named_parameters():
                if "lora_B" in path:
                    parameter.add_(torch.randn_like(parameter) * 0.3)
        save_trained(tuned, folder / name, str(base))
        if model is None:
            model = load_adapter(fresh(base), folder / name, trainable=False)
        else:
            add_adapter(model, folder / name, name)
    return model.eval()


def answers(engine: LocalEngine, who: list[str | None]) -> list[Any]:
    requests = [
        engine.submit(prompt, GREEDY, shaping=Shaping(adapter=name, top_logprobs=1))
        for prompt, name in zip(PROMPTS, who, strict=True)
    ]
    while not all(request.done for request in requests):
        engine.step()
    return [request.answers[0] for request in requests]


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi3"])
@pytest.mark.parametrize("decoder", ["native", "torch"])
def test_a_mixed_batch_is_each_merged_model(
    family: str, decoder: str, tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if decoder == "torch":
        monkeypatch.setattr(native, "unusable", lambda: "not wanted")
    base = make_folder(family, tmp_path / "base")
    fused = (
        {
            "patterns": Lora(rank=3, rank_pattern={"down_proj": 2}, alpha_pattern={"qkv_proj": 9}, rslora=True),
            "named": Lora(rank=2, targets=("qkv_proj", "o_proj"), alpha=8),
        }
        if family == "phi3"
        else {}
    )
    model = adapters_of(base, tmp_path, {**LORAS, **fused})
    engine = LocalEngine(model, tokenizer, adapters=list(LORAS))
    who = [WHO[i % len(WHO)] for i in range(len(PROMPTS))]
    mixed = answers(engine, who)
    seen = set()
    for name in WHO:
        single = fresh(base)
        if name is not None:
            single = load_adapter(single, tmp_path / name, trainable=False).merge_and_unload().eval()
        merged = LocalEngine(single, tokenizer)
        for prompt, own, answer in zip(PROMPTS, who, mixed, strict=True):
            if own != name:
                continue
            (expected,) = merged.generate([prompt], GREEDY)[0]
            assert answer.tokens == expected.tokens
            assert answer.logp == pytest.approx(expected.logp, abs=1e-4)
            seen.add((name, answer.tokens))
        scored = engine.score([PROMPTS[4]], adapter=name)[0]
        by_hand = merged.score([PROMPTS[4]])[0]
        assert [t.logp for t in scored] == pytest.approx([t.logp for t in by_hand], abs=1e-4)
    assert len({tokens for _, tokens in seen}) >= len(WHO), "the adapters answer alike, so this proves nothing"


def test_equal_prompts_of_two_adapters_share_no_pages(tiny: Path, tmp_path: Path, tokenizer: Any) -> None:
    engine = LocalEngine(adapters_of(tiny, tmp_path, LORAS), tokenizer, adapters=list(LORAS))
    prompt = [40 + i % 50 for i in range(48)]

    def ask(name: str | None) -> tuple[int, ...]:
        request = engine.submit(prompt, GREEDY, shaping=Shaping(adapter=name))
        while not request.done:
            engine.step()
        return request.answers[0].tokens  # type: ignore[union-attr]

    first = {name: ask(name) for name in WHO}
    assert engine.counts["shared_tokens"] == 0
    assert {name: ask(name) for name in WHO} == first
    assert engine.counts["shared_tokens"] == len(WHO) * 32


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("dora", "more than an addition"),
        ("ia3", "of the kind IA3"),
        ("lora-saves", "of its own"),
        ("embedding", "no linear layer of attention or MLP"),
    ],
)
def test_what_is_no_plain_lora_is_refused(case: str, reason: str, tiny: Path, tokenizer: Any) -> None:
    if case == "embedding":
        from peft import LoraConfig, get_peft_model

        model: Any = get_peft_model(fresh(tiny), LoraConfig(r=2, target_modules=["q_proj", "embed_tokens"]))
    else:
        model = CASES[case][0].apply(fresh(tiny))
    with pytest.raises(ModelError, match=f"adapter default cannot be put on the rows of a batch: .*{reason}"):
        LocalEngine(model, tokenizer, adapters=["default"])


def with_plain(model: Any, **settings: Any) -> Any:
    """Put an adapter with `settings` on a model, unless one is there, and a plain one beside it."""
    from peft import LoraConfig, get_peft_model

    if not hasattr(model, "peft_config"):
        model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "down_proj"], **settings))
    model.add_adapter("plain", LoraConfig(r=2, target_modules=["v_proj"]))
    return model


def merged(model: Any) -> Any:
    model = with_plain(model)
    model.merge_adapter(["default"])
    return model


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (merged, "default is merged into model.layers.0.self_attn.q_proj; unmerge it first"),
        (lambda model: with_plain(model, bias="all"), "default brings biases of the model itself"),
        (lambda model: with_plain(model, init_lora_weights="pissa"), r"began as a part of the weights \(pissa\)"),
        (lambda model: with_plain(Lora(rank=2, init="olora").apply(model)), "gave a part of itself to an adapter"),
    ],
    ids=["merged", "bias", "pissa", "own olora"],
)
def test_weights_that_an_adapter_changed_are_no_base(make: Any, reason: str, tiny: Path, tokenizer: Any) -> None:
    """Another adapter, and the model without one, would answer from the wrong weights."""
    model = make(fresh(tiny))
    with pytest.raises(ModelError, match=f"adapter plain cannot be put on the rows of a batch: .*{reason}"):
        LocalEngine(model, tokenizer, adapters=["plain"])


def test_an_adapter_that_began_in_the_weights_is_written_as_a_plain_one(
    tiny: Path, tmp_path: Path, tokenizer: Any
) -> None:
    model = adapters_of(tiny, tmp_path, {"default": Lora(rank=2, init="pissa"), "plain": Lora(rank=2)})
    engine = LocalEngine(model, tokenizer, adapters=["default", "plain"])
    for name in (None, "default", "plain"):
        single = fresh(tiny)
        if name is not None:
            single = load_adapter(single, tmp_path / name, trainable=False).merge_and_unload().eval()
        expected = LocalEngine(single, tokenizer).score([PROMPTS[4]])[0]
        found = engine.score([PROMPTS[4]], adapter=name)[0]
        assert [t.logp for t in found] == pytest.approx([t.logp for t in expected], abs=1e-4)


@pytest.mark.parametrize("kind", ["bfloat16", "int8"])
def test_adapters_stand_beside_narrow_weights(kind: str, tiny: Path, tmp_path: Path, tokenizer: Any) -> None:
    if reason := native.unusable():
        pytest.skip(reason)
    model = adapters_of(tiny, tmp_path, LORAS)
    names = list(LORAS)
    exact, near = (LocalEngine(model, tokenizer, kind=form, adapters=names) for form in ("float32", kind))
    base = [t.logp for t in near.score([PROMPTS[4]])[0]]
    for name in names:
        found = [t.logp for t in near.score([PROMPTS[4]], adapter=name)[0]]
        assert found == pytest.approx([t.logp for t in exact.score([PROMPTS[4]], adapter=name)[0]], abs=0.1)
        assert max(abs(a - b) for a, b in zip(found, base, strict=True)) > 0.2, "the adapter does nothing"


def test_an_unknown_adapter_is_named(tiny: Path, tmp_path: Path, tokenizer: Any) -> None:
    model = adapters_of(tiny, tmp_path, LORAS)
    with pytest.raises(ModelError, match="no adapter is called 'nme'; there are: default, patterns, named"):
        LocalEngine(model, tokenizer, adapters=["nme"])
    engine = LocalEngine(model, tokenizer, adapters=["named"])
    with pytest.raises(ModelError, match="no adapter is called 'patterns'; there are: named"):
        engine.submit([65], GREEDY, shaping=Shaping(adapter="patterns"))
