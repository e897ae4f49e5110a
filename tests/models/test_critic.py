"""Critics: over the frozen tensors of the policy where they can be, exact after a checkpoint."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import byte_tokenizer, make_folder, segment
from tunings import CASES, SMALL, stir

from luthier.config.schema import ModelConfig
from luthier.core.errors import ConfigError, ModelError
from luthier.data.pack import pack
from luthier.models.adapters import save_trained
from luthier.models.device import place
from luthier.models.load import find, load_model, put_kernels
from luthier.models.policy import Policy
from luthier.models.reward_model import load_reward_model
from luthier.models.value import CriticStart, make_critic, make_head, only_values, save_critic, save_with_head, share

VALUE = frozenset({"value"})
LORA = SMALL["lora"][0]
BATCH = pack([[segment(2, 5, seed=1, prefix=list(range(20)))], [segment(3, 9, seed=2, prefix=list(range(20)))]])


def settings(folder: Path, **more: Any) -> ModelConfig:
    return ModelConfig(model_name_or_path=str(folder), **{"dtype": "float32", "threads": 1, **more})


def base_of(config: ModelConfig) -> Any:
    return load_model(find(config), config, place(config))


def start(config: ModelConfig, **more: Any) -> CriticStart:
    return CriticStart(base=base_of(config), files=find(config), **more)


def critic(begun: CriticStart, tuning: Any, config: ModelConfig, seed: int = 1) -> Policy:
    return make_critic(begun, tuning, config, place(config), seed=seed).eval()


def pointers(model: Any) -> set[int]:
    return {p.data_ptr() for p in model.parameters() if not p.requires_grad}


def values(policy: Policy) -> torch.Tensor:
    with torch.no_grad():
        return policy(BATCH, reads=VALUE).value


def reward_folder(base: Path, tuning: Any, folder: Path) -> Policy:
    config = settings(base)
    model = stir(tuning.apply(only_values(base_of(config))))
    put_kernels(model, config, quiet=True)
    policy = Policy(model, value_head=make_head(model, 5)).eval()
    save_with_head(policy, folder, byte_tokenizer(), str(base))
    return policy


@pytest.mark.parametrize("name", ["llama", "gemma3", "phi3", "qwen3_moe", "gpt2"])
@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
def test_adapter_shares_the_frozen_base(tmp_path: Path, name: str, quantization: str) -> None:
    """Not one frozen number twice; policy and critic learn and compute apart."""
    config = settings(make_folder(name, tmp_path / "base"), quantization=quantization)
    begun = start(config)
    expected = Policy(begun.base)(BATCH).logp
    model = critic(begun, LORA, config)
    narrow = {id(m.narrow) for m in begun.base.modules() if hasattr(m, "narrow")}
    assert {id(m.narrow) for m in model.modules() if hasattr(m, "narrow")} == narrow
    policy = Policy(stir(LORA.apply(begun.base)))
    put_kernels(policy.model, config, quiet=True)
    assert pointers(model.model) <= pointers(policy.model)
    policy.critic = model
    before, bare = values(model), make_head(begun.base, 1)
    with policy.model.disable_adapter():
        torch.testing.assert_close(policy(BATCH).logp, expected, rtol=1e-4, atol=1e-5)
        alone = Policy(policy.model, value_head=bare)(BATCH, reads=VALUE).value
    torch.testing.assert_close(before, alone, rtol=1e-4, atol=1e-5)
    policy(BATCH, reads=VALUE).value.square().sum().backward()
    grads = {name for name, p in policy.named_parameters() if p.grad is not None}
    assert grads
    assert all(name.startswith("critic.") for name in grads)
    stir(policy.model)
    torch.testing.assert_close(values(model), before, rtol=0, atol=0)
    logp = policy.eval()(BATCH).logp.detach()
    stir(model)
    torch.testing.assert_close(policy(BATCH).logp, logp, rtol=0, atol=0)


@pytest.mark.parametrize(
    "case", ["lora", "pissa", "olora", "oft", "ia3", "vera", "bottleneck", "prompt", "prefix", "lora-saves"]
)
def test_every_adapter_may_be_shared_under(tiny: Path, case: str) -> None:
    """A policy whose start is a part of the weights leaves the critic's alone, and the other way round."""
    config = settings(tiny)
    begun = start(config)
    before = {name: p.clone() for name, p in begun.base.named_parameters()}
    made = critic(begun, CASES[case][0], config)
    for name, parameter in begun.base.named_parameters():
        torch.testing.assert_close(parameter, before[name], rtol=0, atol=0)
    said = values(made)
    CASES[case][0].apply(begun.base)
    torch.testing.assert_close(values(made), said, rtol=0, atol=0)
    whole = Policy(base_of(config), value_head=made.value_head)
    if case in ("lora", "pissa", "olora", "oft", "ia3", "vera", "lora-saves"):  # these begin as the model
        torch.testing.assert_close(said, values(whole), rtol=1e-4, atol=1e-4)


def test_full_tuning_has_a_model_of_its_own(tiny: Path) -> None:
    config = settings(tiny)
    begun = start(config)
    made = critic(begun, SMALL["full"][0], config)
    theirs = {p.data_ptr() for p in begun.base.parameters()}
    assert theirs.isdisjoint(p.data_ptr() for p in made.parameters())
    assert all(p.requires_grad for p in made.parameters())
    assert not any("lm_head" in name for name, _ in made.named_parameters())


