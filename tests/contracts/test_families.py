"""Packed equals separate, kernels on equals off: for each family, logits and gradients."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import TINY_CONFIGS, segment
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.pytorch_utils import Conv1D

from luthier.core.anatomy import (
    attention_of,
    decoder_layers,
    expert_parameters,
    family_of,
    linear_names,
    mlp_of,
    norm_names,
    packing_of,
    plain_model,
    routers_of,
)
from luthier.core.registry import FAMILIES
from luthier.data.pack import pack
from luthier.data.template_names import NAMES
from luthier.models import patch
from luthier.models.decoder_parts import obstacle
from luthier.models.patch import FOREST, attention_for, plain_attention, register_attention
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
    """The model in `folder` with every weight and bias moved far enough that no part of the architecture is idle."""
    register_attention()
    if attention != FOREST or packing_of(AutoConfig.from_pretrained(folder)) != "forest":
        attention = plain_attention(AutoConfig.from_pretrained(folder))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention)
    generator = torch.Generator().manual_seed(3)
    for tensor in (*model.parameters(), *(b for n, b in model.named_buffers() if n.endswith("correction_bias"))):
        tensor.data.add_(torch.randn(tensor.shape, generator=generator), alpha=0.15)
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
def test_packed_equals_separate(every_family_folder: Path, kernels: bool, tuning) -> None:
    plain = load(every_family_folder, "eager", tuning)
    packed = load(every_family_folder, FOREST if kernels else plain_attention(plain_model(plain).config), tuning)
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


def test_removed_kernels_give_the_plain_model_back(every_family_folder: Path) -> None:
    model = load(every_family_folder, FOREST, Lora(rank=4))
    before = {name: module.forward for name, module in model.named_modules()}
    patch.install(model)
    patch.remove(model)
    assert {name: module.forward for name, module in model.named_modules()} == before


def test_a_saved_model_computes_the_same(every_family_folder: Path, tmp_path: Path) -> None:
    model = load(every_family_folder, "plain")
    model.save_pretrained(tmp_path)
    attention = model.config._attn_implementation
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation=attention)
    ids = torch.tensor([UNITS[1][0].tokens])
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, model(ids).logits)


def test_a_switched_off_adapter_is_the_base(every_family_folder: Path) -> None:
    model = load(every_family_folder, FOREST, Lora(rank=4))
    patch.install(model)
    base = load(every_family_folder, "eager")
    with model.disable_adapter():
        torch.testing.assert_close(Policy(model)(pack(UNITS)).logp, separate_logps(base), rtol=1e-4, atol=1e-5)


def test_generation_is_the_same_with_and_without_kernels(every_family_folder: Path) -> None:
    ids = torch.tensor([[256] * 3 + list(range(10, 19)), list(range(40, 52))])
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    texts = []
    for attention in (FOREST, "eager"):
        model = load(every_family_folder, attention).eval()
        if attention == FOREST:
            patch.install(model)
        texts.append(model.generate(ids, attention_mask=mask, max_new_tokens=12, do_sample=False).tolist())
    assert texts[0] == texts[1]


def test_entropy_and_checkpointing(tiny: Path) -> None:
    model = load(tiny, FOREST)
    patch.install(model)
    batch = pack(UNITS)
    plain = Policy(model)(batch, reads=frozenset({"logp", "entropy"}))
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


KERNELS_OF: dict[str, list[str]] = {}
"""Tiny configurations by model type."""
for _name, _make in TINY_CONFIGS.items():
    KERNELS_OF.setdefault(_make().model_type, []).append(_name)


def tiny_model(name: str, **options):
    return AutoModelForCausalLM.from_config(TINY_CONFIGS[name](), **options)


@pytest.mark.parametrize("model_type", KERNELS_OF)
def test_facts_name_real_parts(model_type: str) -> None:
    """What a fact names is in one of the forms of the family, and what is in a form has a fact."""
    family, targets, experts, put = family_of(model_type), set(), set(), set()
    register_attention()
    for name in KERNELS_OF[model_type]:
        with torch.device("meta"):
            model = tiny_model(name, attn_implementation=attention_for(TINY_CONFIGS[name](), "auto"))
        layers = decoder_layers(model)
        for layer in layers:
            assert sum(p.numel() for p in attention_of(layer, family).parameters()) > 0
            assert sum(p.numel() for p in mlp_of(layer, family).parameters()) > 0
        linear, stacked = (
            linear_names(model),
            {path for layer in layers for path, x in layer.named_parameters() if x.dim() == 3},
        )
        targets, experts = targets | set(linear), experts | set(expert_parameters(model))
        flat = {
            path.rpartition(".")[2] for path, m in layers.named_modules() if isinstance(m, torch.nn.Linear | Conv1D)
        }
        assert flat - set(linear) <= {family.router.rpartition(".")[2], "shared_expert_gate"}
        assert stacked == set(expert_parameters(model))
        assert bool(routers_of(model)) == bool(stacked), "a mixture of experts without the fact where its router is"
        assert norm_names(model)
        assert obstacle(model) is None or "decoder" not in family.kernels
        patch.install(model)
        with torch.device("meta"):
            put |= {line.partition(":")[0] for line in patch.install(Lora(rank=1).apply(model)) if " x " in line}
    assert targets == set(family.lora_targets)
    assert experts == set(family.experts)
    names = {"attention": "rope", "gated_mlp": "gated"}
    assert put == {names.get(kernel, kernel) for kernel in family.kernels if kernel != "decoder"}


def test_the_shelf_is_tested() -> None:
    """Every family on the shelf has a tiny configuration, and every name of an architecture is one of GGUF's."""
    from gguf.constants import MODEL_ARCH_NAMES

    assert {family.model_types for _, family in FAMILIES.items()} == {family_of(t).model_types for t in KERNELS_OF}
    for name, family in FAMILIES.items():
        assert name in family.model_types
        assert family.gguf in {"", *MODEL_ARCH_NAMES.values()}
        assert {template for template in family.templates if template not in NAMES} == set()
        assert family.router or not family.balance_loss


