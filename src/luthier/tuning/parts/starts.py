"""Starts of a low-rank adapter that are taken from the weights below it.

Shapes: I inputs, O outputs, R rank.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from luthier.core.anatomy import plain_model
from luthier.core.errors import ConfigError

if TYPE_CHECKING:
    from luthier.tuning.lora import Lora

INITIAL = "initial_factors"
"""Attribute of a LoRA layer whose weight gave a part of itself to the adapter: what (A, B) were at the start."""


class Start(Protocol):
    """A way to begin."""

    def check(self, model: nn.Module, lora: Lora) -> None:
        """Raise ConfigError when this start is not possible."""
        ...

    def begin(self, tuned: nn.Module, iterations: int) -> None:
        """Set A and B of every LoRA layer."""
        ...


def lora_layers(model: nn.Module) -> list[tuple[str, Any]]:
    """Return path and module of every linear layer with a low-rank addition whose weight can be read."""
    from peft.tuners.lora import Linear

    return [(path, module) for path, module in model.named_modules() if isinstance(module, Linear)]


def weight_below(module: Any) -> Tensor:
    """Return the weight under a low-rank addition in float32, [O, I]; some models keep it transposed."""
    weight = module.get_base_layer().weight.data.float()
    return weight.T if module.fan_in_fan_out else weight


def give_away(module: Any, a_RI: Tensor, b_OR: Tensor) -> None:
    """Make (A, B) the start of a LoRA layer's adapter, and take scale * B A out of the weight below it.

    The layer computes what it computed before; A and B are remembered, because the weight is another one now.
    """
    name = module.active_adapters[0]
    weight = module.get_base_layer().weight
    low = a_RI.float().contiguous(), b_OR.float().contiguous()
    module.lora_A[name].weight.data, module.lora_B[name].weight.data = low[0].clone(), low[1].clone()
    rest_OI = weight_below(module) - module.scaling[name] * (low[1] @ low[0])
    weight.data = (rest_OI.T if module.fan_in_fan_out else rest_OI).to(weight.dtype).contiguous()
    setattr(module, INITIAL, low)


def _is_narrow(module: nn.Module) -> bool:
    return bool(getattr(module, "quantization", None)) or type(module).__module__.startswith("bitsandbytes.")


def _whole_weights_only(lora: Lora, model: nn.Module) -> None:
    if any(_is_narrow(module) for module in model.modules()):
        raise ConfigError(
            f"init: {lora.init} takes a part out of the weights, which quantization would round away; use init: loftq"
        )
    if lora.experts:
        raise ConfigError(
            f"init: {lora.init} reads linear layers only, and experts are none; leave out experts or init"
        )
    if lora.dora:
        raise ConfigError(f"init: {lora.init} and use_dora both redefine the weight; leave one of them out")


class Pissa:
    """A and B are the principal singular directions of W (arXiv:2404.02948, equations 2 and 3)."""

    def check(self, model: nn.Module, lora: Lora) -> None:
        """Raise ConfigError for quantized weights and for DoRA."""
        _whole_weights_only(lora, model)

    def begin(self, tuned: nn.Module, iterations: int) -> None:
        """Decompose every weight: exactly, or by power iterations."""
        for _, module in lora_layers(tuned):
            name = module.active_adapters[0]
            u_OR, s_R, v_IR = _singular(weight_below(module), module.r[name], iterations)
            root_R = (s_R / module.scaling[name]).sqrt()
            give_away(module, root_R[:, None] * v_IR.T, u_OR * root_R)


class Olora:
    """A and B are the first columns and rows of the QR factors of W (arXiv:2406.01775, equation 3)."""

    def check(self, model: nn.Module, lora: Lora) -> None:
        """Raise ConfigError for quantized weights and for DoRA."""
        _whole_weights_only(lora, model)

    def begin(self, tuned: nn.Module, iterations: int) -> None:
        """Factor every weight."""
        for _, module in lora_layers(tuned):
            name = module.active_adapters[0]
            q_OK, r_KI = torch.linalg.qr(weight_below(module))
            rank = module.r[name]
            give_away(module, r_KI[:rank] / module.scaling[name], q_OK[:, :rank])


class Loftq:
    """A and B are the best rank-R form of what quantization lost (arXiv:2310.08659, algorithm 1 with T = 1)."""

    def check(self, model: nn.Module, lora: Lora) -> None:
        """Raise ConfigError unless the base is quantized and its whole weights can be read."""
        if not any(getattr(module, "quantization", None) for module in model.modules()):
            raise ConfigError(
                "init: loftq makes good what luthier's own quantization lost; set quantization: nf4 and "
                "quantization_backend: luthier, or leave it out"
            )
        if lora.dora:
            raise ConfigError("init: loftq with use_dora is not defined; leave one of them out")
        if not any(Path(plain_model(model).name_or_path).glob("*.safetensors")):
            raise ConfigError("init: loftq needs the unquantized weights (*.safetensors) of the model in a folder")

    def begin(self, tuned: nn.Module, iterations: int) -> None:
        """Read the whole weights one at a time and decompose the difference."""
        from safetensors import safe_open

        plain = plain_model(tuned)
        wanted = {f"{path.removeprefix('base_model.model.')}.weight": m for path, m in lora_layers(tuned)}
        for file in sorted(Path(plain.name_or_path).glob("*.safetensors")):
            with safe_open(file, framework="pt") as tensors:
                for key in tensors.keys() & wanted.keys():
                    _make_good(wanted.pop(key), tensors.get_tensor(key))
        if wanted:
            raise ConfigError(f"init: loftq found no unquantized {next(iter(wanted))} in {plain.name_or_path}")


def _make_good(module: Any, weight_OI: Tensor) -> None:
    name = module.active_adapters[0]
    base = module.get_base_layer()
    whole_OI = weight_OI.T if getattr(base, "transposed", False) else weight_OI
    lost_OI = whole_OI.to(base.weight.device).float() - base.weight.float()
    u_OR, s_R, v_IR = _singular(lost_OI, module.r[name], 0)
    root_R = (s_R / module.scaling[name]).sqrt()
    module.lora_A[name].weight.data = (root_R[:, None] * v_IR.T).contiguous()
    module.lora_B[name].weight.data = (u_OR * root_R).contiguous()


def _singular(weight_OI: Tensor, rank: int, iterations: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the first `rank` singular vectors and values: U [O, R], s [R], V [I, R]."""
    if iterations:
        return torch.svd_lowrank(weight_OI, q=rank, niter=iterations)
    u, s, vh = torch.linalg.svd(weight_OI, full_matrices=False)
    return u[:, :rank], s[:rank], vh[:rank].T


START_OF: dict[str, Start] = {"pissa": Pissa(), "olora": Olora(), "loftq": Loftq()}
