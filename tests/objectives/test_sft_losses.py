"""Losses of supervised rows by hand, what they read of a head against logits written out, and runs with them."""

import math
from pathlib import Path

import pytest
import torch
from answers import CHOSEN, REJECTED, batch_of, means
from helpers import losses, segment, stop_after
from torch import nn

from luthier.config.load import load_config
from luthier.core.batch import Scores
from luthier.core.errors import ConfigError, Interrupted
from luthier.data.pack import pack
from luthier.models.distribution import Head, read_distribution
from luthier.models.policy import Policy
from luthier.objectives.dpo import Dpo
from luthier.objectives.sft import Sft
from luthier.runs.store import read_events
from luthier.workflows.train import train

P = torch.tensor([0.5, 0.25, 0.1], dtype=torch.float64)


def scores(**more: list[float]) -> Scores:
    return Scores(logp=P.log().requires_grad_(), **{k: torch.tensor(v, dtype=torch.float64) for k, v in more.items()})


def batch():
    return batch_of((-1.0, -1.0, 3))[1]


NLL = -(math.log(0.5) + math.log(0.25) + math.log(0.1))
DFT = -(0.5 * math.log(0.5) + 0.25 * math.log(0.25) + 0.1 * math.log(0.1))


@pytest.mark.parametrize(("objective", "more", "expected"), [
    (Sft(), {}, NLL),
    (Sft(label_smoothing_factor=0.1), {"mean_logp": [-4.0, -5.0, -6.0]}, 0.9 * NLL + 0.1 * 15),
    (Sft(token_loss="dft"), {}, DFT),
    (Sft(token_loss="asft", asft_alpha=0.5), {"divergence": [0.0, 0.2, 0.4]}, DFT + 0.5 * 0.6),
    (Sft(token_loss="eaft"), {"top_entropy": [3.0, 1.5, 0.0]}, -math.log(0.5) - 0.5 * math.log(0.25)),
    (Sft(token_loss="eaft", eaft_alpha=2.0), {"top_entropy": [3.0, 1.5, 0.0]}, -math.log(0.5) - 0.25 * math.log(0.25)),
], ids=str)  # fmt: skip
def test_loss_by_hand(objective: Sft, more: dict, expected: float) -> None:
    assert objective(scores(**more), batch()).total.item() == pytest.approx(expected, abs=1e-12)


def test_weights_of_tokens_have_no_gradient() -> None:
    """d/d log p is -p of dft, and -(H / 3) of eaft; through the weight it would be more."""
    for objective, more, expected in (
        (Sft(token_loss="dft"), {}, [-0.5, -0.25, -0.1]),
        (Sft(token_loss="eaft"), {"top_entropy": [3.0, 1.5, 0.0]}, [-1.0, -0.5, 0.0]),
    ):
        given = scores(**more)
        objective(given, batch()).total.backward()
        assert given.logp.grad.tolist() == pytest.approx(expected)


def test_beside_the_loss_stands_the_likelihood() -> None:
    loss = Sft(token_loss="asft")(scores(divergence=[0.0, 0.2, 0.4]), batch())
    assert means(loss) == pytest.approx({"nll": NLL / 3, "kl": 0.2})


def test_smoothing_goes_with_the_likelihood_only() -> None:
    with pytest.raises(
        ConfigError, match=r"label_smoothing_factor is for plain log-likelihood, not for dft \(use_dft_loss\)"
    ):
        load_config({"model_name_or_path": "m", "use_dft_loss": True, "label_smoothing_factor": 0.1})
    with pytest.raises(ConfigError, match="use_eaft_loss and use_dft_loss .* both set objective.token_loss"):
        load_config({"model_name_or_path": "m", "use_dft_loss": True, "use_eaft_loss": True})
    with pytest.raises(ConfigError, match="use_asft_loss compares whole distributions"):
        load_config({"model_name_or_path": "m", "use_asft_loss": True, "precompute_reference": True})


# ---- what is read of a head


