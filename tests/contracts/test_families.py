"""Packed equals separate, kernels on equals off: for each family, logits and gradients."""

from pathlib import Path

import pytest
import torch
from helpers import segment
from transformers import AutoModelForCausalLM

from luthier.core.anatomy import plain_model
from luthier.core.registry import FAMILIES
from luthier.data.pack import pack
from luthier.models import patch
from luthier.models.patch import FOREST, plain_attention, register_attention
from luthier.models.policy import Policy
from luthier.tuning.full import Full
from luthier.tuning.lora import Lora

PREFIX = list(range(5, 35))
UNITS = [
    [segment(4, 5, seed=1)],
    [segment(3, 6, seed=2, prefix=PREFIX), segment(2, 4, seed=3, prefix=PREFIX)],
    [segment(1, 1, seed=4)],
    [segment(0, 3, seed=5, prefix=PREFIX[:20])],
]


def load(folder: Path, attention: str, tuning=None):
    register_attention()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention)
    torch.manual_seed(5)
    model = (tuning or Full()).apply(model.requires_grad_(False))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def separate_logps(model) -> torch.Tensor:
    """Every segment alone through the ordinary model with its ordinary attention: the specification."""
    parts = []
    for one in (s for unit in UNITS for s in unit):
        logits = model(input_ids=torch.tensor([one.tokens]), use_cache=False).logits[0].float()
        logp = torch.log_softmax(logits[:-1], -1).gather(1, torch.tensor(one.tokens[1:])[:, None])[:, 0]
        parts.append(logp[torch.tensor(one.weight[1:]) > 0])
    return torch.cat(parts)


def gradients(model, logps: torch.Tensor) -> dict[str, torch.Tensor]:
    learning = {n: p for n, p in model.named_parameters() if p.requires_grad}
    weights = torch.linspace(-1, 1, len(logps))
    found = torch.autograd.grad((logps * weights).sum(), list(learning.values()), allow_unused=True)
    return {n: g for n, g in zip(learning, found, strict=True) if g is not None}


@pytest.mark.parametrize("kernels", [True, False], ids=["kernels", "plain"])
@pytest.mark.parametrize("tuning", [Full(), Lora(rank=4)], ids=["full", "lora"])
def test_packed_equals_separate(family_folder: Path, kernels: bool, tuning) -> None:
    plain = load(family_folder, "eager", tuning)
    packed = load(family_folder, FOREST if kernels else plain_attention(plain_model(plain).config), tuning)
    if kernels:
        patch.install(packed)
    want = separate_logps(plain)
    have = Policy(packed)(pack(UNITS)).logp
    torch.testing.assert_close(have, want, rtol=1e-4, atol=1e-5)
    want_gradients, have_gradients = gradients(plain, want), gradients(packed, have)
    assert want_gradients.keys() == have_gradients.keys()
    for name, gradient in want_gradients.items():
        torch.testing.assert_close(
            have_gradients[name], gradient, rtol=2e-3, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_removed_kernels_give_the_plain_model_back(family_folder: Path) -> None:
    model = load(family_folder, FOREST, Lora(rank=4))
    before = {name: module.forward for name, module in model.named_modules()}
    patch.install(model)
    patch.remove(model)
    assert {name: module.forward for name, module in model.named_modules()} == before


def test_a_switched_off_adapter_is_the_base(family_folder: Path) -> None:
    model = load(family_folder, FOREST, Lora(rank=4))
    patch.install(model)
    base = load(family_folder, "eager")
    with model.disable_adapter():
        torch.testing.assert_close(Policy(model)(pack(UNITS)).logp, separate_logps(base), rtol=1e-4, atol=1e-5)


def test_generation_is_the_same_with_and_without_kernels(family_folder: Path) -> None:
    ids = torch.tensor([[256] * 3 + list(range(10, 19)), list(range(40, 52))])
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    texts = []
    for attention in (FOREST, "eager"):
        model = load(family_folder, attention).eval()
        if attention == FOREST:
            patch.install(model)
        texts.append(model.generate(ids, attention_mask=mask, max_new_tokens=12, do_sample=False).tolist())
    assert texts[0] == texts[1]


def test_entropy_and_checkpointing(tiny: Path) -> None:
    model = load(tiny, FOREST)
    patch.install(model)
    batch = pack(UNITS)
    plain = Policy(model)(batch, with_entropy=True)
    assert plain.entropy is not None
    assert (plain.entropy > 0).all()
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    again = Policy(model)(batch)
    torch.testing.assert_close(again.logp, plain.logp)
    want, have = gradients(model, plain.logp), gradients(model, again.logp)
    for name in want:
        torch.testing.assert_close(have[name], want[name])


def test_shared_prefix_is_computed_once() -> None:
    batch = pack(UNITS)
    separate = sum(len(s.tokens) - 1 for unit in UNITS for s in unit)
    assert batch.num_tokens < separate - len(PREFIX)


@pytest.mark.parametrize("name", FAMILIES.names())
def test_facts_name_real_layers(name: str) -> None:
    family = FAMILIES.get(name)
    assert name in family.model_types
    assert family.lora_targets
