"""Every optimizer of ours against its update written out, and stopping and going on in the middle of everything."""

from pathlib import Path

import pytest
import torch
from helpers import losses, stop_after
from torch import nn

from luthier.config.load import load_config
from luthier.config.training import TrainConfig
from luthier.core.errors import ConfigError, Interrupted
from luthier.training.optim import learning_parameters, make_optimizer
from luthier.training.optimizers import RULES, BlockAdam, Order, Ruled
from luthier.workflows.train import train

BETAS, EPS, RATE = (0.8, 0.9), 1e-8, 0.1
ADAM = {"betas": BETAS, "eps": EPS, "lr": RATE, "weight_decay": 0.0}


def gradients(rows: int, columns: int, steps: int = 4) -> list[torch.Tensor]:
    torch.manual_seed(3)
    return [torch.randn(rows, columns, dtype=torch.float64) * (1 + step) for step in range(steps)]


def updates(grads: list[torch.Tensor], facts: dict | None = None, **group) -> list[torch.Tensor]:
    """What `Ruled` takes from a matrix at each step, over the learning rate."""
    parameter = nn.Parameter(torch.zeros_like(grads[0]))
    optimizer = Ruled([{"params": [parameter], **ADAM, **group}], {parameter: facts or {}})
    seen = []
    for grad in grads:
        before, parameter.grad = parameter.detach().clone(), grad.clone()
        optimizer.step()
        seen.append((before - parameter.detach()) / RATE)
    return seen


def adam_by_hand(grads: list[torch.Tensor], mean=lambda square: square, eps: float = EPS) -> list[torch.Tensor]:
    first = second = torch.zeros(())
    seen = []
    for step, grad in enumerate(grads, 1):
        first = BETAS[0] * first + (1 - BETAS[0]) * grad
        second = BETAS[1] * second + (1 - BETAS[1]) * mean(grad**2)
        seen.append(first / (1 - BETAS[0] ** step) / ((second / (1 - BETAS[1] ** step)).sqrt() + eps))
    return seen


