"""Values beside and instead of log-probabilities: heads, critics, the temperature, and folders of reward models."""

from pathlib import Path

import pytest
import torch
from helpers import make_folder, segment
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from luthier.data.pack import pack
from luthier.models.patch import FOREST, install, register_attention
from luthier.models.policy import Policy

VALUE = frozenset({"value"})
PROMPT = list(range(3, 40))


def load(folder: Path, attention: str = FOREST):
    register_attention()
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention).eval()


def head_for(model, seed: int = 3) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(model.config.hidden_size, 1, bias=False)


def units() -> list:
    return [[segment(2, 5, seed=1, prefix=PROMPT), segment(3, 9, seed=2, prefix=PROMPT)], [segment(4, 6, seed=3)]]


def plain_logits(model, tokens: list[int]) -> torch.Tensor:
    return model(torch.tensor([tokens])).logits[0]


@pytest.mark.parametrize("name", ["llama", "gemma2", "cohere", "granite"])
@pytest.mark.parametrize("temperature", [0.7, 1.5])
@pytest.mark.parametrize("through_adapter", [False, True])
def test_temperature_divides_the_logits(tmp_path: Path, name: str, temperature: float, through_adapter: bool) -> None:
    """Behind scale and soft cap, as in sampling; entropy too, and gradients."""
    folder = make_folder(name, tmp_path / name)
    model, plain = load(folder), load(folder, "eager")
    for each in (model, plain):  # large logits, which the cap bends
        each.get_output_embeddings().weight.data.mul_(30)
        if getattr(each.config, "final_logit_softcapping", None):
            each.config.final_logit_softcapping = 2.0
    install(model)
    policy = Policy(model)
    policy.temperature = temperature
    if through_adapter:  # a head that is no plain linear layer

        class Head(nn.Linear):
            pass

        model.get_output_embeddings().__class__ = Head
    batch = pack(units())
    scores = policy(batch, reads=frozenset({"logp", "entropy"}))
    logps, entropies = [], []
    for each in (s for unit in units() for s in unit):
        every = torch.log_softmax(plain_logits(plain, each.tokens) / temperature, -1)[:-1]
        wanted = torch.tensor(each.weight[1:]) > 0
        logps.append(every.gather(1, torch.tensor(each.tokens[1:])[:, None])[wanted, 0])
        entropies.append(-(every.exp() * every).sum(-1)[wanted])
    torch.testing.assert_close(scores.logp, torch.cat(logps), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(scores.entropy, torch.cat(entropies), rtol=1e-5, atol=1e-5)
    (scores.logp.sum() + 0.1 * scores.entropy.sum()).backward()
    (torch.cat(logps).sum() + 0.1 * torch.cat(entropies).sum()).backward()
    theirs = dict(plain.named_parameters())
    for name_of, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[name_of].grad, rtol=1e-3, atol=1e-4)


def test_values_alone_never_touch_the_output_head(tiny: Path) -> None:
    model = load(tiny)
    policy = Policy(model, value_head=head_for(model))

    def explode(*_):
        raise AssertionError("the output head was used")

    model.get_output_embeddings = explode
    scores = policy(pack(units()), reads=VALUE)
    assert scores.logp.shape == (0,)
    assert scores.entropy is None
    assert scores.value is not None
    scores.value.sum().backward()
    assert model.lm_head.weight.grad is None
    assert policy.value_head.weight.grad.abs().sum() > 0


def test_value_of_a_tree_is_that_of_each_sequence(family_folder: Path) -> None:
    """Value and gradients against plain transformers, one sequence at a time."""
    ours, plain = load(family_folder), load(family_folder, "eager")
    install(ours)
    head, other = head_for(ours), head_for(ours)
    batch = pack(units())
    scores = Policy(ours, value_head=head)(batch, reads=frozenset({"value", "logp"}))
    hidden = [
        plain.base_model(torch.tensor([s.tokens[:-1]])).last_hidden_state[0][torch.tensor(s.weight[1:]) > 0]
        for unit in units()
        for s in unit
    ]
    expected = torch.cat([other(each)[:, 0] for each in hidden])
    torch.testing.assert_close(scores.value, expected, rtol=1e-5, atol=1e-5)
    assert len(scores.logp) == len(batch.targets)
    scores.value.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(head.weight.grad, other.weight.grad, rtol=1e-4, atol=1e-4)
    theirs = dict(plain.base_model.named_parameters())
    for name, parameter in ours.base_model.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-3, atol=1e-5)


def test_value_head_is_float32_under_autocast(tiny: Path) -> None:
    model = load(tiny)
    policy = Policy(model, autocast=torch.bfloat16, value_head=head_for(model))
    seen = []
    policy.value_head.register_forward_hook(lambda _, inputs, out: seen.extend([inputs[0].dtype, out.dtype]))
    batch = pack(units())
    with torch.autocast("cpu", torch.bfloat16):
        value = policy(batch, reads=VALUE).value
    assert seen == [torch.float32] * 2
    assert value.dtype == torch.float32
    assert policy.value_head.weight.dtype == torch.float32


def test_critic_says_the_value_instead(tiny: Path) -> None:
    """Its learning parameters are found under its name, and only it is asked where nothing else is read."""
    model, other = load(tiny), load(tiny)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.01)
    policy, batch = Policy(model), pack(units())
    policy.critic = Policy(other, value_head=head_for(other))
    expected = policy.critic(batch, reads=VALUE).value
    both = policy(batch, reads=frozenset({"value", "logp"}))
    torch.testing.assert_close(both.value, expected)
    torch.testing.assert_close(both.logp, policy(batch).logp)
    model.forward = model.base_model.forward = None
    torch.testing.assert_close(policy(batch, reads=VALUE).value, expected)
    assert any(name == "critic.value_head.weight" for name, _ in policy.named_parameters())
    F.mse_loss(policy(batch, reads=VALUE).value, torch.zeros_like(expected)).backward()
    assert all(parameter.grad is None for parameter in model.parameters())