@pytest.mark.parametrize("reward", ["lora", "full", "bottleneck", "prefix"])
def test_critic_begins_as_the_reward_model(tiny: Path, tmp_path: Path, reward: str) -> None:
    expected = values(reward_folder(tiny, SMALL[reward][0], tmp_path / "reward"))
    config = settings(tiny)
    begun = start(config, begins_as=str(tmp_path / "reward"))
    made = critic(begun, LORA, config)
    torch.testing.assert_close(values(made), expected, rtol=1e-5, atol=1e-5)
    learning = [name for name, p in made.named_parameters() if p.requires_grad]
    assert "value_head.weight" in learning
    assert len(learning) > 1
    if reward != "full":
        assert pointers(made.model) <= {p.data_ptr() for p in begun.base.parameters()}
    if reward in ("lora", "full"):
        whole = critic(begun, SMALL["full"][0], config)
        torch.testing.assert_close(values(whole), expected, rtol=1e-4, atol=1e-4)


def test_critic_begins_as_the_adapter_of_the_policy(tiny: Path, tmp_path: Path) -> None:
    config = settings(tiny)
    sft = stir(LORA.apply(base_of(config)))
    save_trained(sft, tmp_path / "sft", str(tiny))
    made = critic(start(config, adapter=tmp_path / "sft"), LORA, config)
    torch.testing.assert_close(values(made), values(Policy(sft, value_head=made.value_head)), rtol=1e-5, atol=1e-5)
    assert any("lora_" in name for name, p in made.named_parameters() if p.requires_grad)
    with pytest.raises(ConfigError, match="is an adapter, but this tuning trains the model below it"):
        critic(start(config, adapter=tmp_path / "sft"), SMALL["full"][0], config)


@pytest.mark.parametrize("tuning", ["lora", "full", "bottleneck", "prefix", "prompt", "pissa"])
@pytest.mark.parametrize("reward", [None, "lora", "full"])
def test_checkpoint_holds_the_critic_exactly(tiny: Path, tmp_path: Path, tuning: str, reward: str | None) -> None:
    config, how = settings(tiny), {**SMALL, **CASES}[tuning][0]
    if reward is not None:
        reward_folder(tiny, SMALL[reward][0], tmp_path / "reward")
    begun = start(config, begins_as=None if reward is None else str(tmp_path / "reward"))
    made = stir(critic(begun, how, config))
    save_critic(made, tmp_path / "checkpoint" / "critic", byte_tokenizer())
    again = critic(replace(begun, resume=tmp_path / "checkpoint" / "critic"), how, config, seed=9)
    ours, theirs = ({name: p for name, p in each.named_parameters() if p.requires_grad} for each in (made, again))
    assert list(ours) == list(theirs)
    for name, parameter in ours.items():
        torch.testing.assert_close(theirs[name], parameter, rtol=0, atol=0)
    torch.testing.assert_close(values(again), values(made), rtol=0, atol=0)


def test_reward_model_shares_too(tiny: Path, tmp_path: Path) -> None:
    """Frozen, over the same tensors, whatever the policy puts on them afterwards."""
    expected = reward_folder(tiny, LORA, tmp_path / "reward")
    config = settings(tiny)
    base, files = base_of(config), find(config)
    model = load_reward_model(str(tmp_path / "reward"), config, place(config), shared=(base, files))
    stir(LORA.apply(base))
    torch.testing.assert_close(values(model.policy), values(expected), rtol=1e-5, atol=1e-5)
    assert not any(p.requires_grad for p in model.policy.parameters())
    own = {p.data_ptr() for n, p in model.policy.named_parameters() if "lora_" not in n and "value_head" not in n}
    assert own <= {p.data_ptr() for p in base.parameters()}
    reward_folder(make_folder("qwen2", tmp_path / "other"), LORA, tmp_path / "foreign")
    foreign = load_reward_model(str(tmp_path / "foreign"), config, place(config), shared=(base, files))
    assert {p.data_ptr() for p in foreign.policy.parameters()}.isdisjoint(p.data_ptr() for p in base.parameters())


def test_foreign_tokens_are_refused(tiny: Path, tmp_path: Path) -> None:
    reward_folder(tiny, SMALL["full"][0], tmp_path / "reward")
    other = byte_tokenizer()
    other.add_tokens(["more"])
    other.save_pretrained(tmp_path / "reward")
    config = settings(tiny)
    with pytest.raises(ModelError, match=r"has another tokenizer \(260 tokens\) than the policy \(259\)"):
        critic(start(config, begins_as=str(tmp_path / "reward")), LORA, config)


def test_kernels_and_modes_are_apart(tiny: Path) -> None:
    """A copy of a model with kernels has kernels of its own modules."""
    config = settings(tiny)
    base = base_of(config)
    put_kernels(base, config, quiet=True)
    copied = share(base)
    assert copied is not None
    for module, twin in zip(base.modules(), copied.modules(), strict=True):
        assert twin is not module
        bound = getattr(twin.__dict__.get("forward"), "__self__", None)
        assert bound is None or bound is twin
    copied.train()
    assert not base.training
    torch.testing.assert_close(Policy(copied)(BATCH).logp, Policy(base)(BATCH).logp, rtol=0, atol=0)
