"""Every tuning on the shelf: starts where it says, trains only what it says, survives the disk, goes on exactly."""

from pathlib import Path

import pytest
import torch
from helpers import segment
from peft import PeftModel
from transformers import AutoModelForCausalLM
from tunings import CASES, fresh, logits, stirred

from luthier.core.errors import ConfigError, ModelError
from luthier.core.registry import TUNINGS
from luthier.data.pack import pack
from luthier.models import patch
from luthier.models.adapters import (
    LEARNING,
    adapter_names,
    add_adapter,
    check_mergeable,
    exchanged,
    has_adapter,
    keep_start,
    load_adapter,
    save_trained,
    switched_off,
    use_adapter,
)
from luthier.models.patch import FOREST, plain_attention
from luthier.models.policy import Policy
from luthier.tuning.bottleneck import Bottleneck
from luthier.tuning.freeze import Freeze
from luthier.tuning.ia3 import Ia3
from luthier.tuning.lora import Lora
from luthier.tuning.oft import Oft
from luthier.tuning.parts import starts
from luthier.tuning.prefix import Prefix
from luthier.tuning.prompt import Prompt, PTuning
from luthier.tuning.vera import Vera

BEGINS_ELSEWHERE = ("prompt", "ptuning", "prefix")
COMPUTED_AGAIN = ("pissa", "pissa-exact", "pissa-saves", "olora", "ptuning-lstm")
"""What is saved are other numbers than those that were trained: sums, or what a network made in another order."""
UNITS = [
    [segment(4, 5, seed=1)],
    [segment(3, 6, seed=2, prefix=range(5, 35)), segment(2, 4, seed=3, prefix=range(5, 35))],
    [segment(1, 1, seed=4)],
]


def train(model, steps: int = 2) -> None:
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        batch = pack(UNITS)
        (-Policy(model)(batch).logp.mean()).backward()
        optimizer.step()


