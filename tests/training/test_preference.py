"""A pair is computed as a tree, and compared with a reference that does not move."""

import json
from pathlib import Path

import pytest
import torch
from helpers import Jobs, byte_tokenizer, losses, segment, stop_after

from luthier.config.load import load_config
from luthier.config.schema import ModelConfig
from luthier.core.errors import Interrupted, ModelError
from luthier.core.registry import TUNINGS
from luthier.data.pack import pack
from luthier.models.device import place
from luthier.models.load import load_adapter, load_model, put_kernels, resolve
from luthier.models.policy import Policy
from luthier.models.reference import with_first_adapter, without_adapter
from luthier.objectives.dpo import Dpo
from luthier.runs.store import read_events
from luthier.training.window import mean_log_ratio, with_same
from luthier.workflows.train import train


def load(folder: Path, *, kernels: str = "auto"):
    config = ModelConfig(model_name_or_path=str(folder), dtype="float32", kernels=kernels)
    return load_model(resolve(str(folder)), config, place(config)), config


def settings(tiny: Path, pairs: Path, run: Path, **more):
    base = {"model_name_or_path": str(tiny), "dataset": str(pairs), "output_dir": str(run), "stage": "dpo", "lora_rank": 4,
            "learning_rate": 1e-2, "max_steps": 4, "per_device_train_batch_size": 8, "dtype": "float32", "plot_loss": False,
            "cutoff_len": 128, "lr_scheduler_type": "constant", "threads": 1}  # fmt: skip
    return load_config({**base, **more}).config


def events(run: Path, name: str) -> list[float]:
    return [event[name] for event in read_events(run, "train")]


def units() -> list:
    prefixes = [[i + 3 * k for i in range(40)] for k in range(3)]
    return [
        [segment(2, 5 + 2 * k, seed=10 * k, prefix=p), segment(2, 9 - k, seed=10 * k + 1, prefix=p)]
        for k, p in enumerate(prefixes)
    ]


@pytest.mark.parametrize("bco_weight", [0.0, 0.7])
def test_tree_equals_both_sequences_apart(tiny: Path, bco_weight: float) -> None:
    """Loss and gradients of the packed tree against plain transformers, one sequence at a time."""
    rows = units()
    ours, config = load(tiny)
    put_kernels(ours, config)
    ours.requires_grad_(True)
    batch = pack(rows)
    assert len(batch.spans) == 9
    torch.manual_seed(2)
    ref_logp = -3 * torch.rand(len(batch.targets))
    here = batch.with_stream("ref_logp", ref_logp)
    (here,) = with_same([here], "center", mean_log_ratio(Policy(ours), [here], lambda x: x))
    loss = Dpo(bco_weight=bco_weight)(Policy(ours)(here), here).total
    loss.backward()

    plain, _ = load(tiny, kernels="off")
    plain.requires_grad_(True)
    ref_S = batch.sum_by_segment(ref_logp)
    logp = []
    for each in (s for unit in rows for s in unit):
        ids = torch.tensor([each.tokens])
        every = torch.log_softmax(plain(ids).logits[0, :-1], -1).gather(1, ids[0, 1:, None])[:, 0]
        logp.append((every * torch.tensor(each.weight[1:])).sum())
    ratio = (torch.stack(logp) - ref_S).view(-1, 2)
    logsigmoid = torch.nn.functional.logsigmoid
    expected = -logsigmoid(0.1 * (ratio[:, 0] - ratio[:, 1])).sum()
    above = 0.1 * (ratio - ratio.mean().detach())
    told = -(logsigmoid(above[:, 0]) + logsigmoid(-above[:, 1])).sum()
    expected = (expected + bco_weight * told) / (1 + bco_weight)
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    theirs = dict(plain.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-4, atol=1e-6)


def noisy(model):
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def learning(model) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