def test_the_page_of_models_is_current() -> None:
    page = Path(__file__).parents[2] / "docs/make_models.py"
    subprocess.run([sys.executable, str(page), "--check"], check=True)


@pytest.mark.parametrize("kernels", ["auto", "off"])
@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0, 3.0, 4.0, 5.0],
         "original_max_position_embeddings": 12, "factor": 4.0},
        {"rope_type": "dynamic", "factor": 4.0},
    ],
    ids=["longrope", "dynamic"],
)  # fmt: skip
def test_a_long_row_does_not_turn_the_short_ones(rope: dict, kernels: str) -> None:
    register_attention()
    is_long, base = (
        rope["rope_type"] == "longrope",
        TINY_CONFIGS["phi3" if rope["rope_type"] == "longrope" else "llama"](),
    )
    changed = {"rope_parameters": {"rope_theta": 1e4, **rope}, "max_position_embeddings": 48 if is_long else 12}
    original = {"original_max_position_embeddings": 12} if is_long else {}
    config = type(base)(**{**base.to_dict(), **changed, **original})
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention_for(config, kernels)).eval()
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.2)
    if kernels == "auto":
        patch.install(model)
    units = [[segment(2, 5, seed=1)], [segment(30, 6, seed=2)], [segment(3, 6, seed=3)]]
    have = Policy(model)(pack(units)).logp
    want = torch.cat([Policy(model)(pack([unit])).logp for unit in units])
    torch.testing.assert_close(have, want, rtol=1e-4, atol=1e-5)
    model.config.rope_parameters["rope_type"] = "default"  # the policy looks there, the model has looked already
    assert (Policy(model)(pack(units)).logp - want).abs().max() > 1e-3


def test_an_unknown_model_type_is_computed_alone(tiny: Path) -> None:
    class Strange(LlamaConfig):
        model_type = "strange"

    register_attention()
    torch.manual_seed(1)
    model = LlamaForCausalLM(Strange(**TINY_CONFIGS["llama"]().to_diff_dict() | {"model_type": "strange"}))
    assert attention_for(model.config, "auto") == "sdpa"
    assert set(linear_names(model)) == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    torch.testing.assert_close(Policy(model)(pack(UNITS)).logp, separate_logps(model), rtol=1e-4, atol=1e-5)