def test_every_tuning_of_the_shelf_has_a_case() -> None:
    assert {type(case) for case, _ in CASES.values()} == {cls for _, cls in TUNINGS.items()}


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith(BEGINS_ELSEWHERE)])
def test_neutral_at_the_start(tiny: Path, name: str) -> None:
    expected = logits(fresh(tiny))
    torch.testing.assert_close(logits(CASES[name][0].apply(fresh(tiny)).eval()), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_trains_exactly_what_it_says(tiny: Path, name: str) -> None:
    tuning, learns = CASES[name]
    model = tuning.apply(fresh(tiny)).train()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    train(model)  # with B = 0 the first step moves only B
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {n for n in before if learns(n)}
    assert moved


@pytest.mark.parametrize("name", CASES)
def test_what_is_saved_is_what_was_trained(tiny: Path, tmp_path: Path, name: str) -> None:
    model = stirred(name, tiny)
    expected = logits(model)
    save_trained(model, tmp_path, str(tiny))
    if not has_adapter(model):
        torch.testing.assert_close(logits(fresh(tmp_path)), expected, rtol=0, atol=0)
        return
    exact = {"rtol": 1e-4, "atol": 1e-5} if name in COMPUTED_AGAIN else {"rtol": 0, "atol": 0}
    torch.testing.assert_close(logits(load_adapter(fresh(tiny), tmp_path, trainable=False).eval()), expected, **exact)
    if name.startswith("bottleneck"):
        return
    # Plain peft opens it, and merges what can be merged.
    plain = PeftModel.from_pretrained(fresh(tiny), str(tmp_path)).eval()
    torch.testing.assert_close(logits(plain), expected, **exact)
    if CASES[name][0].mergeable:
        check_mergeable(tmp_path)
        torch.testing.assert_close(logits(plain.merge_and_unload()), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [name for name, (tuning, _) in CASES.items() if not tuning.mergeable])
def test_what_cannot_be_merged_says_what_to_do(tiny: Path, tmp_path: Path, name: str) -> None:
    save_trained(stirred(name, tiny), tmp_path, str(tiny))
    with pytest.raises(ModelError, match="cannot be merged: .*; set export_format: adapter"):
        check_mergeable(tmp_path)


@pytest.mark.parametrize("name", CASES)
def test_training_goes_on_as_if_it_had_not_stopped(tiny: Path, tmp_path: Path, name: str) -> None:
    through = CASES[name][0].apply(fresh(tiny)).train()
    train(through)
    save_trained(through, tmp_path, str(tiny))
    train(through)
    if has_adapter(through):
        again = load_adapter(fresh(tiny), tmp_path, trainable=True, resume=True).train()
    else:
        again = CASES[name][0].apply(fresh(tmp_path)).train()
    train(again)
    want = {n: p for n, p in through.named_parameters() if p.requires_grad}
    have = {n: p for n, p in again.named_parameters() if p.requires_grad}
    assert want.keys() == have.keys()
    for n in want:
        assert torch.equal(have[n], want[n]), n


@pytest.mark.parametrize("kernels", [True, False], ids=["kernels", "plain"])
@pytest.mark.parametrize("name", [name for name in CASES if name.startswith(BEGINS_ELSEWHERE)])
def test_packed_virtual_tokens_equal_peft_one_by_one(family_folder: Path, name: str, kernels: bool) -> None:
    """Logits and gradients of packed rows against the forward pass of peft itself, one sequence at a time."""
    models = []
    for attention in ("eager", FOREST if kernels else plain_attention(fresh(family_folder).config)):
        torch.manual_seed(3)
        model = fresh(family_folder, attention)
        model.name_or_path = str(family_folder)
        try:
            models.append(CASES[name][0].apply(model))
        except ConfigError as error:
            assert "latent attention" in str(error)
            return
    plain, packed = models
    if kernels:
        patch.install(packed)
    parts = []
    for one in (s for unit in UNITS for s in unit):
        ids = torch.tensor([one.tokens])
        out = plain(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -len(one.tokens) :].float()
        logp = torch.log_softmax(out[:-1], -1).gather(1, ids[0, 1:, None])[:, 0]
        parts.append(logp[torch.tensor(one.weight[1:]) > 0])
    want, have = torch.cat(parts), Policy(packed)(pack(UNITS)).logp
    torch.testing.assert_close(have, want, rtol=1e-4, atol=1e-5)
    weights = torch.linspace(-1, 1, len(want))
    gradients = [
        torch.autograd.grad((logp * weights).sum(), [p for p in m.parameters() if p.requires_grad])
        for m, logp in ((plain, want), (packed, have))
    ]
    for wanted, found in zip(*gradients, strict=True):
        torch.testing.assert_close(found, wanted, rtol=2e-3, atol=2e-5)


@pytest.mark.parametrize("name", [name for name, (tuning, _) in CASES.items() if not tuning.base_learns])
def test_switched_off_it_is_the_model_before(tiny: Path, name: str) -> None:
    """What a reference sees: the base, also where the adapter began as a part of the weights."""
    batch = pack(UNITS)
    with torch.no_grad():
        expected = Policy(fresh(tiny))(batch).logp
        model = stirred(name, tiny)
        moved = Policy(model)(batch).logp
        with exchanged(model, "start") if keep_start(model, "start") else switched_off(model):
            torch.testing.assert_close(Policy(model)(batch).logp, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(Policy(model)(batch).logp, moved)
    assert not torch.allclose(moved, expected)


@pytest.mark.parametrize("name", ["lora", "dora", "oft", "ia3", "vera", "bottleneck", "prompt", "prefix", "ptuning"])
def test_several_adapters_by_name(tiny: Path, tmp_path: Path, name: str) -> None:
    first, second = stirred(name, tiny), CASES[name][0].apply(fresh(tiny)).eval()
    expected = [logits(first), logits(second)]
    save_trained(first, tmp_path / "first", str(tiny))
    save_trained(second, tmp_path / "second", str(tiny))
    model = load_adapter(fresh(tiny), tmp_path / "first", trainable=False).eval()
    add_adapter(model, tmp_path / "second", "second")
    model.eval()
    assert set(adapter_names(model)) == {LEARNING, "second"}
    for at_work, want in ((LEARNING, expected[0]), ("second", expected[1]), (LEARNING, expected[0])):
        use_adapter(model, at_work)
        torch.testing.assert_close(logits(model), want, rtol=0, atol=0)
    with pytest.raises(ModelError, match="no adapter is called 'third'; there are: default, second"):
        use_adapter(model, "third")


def test_learning_rates_by_parameter() -> None:
    tuning = Lora(b_rate_ratio=16, embedding_rate=1e-6)
    names = {
        "base_model.model.model.layers.0.mlp.up_proj.lora_A.default.weight": 1e-4,
        "base_model.model.model.layers.0.mlp.up_proj.lora_B.default.weight": 16e-4,
        "base_model.model.model.embed_tokens.modules_to_save.default.weight": 1e-6,
        "base_model.model.lm_head.modules_to_save.default.weight": 1e-4,
    }
    assert {name: tuning.learning_rate(name, 1e-4) for name in names} == pytest.approx(names)


def test_a_tied_head_stays_tied_when_the_embedding_learns(tmp_path: Path) -> None:
    from helpers import make_folder

    folder = make_folder("llama_tied", tmp_path / "base")
    model = Lora(rank=2, modules_to_save=("embed_tokens",)).apply(fresh(folder)).train()
    train(model)
    learned = {n: p for n, p in model.named_parameters() if "modules_to_save" in n}
    assert len(learned) == 1
    save_trained(model.eval(), tmp_path / "out", str(folder))
    expected = logits(model)
    loaded = PeftModel.from_pretrained(fresh(folder), str(tmp_path / "out")).eval()
    torch.testing.assert_close(logits(loaded), expected, rtol=0, atol=0)
    torch.testing.assert_close(logits(loaded.merge_and_unload()), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("tuning", "message"),
    [
        (
            Lora(targets=("q_prj",)),
            "linear layer 'q_prj' is not in this model; did you mean 'q_proj'.* it has down_proj",
        ),
        (Lora(rank=33), "lora_rank 33 is above the size of"),
        (Lora(rank_pattern={"v_prj": 2}), "rank_pattern: target 'v_prj' is not in this model; did you mean 'v_proj'"),
        (Lora(rank_pattern={"v_proj": 99}), "rank_pattern 99 is above the size of v_proj"),
        (Lora(modules_to_save=("embed_token",)), "modules_to_save: module 'embed_token' .*did you mean 'embed_tokens'"),
        (Lora(experts=True), "this model is no mixture of experts"),
        (Lora(init="loftq"), "set quantization: nf4"),
        (Lora(init="pissa", dora=True), "both redefine the weight"),
        (Lora(init="olora", experts=True), "this model is no mixture of experts"),
        (Freeze(layers=3), "tuning.layers is 3; this model has 2 decoder layers"),
        (Freeze(layers=0), "tuning.layers is 0"),
        (Freeze(layers=1, modules=("mpl",)), "module 'mpl' is not in this model; did you mean 'mlp'"),
        (Freeze(layers=1, extra_modules=("nrm",)), "module 'nrm' is not in this model"),
        (Oft(block_size=7), "7 does not divide the 32 inputs of model.layers.0.self_attn.q_proj; .* is 4"),
        (Oft(block_size=0), "set block_size, or blocks"),
        (Ia3(targets=("k_prj",)), "linear layer 'k_prj' is not in this model; did you mean 'k_proj'"),
        (Vera(targets=("k_prj",)), "linear layer 'k_prj' is not in this model"),
        (Bottleneck(size=32), "size 32 is not below the hidden size of the model \\(32\\)"),
        (Prompt(tokens=512), "tuning.tokens is 512, but this model's context has 512 tokens"),
        (Prompt(init="text"), "init: text and a text belong together"),
        (Prefix(tokens=600), "tuning.tokens is 600"),
        (Prefix(tokens=9, hidden=4), "hidden is 4, below the 9 virtual tokens"),
        (Prefix(init="random", text="x"), "leave one of them out"),
    ],
)
def test_impossible_wishes_are_refused(tiny: Path, tuning, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tuning.apply(fresh(tiny))


def test_an_adapter_of_another_base_is_refused(tiny: Path, tmp_path: Path) -> None:
    from transformers import LlamaConfig

    facts = fresh(tiny).config.to_dict()
    for name, change, message in (
        ("wide", {"hidden_size": 64}, "model.layers.0.* has 32 (in|out)_features there, 64 here"),
        ("short", {"num_hidden_layers": 1}, "it tunes model.layers.1.*, which this model has not"),
    ):
        save_trained(Lora(rank=2).apply(fresh(tiny)), tmp_path / name, "org/first")
        other = AutoModelForCausalLM.from_config(LlamaConfig(**{**facts, **change}))
        with pytest.raises(ModelError, match=f"was made for org/first: .*{message}"):
            load_adapter(other, tmp_path / name, trainable=False)
    save_trained(Lora(rank=2, modules_to_save=("embed_tokens",)).apply(fresh(tiny)), tmp_path / "e", "org/first")
    with pytest.raises(ModelError, match="embed_tokens.weight is .320, 32. there, .336, 32. here; the vocabulary was"):
        load_adapter(
            AutoModelForCausalLM.from_config(LlamaConfig(**{**facts, "vocab_size": 336})),
            tmp_path / "e",
            trainable=False,
        )
    save_trained(Bottleneck(size=4).apply(fresh(tiny)), tmp_path / "b", "org/first")
    with pytest.raises(ModelError, match="was made for org/first, with 2 layers of 32 numbers; .* 2 layers of 64"):
        load_adapter(
            AutoModelForCausalLM.from_config(LlamaConfig(**{**facts, "hidden_size": 64})),
            tmp_path / "b",
            trainable=False,
        )
    save_trained(Prefix(tokens=4, hidden=8).apply(fresh(tiny)), tmp_path / "p", "org/first")
    with pytest.raises(
        ModelError, match="with 2 layers and 16 numbers a virtual token; this model has 1 layers and takes 16"
    ):
        load_adapter(
            AutoModelForCausalLM.from_config(LlamaConfig(**{**facts, "num_hidden_layers": 1})),
            tmp_path / "p",
            trainable=False,
        )


def test_a_network_that_was_not_kept_cannot_be_trained_on(tiny: Path, tmp_path: Path) -> None:
    """peft itself writes only what the network made."""
    PTuning(tokens=4, hidden=8).apply(fresh(tiny)).save_pretrained(tmp_path)
    load_adapter(fresh(tiny), tmp_path, trainable=False)
    with pytest.raises(ModelError, match="holds what its network made, but not the network"):
        load_adapter(fresh(tiny), tmp_path, trainable=True)


def test_all_means_every_linear_layer_but_the_head(tiny: Path) -> None:
    model = Lora(rank=2).apply(fresh(tiny))
    linear = {n for n, m in fresh(tiny).named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"}
    tuned = {n.removeprefix("base_model.model.") for n, m in model.named_modules() if hasattr(m, "lora_A")}
    assert tuned == linear


@pytest.mark.parametrize("name", ["bottleneck", "bottleneck-pfeiffer"])
def test_the_reader_in_the_documentation_reads_bottlenecks(tiny: Path, tmp_path: Path, name: str) -> None:
    """docs/formats.md gives other programs a reader; it is the one that is run here."""
    text = (Path(__file__).parents[2] / "docs/formats.md").read_text(encoding="utf-8")
    scope: dict = {}
    exec(text.partition("```python\n")[2].partition("```")[0], scope)
    model = stirred(name, tiny)
    save_trained(model, tmp_path, str(tiny))
    plain = fresh(tiny)
    scope["put_on"](plain.model.layers, tmp_path, {"attention": "self_attn", "mlp": "mlp"})
    torch.testing.assert_close(logits(plain), logits(model), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(logits(plain), logits(fresh(tiny)))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_starts_from_weights_give_them_back(tmp_path: Path, family: str, init: str) -> None:
    """The model is the same at the start, also where weights are stored transposed, and the parts are principal."""
    from helpers import make_folder

    folder = make_folder(family, tmp_path / "base")
    model = Lora(rank=3, init=init, pissa_iterations=0).apply(fresh(folder)).eval()
    torch.testing.assert_close(logits(model), logits(fresh(folder)), rtol=1e-4, atol=1e-5)
    _, layer = next(iter(starts.lora_layers(model)))
    rest = starts.weight_below(layer)
    low = layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    whole = rest + low.detach()
    if init == "pissa":
        assert torch.linalg.norm(rest) == pytest.approx(float(torch.linalg.svdvals(whole)[3:].norm()), rel=1e-4)
    else:
        assert (
            float(layer.lora_B["default"].weight.T.mm(layer.lora_B["default"].weight).diag().sub(1).abs().max()) < 1e-4
        )


def test_starts_from_weights_leave_experts_alone(tmp_path: Path) -> None:
    from helpers import make_folder

    folder = make_folder("qwen3_moe", tmp_path / "base")
    with pytest.raises(ConfigError, match="init: pissa reads linear layers only, and experts are none"):
        Lora(rank=2, init="pissa", experts=True).apply(fresh(folder))


@pytest.mark.parametrize("tuning", [Lora(rank=4, dora=True), Lora(rank=4, rslora=True, modules_to_save=("norm",))])
def test_relatives_of_lora_on_a_quantized_base(tiny: Path, tmp_path: Path, tuning) -> None:
    from luthier.models.quantized import quantize

    def narrow():
        model = fresh(tiny)
        quantize(model, "nf4", double=True, dtype=torch.float32)
        return model

    model = tuning.apply(narrow())
    torch.testing.assert_close(logits(model.eval()), logits(narrow()), rtol=1e-5, atol=1e-5)
    train(model.train())
    save_trained(model.eval(), tmp_path, str(tiny))
    torch.testing.assert_close(logits(load_adapter(narrow(), tmp_path, trainable=False).eval()), logits(model))
    assert not torch.allclose(logits(model), logits(narrow()))


def test_loftq_makes_good_what_quantization_lost(tiny: Path, tmp_path: Path) -> None:
    """The quantized model with its start is nearer to the whole one, and the adapter is an ordinary one on it."""
    from luthier.models.quantized import quantize

    def narrow():
        model = fresh(tiny)
        quantize(model, "nf4", double=True, dtype=torch.float32)
        return model

    model = Lora(rank=16, init="loftq").apply(narrow()).eval()
    whole, base = logits(fresh(tiny)), logits(narrow())
    assert float((logits(model) - whole).norm()) < 0.5 * float((base - whole).norm())
    save_trained(model, tmp_path, str(tiny))
    torch.testing.assert_close(logits(load_adapter(narrow(), tmp_path, trainable=False).eval()), logits(model))
    with pytest.raises(ConfigError, match="quantization would round away; use init: loftq"):
        Lora(rank=4, init="pissa").apply(narrow())