def assert_same(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_adam_is_that_of_torch() -> None:
    grads, theirs = gradients(4, 6), nn.Parameter(torch.zeros(4, 6, dtype=torch.float64))
    optimizer = torch.optim.AdamW([theirs], lr=RATE, betas=BETAS, eps=EPS, weight_decay=0.0)
    for grad in grads:
        theirs.grad = grad.clone()
        optimizer.step()
    torch.testing.assert_close(-RATE * sum(updates(grads, rule="adam")), theirs.detach())


@pytest.mark.parametrize(("shape", "projection", "left"), [
    ((4, 6), "std", True), ((6, 4), "std", False), ((4, 6), "reverse_std", False), ((4, 6), "right", False), ((6, 4), "left", True),
])  # fmt: skip
def test_galore_by_hand(shape: tuple[int, int], projection: str, left: bool) -> None:
    """Adam on P'G in the main directions P of the first gradient, and of the third, times the scale."""
    grads, expected, small, basis = gradients(*shape), [], [], None
    for step, grad in enumerate(grads):
        if step % 2 == 0:
            u, _, vh = torch.linalg.svd(grad)
            basis = u[:, :2] if left else vh[:2].T
        small.append(basis.T @ grad if left else grad @ basis)
        update = adam_by_hand(small)[-1]
        expected.append(0.25 * (basis @ update if left else update @ basis.T))
    facts = {"rank": 2, "interval": 2, "scale": 0.25, "projection": projection}
    # Singular values are found in float32.
    for one, other in zip(updates(grads, rule="galore", **facts), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_galore_of_full_rank_is_adam_of_a_rotated_gradient() -> None:
    grads = gradients(3, 5)
    u, _, vh = torch.linalg.svd(grads[0], full_matrices=False)
    # The first rotated gradient is diagonal but for rounding, which a small eps would blow up.
    expected = [2.0 * u @ update @ vh for update in adam_by_hand([u.T @ grad @ vh.T for grad in grads], eps=0.1)]
    ours = updates(grads, rule="galore", rank=3, interval=100, scale=2.0, projection="full", eps=0.1)
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("shape", [(4, 6), (6, 4)])
@pytest.mark.parametrize("per", ["channel", "tensor"])
def test_apollo_by_hand(shape: tuple[int, int], per: str) -> None:
    """Each channel of the gradient at the rate |Adam(PG)| / |PG|, growing by 1 % a step at most."""
    grads = gradients(*shape)
    left, wide = shape[0] < shape[1], 4
    small, expected, norm = [], [], None
    for step, grad in enumerate(grads):
        generator = torch.Generator().manual_seed(1_000_003 * 0 + step // 3)
        drawn = (torch.randn(2, wide, generator=generator) / 2**0.5).double()
        small.append(drawn @ grad if left else grad @ drawn.T)
        update, along = adam_by_hand(small)[-1], 0 if left else 1
        if per == "channel":
            rate = update.norm(dim=along, keepdim=True) / small[-1].norm(dim=along, keepdim=True)
        else:
            rate = update.norm() / small[-1].norm()
        scaled = grad * rate * 32.0**0.5
        if norm is not None and scaled.norm() > 1.01 * norm:
            scaled = scaled * (1.01 * norm / scaled.norm())
        norm = scaled.norm()
        expected.append(scaled)
    facts = {"rank": 2, "interval": 3, "scale": 32.0, "projection": "std", "per": per, "drawn": True}
    assert_same(updates(grads, rule="apollo", **facts), expected)


def test_apollo_of_zeros_is_zero() -> None:
    facts = {"rank": 2, "interval": 3, "scale": 32.0, "projection": "std", "per": "channel", "drawn": False}
    for update in updates([torch.zeros(4, 6)] * 3, rule="apollo", **facts):
        assert torch.equal(update, torch.zeros(4, 6))


def test_adam_mini_by_hand() -> None:
    """One second moment for two rows each; for columns where a layer lies transposed."""
    grads = gradients(4, 6)
    expected = adam_by_hand(grads, lambda g2: g2.view(2, 12).mean(1).repeat_interleave(2)[:, None])
    assert_same(updates(grads, {"blocks": 2}, rule="adam_mini"), expected)
    expected = adam_by_hand(grads, lambda g2: g2.mean(0, keepdim=True))
    assert_same(updates(grads, {"blocks": 6, "transposed": True}, rule="adam_mini"), expected)


def test_muon_is_that_of_torch() -> None:
    for shape in ((4, 6), (6, 4)):
        grads, theirs = [g.float() for g in gradients(*shape)], nn.Parameter(torch.zeros(shape))
        optimizer = torch.optim.Muon([theirs], lr=RATE, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
        for grad in grads:
            theirs.grad = grad.clone()
            optimizer.step()
        torch.testing.assert_close(-RATE * sum(updates(grads, rule="muon")), theirs.detach())


def test_badam_is_adam_on_one_block_at_a_time() -> None:
    blocks = [[nn.Parameter(torch.zeros(2, 3, dtype=torch.float64))] for _ in range(3)]
    every = [p for block in blocks for p in block]
    optimizer = BlockAdam([{"params": every, "rule": "adam", **ADAM}], blocks, Order("ascending", 3, 1, 0), 2)
    grads = gradients(2, 3, steps=8)
    learned = []
    for grad in grads:
        (now,) = [p for p in every if p.requires_grad]
        learned.append(next(i for i, p in enumerate(every) if p is now))
        now.grad = grad.clone()
        optimizer.step()
        optimizer.zero_grad()
        assert all("exp_avg" not in optimizer.state[p] for p in every if not p.requires_grad)
    assert learned == [1, 1, 2, 2, 0, 0, 1, 1]
    both = sum(adam_by_hand(grads[:2])) + sum(adam_by_hand(grads[6:]))  # state does not survive the other blocks
    torch.testing.assert_close(every[1].detach(), -RATE * both)


@pytest.mark.parametrize("scattered", [False, True])
def test_badam_on_a_share_of_every_parameter_by_hand(scattered: bool) -> None:
    """Half of 110 entries learn for two steps, then the other half, with a fresh state; at last the first again."""
    grads = gradients(10, 11, steps=6)
    order = torch.randperm(110, generator=torch.Generator().manual_seed(0)) if scattered else torch.arange(110)
    expected = []
    for turn, half in enumerate((order[:55], order[55:], order[:55])):
        own = [grad.view(-1)[half] for grad in grads[2 * turn : 2 * turn + 2]]
        for update in adam_by_hand(own):
            expected.append(torch.zeros(110, dtype=torch.float64))
            expected[-1][half] = update
    facts = {"interval": 2, "share": 0.5, "scattered": scattered}
    found = updates(grads, rule="adam_on_part", **facts)
    assert_same(found, [each.view(10, 11) for each in expected])


def test_shares_go_round_and_small_parameters_learn_whole() -> None:
    """40 of 120 entries and then 40 more, three turns; a share of 0.7 begins again at the front; 24 entries are few."""
    ones = [torch.ones(10, 12)] * 4
    for share, expected in ((1 / 3, [40, 40, 40, 40]), (0.7, [84, 84, 84, 84])):
        seen = [update != 0 for update in updates(ones, rule="adam_on_part", interval=1, share=share, scattered=False)]
        assert [int(each.sum()) for each in seen] == expected
        assert (seen[0] | seen[1] | seen[2]).all()
    assert bool(seen[1].view(-1)[0])
    (whole,) = updates([torch.ones(4, 6)], rule="adam_on_part", interval=-1, share=0.1, scattered=True)
    assert (whole != 0).all()


def test_orders() -> None:
    assert [Order("descending", 3, None, 0)(turn) for turn in range(4)] == [2, 1, 0, 2]
    assert [Order("fixed", 3, 2, 0)(turn) for turn in range(3)] == [2, 2, 2]
    drawn = [Order("random", 4, None, 7)(turn) for turn in range(8)]
    assert sorted(drawn[:4]) == sorted(drawn[4:]) == [0, 1, 2, 3]
    assert drawn == [Order("random", 4, None, 7)(turn) for turn in range(8)]


def test_who_has_which_rule(tiny) -> None:
    """Projections for linear layers, blocks of heads for queries and keys, and Muon for neither embedding nor head."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny)
    parameters = learning_parameters(model)
    names = {p: name for name, p in parameters.items()}

    def rules(optim: str, **more) -> dict[str, str]:
        optimizer = make_optimizer(TrainConfig(optim=optim, **more), parameters, model=model)
        return {names[p]: group["rule"] for group in optimizer.param_groups for p in group["params"]}

    galore = {name for name, rule in rules("galore_adamw").items() if rule == "galore"}
    assert len(galore) == 2 * 7
    assert {name.split(".")[-2] for name in galore} == {
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    }
    assert {
        n.split(".")[-2] for n, rule in rules("apollo_adamw", apollo_target=("o_proj",)).items() if rule == "apollo"
    } == {"o_proj"}
    for part in ("mlp", "self_attn"):
        found = {n for n, rule in rules("galore_adamw", galore_target=(part,)).items() if rule == "galore"}
        assert found == {n for n in galore if f".{part}." in n} != set()
    assert {name for name, rule in rules("muon").items() if rule == "muon"} == galore
    mini = make_optimizer(TrainConfig(optim="adam_mini"), parameters, model=model)
    blocks = {names[p].removeprefix("model.layers.0."): facts["blocks"] for p, facts in mini._facts.items()}
    assert blocks["self_attn.q_proj.weight"] == 4
    assert blocks["self_attn.k_proj.weight"] == 2
    assert blocks["self_attn.v_proj.weight"] == 16
    assert blocks["mlp.down_proj.weight"] == 32
    assert blocks["model.embed_tokens.weight"] == 320
    with pytest.raises(ConfigError, match=r"galore_target: linear layer 'q_prj' is not in this model"):
        rules("galore_adamw", galore_target=("q_prj",))
    in_parts = TrainConfig(optim="badam", badam_mode="ratio", weight_decay=0.1)
    optimizer = make_optimizer(in_parts, parameters, model=model)
    assert {group["rule"] for group in optimizer.param_groups} == {"adam_on_part"}
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0}
    still = {name for name, p in parameters.items() if not p.requires_grad}
    assert still == {"model.embed_tokens.weight", "lm_head.weight"}
    model.requires_grad_(True)
    with pytest.raises(ConfigError, match="badam_start_block is 9, but 2 layers learn"):
        rules("badam", badam_start_block=9)


FULL = {"finetuning_type": "full"}


@pytest.mark.parametrize("more", [
    {"use_galore": True, "galore_rank": 4, "galore_update_interval": 2, **FULL},
    {"use_apollo": True, "apollo_rank": 4, "apollo_update_interval": 2, **FULL},
    {"use_badam": True, "badam_switch_interval": 2, "badam_switch_mode": "random", **FULL},
    {"use_badam": True, "badam_mode": "ratio", "badam_switch_interval": 2, "badam_mask_mode": "scatter", **FULL},
    {"use_adam_mini": True, **FULL},
    {"use_muon": True, **FULL},
    {"optim": "lion_8bit", "lora_rank": 4},
    {"optim": "ademamix_8bit", "lora_rank": 4},
    {"optim": "lion_32bit", "lora_rank": 4},
], ids=lambda more: more.get("optim") or more.get("badam_mode") or next(iter(more)))  # fmt: skip
def test_stop_and_go_on_is_bit_identical(tiny: Path, rows: Path, tmp_path: Path, monkeypatch, more: dict) -> None:
    """Also between two projections and in the middle of a block."""

    def settings(run: Path, **also):
        fixed = {"learning_rate": 1e-3, "max_steps": 5, "per_device_train_batch_size": 4, "cutoff_len": 128,
                 "plot_loss": False, "dtype": "float32", "threads": 1, "save_steps": 1}  # fmt: skip
        where = {"model_name_or_path": str(tiny), "dataset": str(rows), "output_dir": str(run)}
        return load_config({**fixed, **where, **more, **also}).config

    train(settings(tmp_path / "whole"), quiet=True)
    expected = losses(tmp_path / "whole")
    assert len(set(expected.values())) == 5
    for stop in (2, 3):
        run = tmp_path / f"stopped-{stop}"
        with monkeypatch.context() as patch:
            stop_after(patch, stop)
            with pytest.raises(Interrupted):
                train(settings(run), quiet=True)
        train(settings(run, resume="must"), quiet=True)
        assert losses(run) == expected


def test_every_rule_is_tested() -> None:
    assert set(RULES) == {"adam", "adam_on_part", "adam_mini", "galore", "apollo", "muon"}