def head_of(softcap: float | None, seed: int = 0) -> Head:
    torch.manual_seed(seed)
    return Head(nn.Linear(6, 30, dtype=torch.float64), scale=2.0, softcap=softcap)


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_reads_of_a_distribution_written_out(softcap: float | None) -> None:
    head, other, targets = head_of(softcap), head_of(softcap, 1), torch.tensor([3, 29, 0, 7, 7])
    hidden, theirs = torch.randn(5, 6, dtype=torch.float64), torch.randn(5, 6, dtype=torch.float64)
    reads = frozenset({"logp", "entropy", "mean_logp", "top_entropy", "divergence", "correct"})
    found = read_distribution(head, hidden, targets, reads, rows=2, other=(other, theirs))

    def logits(head: Head, hidden: torch.Tensor) -> torch.Tensor:
        z = 2.0 * (hidden @ head.module.weight.T + head.module.bias)
        return z if softcap is None else softcap * (z / softcap).tanh()

    p, q = logits(head, hidden).softmax(-1), logits(other, theirs).softmax(-1)
    top = p.sort(-1, descending=True).values[:, :20]
    top = top / top.sum(-1, keepdim=True)
    expected = {
        "logp": p[range(5), targets].log(),
        "entropy": -(p * p.log()).sum(-1),
        "mean_logp": p.log().sum(-1) / 30,
        "top_entropy": -(top * top.log()).sum(-1),
        "divergence": (q * (q / p).log()).sum(-1),
        "correct": (p.max(-1).indices == targets).float(),
    }
    for name, value in expected.items():
        torch.testing.assert_close(
            getattr(found, name).double(), value.double(), msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("objective", [
    Sft(label_smoothing_factor=0.2), Sft(token_loss="asft", asft_alpha=0.7)], ids=["smoothing", "asft"])  # fmt: skip
def test_gradients_are_those_of_finite_differences(objective: Sft) -> None:
    """By hidden states and by the head; dft inside asft holds its weight still, so its KL alone is differentiated."""
    head, other, targets = head_of(3.0), head_of(3.0, 1), torch.tensor([3, 29, 0])
    hidden = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    theirs = torch.randn(3, 6, dtype=torch.float64)

    def total(hidden: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        found = read_distribution(head, hidden, targets, objective.reads, rows=2, other=(other, theirs))
        return found.divergence.sum() if found.divergence is not None else objective(found, batch()).total

    assert torch.autograd.gradcheck(total, (hidden, head.module.weight, head.module.bias))
    assert other.module.weight.grad is None


def test_the_loss_of_a_model_is_that_of_its_logits(tiny: Path) -> None:
    """Packed rows with a shared beginning, against each row alone through transformers."""
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(tiny)
    units = [[segment(3, 4, seed=i, prefix=range(20))] for i in range(3)]
    packed, policy = pack(units), Policy(plain)
    for objective in (Sft(label_smoothing_factor=0.2), Sft(token_loss="eaft")):
        ours = objective(policy(packed, reads=objective.reads), packed).total
        theirs = 0.0
        for (each,) in units:
            row = plain(torch.tensor([each.tokens])).logits[0, -5:-1].log_softmax(-1)
            target = torch.tensor(each.tokens[-4:])
            nll = -row.gather(1, target[:, None])[:, 0]
            top = row.topk(20).values.log_softmax(-1)
            loss = (
                0.8 * nll - 0.2 * row.mean(-1)
                if objective.token_loss == "nll"
                else nll * -(top.exp() * top).sum(-1) / 3
            )
            theirs += loss.sum()
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


# ---- preferences


def test_tokens_beyond_the_shorter_answer_by_hand() -> None:
    """Of 5 rejected tokens the last weighs a half: -14 / 5 - -13 / 5 = -0.2 a token, so the ratio is -0.9 and not -1."""
    loss = Dpo(ld_alpha=0.5)(*batch_of(CHOSEN, REJECTED))
    margin = 0.1 * (2 - -0.9)
    assert float(loss.total) == pytest.approx(math.log1p(math.exp(-margin)), abs=1e-9)
    assert float(Dpo(ld_alpha=1.0)(*batch_of(CHOSEN, REJECTED)).total) == pytest.approx(0.554355, abs=1e-6)
    both = Dpo(ld_alpha=0.0)(*batch_of(REJECTED, CHOSEN, CHOSEN, REJECTED))
    assert means(both)["rewards/margins"] == pytest.approx(0.0, abs=1e-12)


# ---- runs


@pytest.mark.parametrize("more", [
    {"use_dft_loss": True},
    {"use_asft_loss": True},
    {"use_asft_loss": True, "finetuning_type": "full", "packing": True},
    {"use_asft_loss": True, "additional_target": "lm_head"},
    {"use_eaft_loss": True, "packing": True},
    {"label_smoothing_factor": 0.1},
], ids=lambda more: "-".join(map(str, more)))  # fmt: skip
def test_runs_stop_and_go_on_bit_identically(tiny: Path, rows: Path, tmp_path: Path, monkeypatch, more: dict) -> None:
    def settings(run: Path, **also):
        fixed = {"learning_rate": 1e-2, "max_steps": 4, "per_device_train_batch_size": 4, "cutoff_len": 128, "save_steps": 1,
                 "val_size": 4, "eval_steps": 2, "plot_loss": False, "dtype": "float32", "threads": 1}  # fmt: skip
        where = {"model_name_or_path": str(tiny), "dataset": str(rows), "output_dir": str(run)}
        return load_config({**fixed, **where, **more, **also}).config

    train(settings(tmp_path / "whole"), quiet=True)
    expected = losses(tmp_path / "whole")
    events = read_events(tmp_path / "whole", "train")
    if "use_asft_loss" in more:
        assert events[0]["kl"] == pytest.approx(0.0, abs=1e-6)
        assert events[-1]["kl"] > 1e-5
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(Interrupted):
            train(settings(tmp_path / "run"), quiet=True)
    train(settings(tmp_path / "run", resume="must"), quiet=True)
    assert losses(tmp_path / "run") == expected
