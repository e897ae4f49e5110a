"""Every tuning on every family: packed equals one by one, and what is saved is what was trained; or a told refusal."""

from pathlib import Path

import pytest
import torch
from helpers import make_folder, segment
from tunings import SMALL, fresh, stir

from luthier.config.combinations import traits_of, why_not
from luthier.core.errors import ConfigError
from luthier.core.registry import TUNINGS
from luthier.data.pack import pack
from luthier.models import patch
from luthier.models.adapters import has_adapter, load_adapter, save_trained
from luthier.models.patch import attention_for, remove
from luthier.models.policy import Policy
from luthier.tuning.lora import Lora

UNITS = [
    [segment(4, 5, seed=1)],
    [segment(2, 3, seed=2, prefix=range(5, 25)), segment(1, 4, seed=3, prefix=range(5, 25))],
]


def one_by_one(model) -> torch.Tensor:
    """Log-probabilities by the ordinary forward pass: the specification."""
    parts = []
    for one in (s for unit in UNITS for s in unit):
        ids = torch.tensor([one.tokens])
        out = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
        logp = torch.log_softmax(out[0, -len(one.tokens) : -1].float(), -1).gather(1, ids[0, 1:, None])[:, 0]
        parts.append(logp[torch.tensor(one.weight[1:]) > 0])
    return torch.cat(parts)


def test_every_tuning_is_here() -> None:
    assert set(SMALL) == set(TUNINGS.names())


@torch.no_grad()
@pytest.mark.parametrize("name", SMALL)
def test_tuned(every_family_folder: Path, tmp_path: Path, name: str) -> None:
    folder, (tuning, _) = every_family_folder, SMALL[name]
    config = fresh(folder).config
    packed = fresh(folder, attention_for(config, "auto"))
    reason = why_not(name, traits=traits_of(config))
    if reason is not None:
        with pytest.raises(ConfigError, match=reason[:40]):
            tuning.apply(packed)
        return
    packed = stir(tuning.apply(packed))
    save_trained(packed, tmp_path, str(folder))
    patch.install(packed)
    have = Policy(packed)(pack(UNITS)).logp
    if has_adapter(packed):
        plain = load_adapter(fresh(folder, "eager"), tmp_path, trainable=False).eval()
    else:
        plain = fresh(tmp_path, "eager")
    want = one_by_one(plain)
    torch.testing.assert_close(have, want, rtol=1e-4, atol=2e-5)
    # The tuning does something, so that the equality says something.
    assert float((want - one_by_one(fresh(folder, "eager"))).abs().max()) > 2e-6
    remove(packed)


@torch.no_grad()
@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral", "deepseek_v3", "gpt_oss"])
def test_experts_are_tuned_too(family: str, tmp_path: Path) -> None:
    """Low rank on the experts' fused weights; the router stays, and nothing but the adapter learns."""
    folder = make_folder(family, tmp_path / "base")
    config = fresh(folder).config
    packed = Lora(rank=2, experts=True).apply(fresh(folder, attention_for(config, "auto")))
    experts = [n for n, p in packed.named_parameters() if p.requires_grad and "experts" in n]
    assert experts
    assert all("lora_" in n for n, p in packed.named_parameters() if p.requires_grad)
    stir(packed)
    save_trained(packed, tmp_path / "adapter", str(folder))
    patch.install(packed)
    have = Policy(packed)(pack(UNITS)).logp
    plain = load_adapter(fresh(folder, "eager"), tmp_path / "adapter", trainable=False).eval()
    want = one_by_one(plain)
    torch.testing.assert_close(have, want, rtol=1e-4, atol=2e-5)
    without = stir(Lora(rank=2).apply(fresh(folder, "eager")))
    assert float((one_by_one(without) - want).abs().max()) > 1e-5