@pytest.mark.parametrize("kernels", ["auto", "off"])
def test_new_adapter_is_compared_with_the_bare_model(tiny: Path, kernels: str) -> None:
    batch = pack(units())
    base, config = load(tiny, kernels=kernels)
    expected = Policy(base)(batch).logp.detach()
    model = noisy(TUNINGS.get("lora")(rank=4, dropout=0.5).apply(base))
    put_kernels(model, config)
    policy = Policy(model).train()
    before = learning(model)
    reference = without_adapter(policy, (tiny,))
    torch.testing.assert_close(reference.logp(batch), expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(policy.eval()(batch).logp, expected, atol=1e-2)
    policy.train()
    reference.logp(batch)
    assert policy.training
    assert all(module.training for module in policy.modules())
    assert learning(model) == before


def test_continued_adapter_is_compared_with_itself_as_it_was(tiny: Path, tmp_path: Path) -> None:
    """Not with the bare model, and whatever the policy learns afterwards."""
    batch = pack(units())
    noisy(TUNINGS.get("lora")(rank=4, dropout=0.5).apply(load(tiny)[0])).save_pretrained(tmp_path / "sft")
    model, config = load(tiny)
    bare = Policy(model)(batch).logp.detach()
    model = load_adapter(model, tmp_path / "sft", trainable=True)
    put_kernels(model, config)
    policy = Policy(model).eval()
    start, before = policy(batch).logp.detach(), learning(model)
    assert not torch.allclose(start, bare, atol=1e-2)
    reference = with_first_adapter(policy, (tiny,), tmp_path / "sft")
    assert learning(model) == before
    policy.train()
    noisy(model)
    torch.testing.assert_close(reference.logp(batch), start, rtol=1e-6, atol=1e-6)
    assert learning(model) == before
    assert not torch.allclose(policy.eval()(batch).logp, start, atol=1e-2)


def test_dpo_on_top_of_an_adapter(tiny: Path, rows: Path, pairs: Path, tmp_path: Path, monkeypatch) -> None:
    """The first margin is 0; the result is one adapter, and a resumed run compares with the one it began with."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    train(settings(tiny, rows, tmp_path / "sft", stage="sft"), quiet=True)
    more = {
        "adapter_name_or_path": str(tmp_path / "sft"),
        "learning_rate": 1e-3,
        "save_steps": 2,
        "precompute_reference": False,
    }
    train(settings(tiny, pairs, tmp_path / "whole", **more), quiet=True)
    assert events(tmp_path / "whole", "loss")[0] == pytest.approx(0.6931472, abs=1e-6)
    assert events(tmp_path / "whole", "rewards/chosen")[0] == pytest.approx(0, abs=1e-6)
    assert abs(events(tmp_path / "whole", "rewards/chosen")[-1]) > 1e-4
    assert not list(tmp_path.rglob("reference/adapter_config.json"))
    tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny), str(tmp_path / "whole"))
    assert list(tuned.peft_config) == ["default"]

    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(Interrupted):
            train(settings(tiny, pairs, tmp_path / "run", **more), quiet=True)
    train(settings(tiny, pairs, tmp_path / "run", resume="must", **more), quiet=True)
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


def test_the_threshold_is_the_mean_of_the_whole_window(tiny: Path, pairs: Path, tmp_path: Path) -> None:
    """Loss and threshold do not depend on how a step is split; at first the policy is its reference."""
    for name, more in (("one", {}), ("four", {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4})):
        train(settings(tiny, pairs, tmp_path / name, pref_bco_weight=1.0, **more), quiet=True)
    assert events(tmp_path / "four", "loss") == pytest.approx(events(tmp_path / "one", "loss"), abs=1e-5)
    found = [events(tmp_path / name, "rewards/threshold") for name in ("four", "one")]
    assert found[0] == pytest.approx(found[1], abs=1e-4)
    assert abs(found[0][0]) < 1e-6 < abs(found[0][-1])
    # (log 2 + 2 log 2) / 2 at the start
    assert events(tmp_path / "one", "loss")[0] == pytest.approx(1.5 * 0.6931472, abs=1e-6)
    line = read_events(tmp_path / "one", "train")[-1]
    assert line["rewards/threshold"] == pytest.approx((line["rewards/chosen"] + line["rewards/rejected"]) / 2, abs=1e-5)


@pytest.mark.parametrize("tuning", [{"lora_dropout": 0.3}, {"finetuning_type": "full", "lora_rank": None}])
def test_scored_beforehand_or_while_training_is_the_same(tiny, pairs, tmp_path, caplog, tuning) -> None:
    more = {**tuning, "val_size": 4, "eval_steps": 2, "learning_rate": 1e-3}
    with caplog.at_level("INFO", "luthier"):
        for name, ahead in (("first", True), ("again", True), ("live", False)):
            train(settings(tiny, pairs, tmp_path / name, precompute_reference=ahead, **more), quiet=True)
    assert caplog.text.count("reference: scoring 22 rows once") == 1
    assert caplog.text.count("22 rows (from the cache)") == 1
    assert losses(tmp_path / "first") == losses(tmp_path / "again")
    assert events(tmp_path / "live", "loss") == pytest.approx(events(tmp_path / "first", "loss"), abs=2e-5)
    evaluated = [read_events(tmp_path / name, "eval")[-1] for name in ("first", "live")]
    assert evaluated[0]["eval_loss"] == pytest.approx(evaluated[1]["eval_loss"], abs=2e-5)
    assert 0 <= evaluated[0]["eval_rewards/accuracies"] <= 1


def test_rows_read_more_than_once_are_scored_beforehand(tiny, pairs, tmp_path, caplog) -> None:
    with caplog.at_level("INFO", "luthier"):
        train(settings(tiny, pairs, tmp_path / "once", max_steps=3), quiet=True)
        assert "scoring" not in caplog.text
        train(settings(tiny, pairs, tmp_path / "twice", max_steps=-1, num_train_epochs=2), quiet=True)
    assert "scoring 22 rows once" in caplog.text


def test_damaged_scores_are_made_again(tiny, pairs, tmp_path, caplog) -> None:
    train(settings(tiny, pairs, tmp_path / "a", precompute_reference=True), quiet=True)
    (kept,) = (tmp_path / "cache/reference").iterdir()
    kept.write_bytes(kept.read_bytes()[:-20])
    train(settings(tiny, pairs, tmp_path / "b", precompute_reference=True), quiet=True)
    assert "is damaged" in caplog.text
    assert losses(tmp_path / "a") == losses(tmp_path / "b")


def test_given_reference(tiny: Path, pairs: Path, tmp_path: Path) -> None:
    """The bare model given by name is what a new adapter is compared with anyway; another one is not."""
    from transformers import AutoModelForCausalLM

    noisy(AutoModelForCausalLM.from_pretrained(tiny)).save_pretrained(tmp_path / "other")
    byte_tokenizer().save_pretrained(tmp_path / "other")
    for name, more in {
        "default": {},
        "same": {"ref_model": str(tiny)},
        "other": {"ref_model": str(tmp_path / "other")},
    }.items():
        train(settings(tiny, pairs, tmp_path / f"run-{name}", **more), quiet=True)
    first, same, other = (events(tmp_path / f"run-{name}", "loss") for name in ("default", "same", "other"))
    assert same == pytest.approx(first, abs=1e-6)
    assert abs(other[0] - first[0]) > 1e-3
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["more"])
    tokenizer.save_pretrained(tmp_path / "other")
    with pytest.raises(ModelError, match=r"has another tokenizer \(260 tokens\) than the model \(259\)"):
        train(settings(tiny, pairs, tmp_path / "refused", ref_model=str(tmp_path / "other")), quiet=True)


@pytest.mark.parametrize("loss", ["sigmoid", "hinge", "ipo", "robust"])
def test_pairs_are_learned(tiny: Path, pairs: Path, tmp_path: Path, loss: str) -> None:
    train(settings(tiny, pairs, tmp_path / "run", pref_loss=loss, max_steps=-1, num_train_epochs=8), quiet=True)
    assert events(tmp_path / "run", "rewards/accuracies")[-1] == 1.0
    values = events(tmp_path / "run", "loss")
    assert values[-1] < values[0]


@pytest.mark.slow
def test_killed_and_resumed(tiny: Path, pairs: Path, tmp_path: Path, jobs: Jobs) -> None:
    (tmp_path / "f.yaml").write_text(
        f"model_name_or_path: {tiny}\nstage: dpo\ndataset: {pairs}\nlora_rank: 4\nlora_dropout: 0.2\nsave_steps: 2\n"
        "dtype: float32\nthreads: 1\nnum_train_epochs: 2\nper_device_train_batch_size: 5\nplot_loss: false\nlearning_rate: 1e-3\n"
    )
    assert jobs.run("train", "f.yaml", "output_dir=whole", cwd=tmp_path).code == 0
    for step in (1, 3, 6):
        killed = jobs.run("train", "f.yaml", f"output_dir=run{step}", cwd=tmp_path, LUTHIER_TESTING="1",
                          LUTHIER_FAULT=f"train.step:kill:{step}")  # fmt: skip
        assert killed.code == -9
        resumed = jobs.run("train", "f.yaml", f"output_dir=run{step}", "--resume", "auto", cwd=tmp_path)
        assert resumed.code == 0, resumed.err
        assert losses(tmp_path / f"run{step}") == losses(tmp_path / "whole")


def test_preview_names_both_answers(tiny: Path, pairs: Path, tmp_path: Path, jobs: Jobs) -> None:
    (tmp_path / "f.yaml").write_text(f"model_name_or_path: {tiny}\nstage: dpo\ndataset: {pairs}\n")
    shown = jobs.run("data", "preview", "f.yaml", "--rows", "1", cwd=tmp_path)
    assert shown.code == 0, shown.err
    assert "pairs.jsonl:1 chosen: " in shown.out
    assert "pairs.jsonl:1 rejected: " in shown.out
    found = json.loads(jobs.run("data", "preview", "f.yaml", "--rows", "1", "--json", cwd=tmp_path).out)
    assert [segment["name"] for segment in found["segments"]] == ["chosen", "rejected"]
    audited = jobs.run("data", "audit", "f.yaml", cwd=tmp_path)
    assert (audited.code, "22 of 22 rows" in audited.out) == (0, True)
    refused = jobs.run("train", "f.yaml", "stage=sft", "output_dir=run", cwd=tmp_path)
    assert refused.code == 2
    assert "holds preference rows" in refused.err
    assert not (tmp_path / "run").exists()
