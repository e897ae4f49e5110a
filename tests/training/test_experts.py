"""Mixtures of experts: the load-balancing loss, its metrics, and who has none."""

from pathlib import Path

import pytest
import torch
from helpers import TINY_CONFIGS, make_folder, segment
from transformers import AutoModelForCausalLM

from luthier.config.load import load_config
from luthier.core.anatomy import family_of, routers_of
from luthier.core.errors import ConfigError
from luthier.data.pack import pack
from luthier.models.patch import FOREST, register_attention
from luthier.models.policy import Policy
from luthier.models.routing import Routes, check_balance, watched
from luthier.runs.store import read_events
from luthier.tuning.full import Full
from luthier.workflows.train import train

BALANCED = sorted({name for name, make in TINY_CONFIGS.items() if family_of(make().model_type).balance_loss})
ROUTED = sorted({name for name, make in TINY_CONFIGS.items() if family_of(make().model_type).router})
UNITS = [[segment(4, 5, seed=1)], [segment(9, 6, seed=2)], [segment(3, 3, seed=3)]]


def model_of(name: str, **options):
    register_attention()
    torch.manual_seed(2)
    options = {"attn_implementation": FOREST, **options}
    return Full().apply(AutoModelForCausalLM.from_config(TINY_CONFIGS[name](), **options).float())


@pytest.mark.parametrize("name", BALANCED)
def test_the_loss_is_that_of_transformers(name: str) -> None:
    """One sequence: value and gradients of the model's own loss."""
    model, own = model_of(name).eval(), model_of(name, attn_implementation="eager").eval()
    batch = pack([[segment(4, 9, seed=1)]])
    want = own(batch.input_ids[None], output_router_logits=True, use_cache=False).aux_loss
    have = Policy(model, balance=True)(batch)
    assert have.balance is not None
    torch.testing.assert_close(have.balance, want)
    wanted, found = (
        torch.stack([p.grad.norm() for p in routers(m, loss)]) for m, loss in ((own, want), (model, have.balance))
    )
    assert (found > 0).all()
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-6)


def routers(model, loss):
    loss.backward()
    return [p for router in routers_of(model) for p in router.parameters()]


@pytest.mark.parametrize("name", BALANCED)
def test_recomputed_layers_have_the_same_loss(name: str) -> None:
    model = model_of(name).train()
    if name == "phimoe":
        model.eval()  # its router draws noise in training
    batch, grads = pack(UNITS), []
    for recompute in (False, True):
        if recompute:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.zero_grad()
        grads.append(torch.cat([p.grad.flatten() for p in routers(model, Policy(model, balance=True)(batch).balance)]))
    torch.testing.assert_close(grads[0], grads[1])


def test_the_busiest_expert() -> None:
    even = Routes([torch.zeros(4, 4)], [torch.tensor([[0, 1], [2, 3], [0, 1], [2, 3]])])
    assert float(even.busiest()) == 1.0
    one = Routes([torch.zeros(4, 4)] * 2, [torch.tensor([[0, 1]] * 4), torch.tensor([[0, 1], [2, 3]] * 2)])
    assert float(one.busiest()) == pytest.approx((2.0 + 1.0) / 2)


@pytest.mark.parametrize("name", sorted(set(TINY_CONFIGS) - set(BALANCED)))
def test_who_has_no_such_loss_says_why(name: str) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(TINY_CONFIGS[name]())
    with pytest.raises(ConfigError, match="balanced otherwise" if name in ROUTED else "it has no experts"):
        check_balance(model)


def test_routers_are_watched_inside_the_block_only() -> None:
    model = model_of("mixtral")
    with watched(model) as routes:
        Policy(model)(pack(UNITS))
    Policy(model)(pack(UNITS))
    assert len(routes.logits_TE) == 2
    assert Policy(model)(pack(UNITS)).balance is None


@pytest.mark.parametrize("tuning", [{"finetuning_type": "lora", "lora_rank": 4}, {"finetuning_type": "full"}])
def test_a_run_says_how_experts_are_used(rows: Path, tmp_path: Path, tuning: dict) -> None:
    folder = make_folder("qwen3_moe", tmp_path / "model")
    found = {}
    for coefficient in (0.0, 5.0):
        run = tmp_path / f"run{coefficient}"
        settings = {
            "model_name_or_path": str(folder), "dataset": str(rows), "output_dir": str(run), "max_steps": 6,
            "learning_rate": 5e-3, "moe_aux_loss_coef": coefficient, **tuning,
        }  # fmt: skip
        train(load_config(settings).config, quiet=True)
        found[coefficient] = read_events(run, "train")
    assert "moe_aux_loss" not in found[0.0][0]
    assert all(1.0 <= event["expert_load_max"] <= 4.0 for event in found[5.0])
    assert found[5.0][0]["loss"] == found[0.0][0]["loss"], "the loss that is shown is that of the objective"
    assert found[5.0][-1]["loss"] != found[0.0][-1]["loss"]
    assert found[5.0][0]["moe_aux_loss"] >= 1.9


def test_learning_from_it_evens_the_experts_out() -> None:
    model = model_of("qwen3_moe")
    weights = [p for router in routers_of(model) for p in router.parameters()]
    with torch.no_grad():
        for weight in weights:
            weight.mul_(20)
    optimizer, policy, seen = torch.optim.SGD(weights, lr=0.1), Policy(model, balance=True), []
    for _ in range(30):
        scores = policy(pack(UNITS))
        seen.append((float(scores.balance), float(scores.metrics["expert_load_max"])))
        optimizer.zero_grad()
        scores.balance.backward()
        optimizer.step()
    assert seen[-1][0] < seen[0][0] - 0.01
    assert seen[-1][1] <= seen[0][1]
