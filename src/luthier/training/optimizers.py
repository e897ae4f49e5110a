"""Optimizers that torch has not: each group of parameters has a rule that makes an update of a gradient.

State is plain tensors and numbers, so that a checkpoint holds all of it. Nothing is drawn from the global random state.
Shapes: a gradient is [m, n], its projection [r, n], [m, r] or [r, r].
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

State = dict[str, Any]

NORM_GROWTH = 1.01
"""Most growth of an update's norm from one step to the next: APOLLO's limiter, arXiv:2412.05270, section 4."""
MUON_MOMENTUM = 0.95
LEAST_IN_PARTS = 100
"""Entries of a parameter that learn in turns; smaller parameters learn whole."""
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
_NEWTON_SCHULZ_STEPS = 5


class Ruled(torch.optim.Optimizer):
    """Updates each parameter by the rule that its group names, with decoupled weight decay."""

    def __init__(self, groups: list[dict[str, Any]], facts: dict[nn.Parameter, State] | None = None) -> None:
        """`facts`: numbers that a parameter's state begins with."""
        super().__init__(groups, {})
        self._facts = facts or {}
        self._index = {p: i for i, p in enumerate(p for group in self.param_groups for p in group["params"])}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update every parameter that has a gradient."""
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "step" not in state:
                    state.update(self._facts.get(parameter, {}), step=0, seed=self._index[parameter])
                state["step"] += 1
                update = RULES[group["rule"]](parameter.grad, state, group)
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"])
        return loss


class BlockAdam(Ruled):
    """BAdam (arXiv:2404.02827): AdamW on one block of parameters at a time; its state goes when the next one is due.

    Only the block that learns asks for gradients, so that what lies below it needs no backward pass.
    """

    def __init__(
        self, groups: list[dict[str, Any]], blocks: Sequence[Sequence[nn.Parameter]], order: Order, interval: int
    ) -> None:
        """`interval`: updates of a block before the next one; -1 never goes on."""
        super().__init__(groups)
        self._blocks, self._order, self._interval = blocks, order, interval
        self._updates = 0
        self._activate()

    @property
    def block(self) -> int:
        """Return which block learns."""
        return self._order(0 if self._interval < 0 else self._updates // self._interval)

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update the block that learns, and go on to the next one when it is due."""
        before, loss = self.block, super().step(closure)
        self._updates += 1
        if self.block != before or (self._interval > 0 and self._updates % self._interval == 0):
            self.state.clear()
            self._activate()
        for parameter in self._blocks[self.block]:
            self.state[parameter]["updates"] = self._updates
        return loss

    def go_on(self) -> None:
        """Take the place in the order from the state that a checkpoint brought."""
        self._updates = max((int(state["updates"]) for state in self.state.values()), default=0)
        self._activate()

    def _activate(self) -> None:
        for parameter in self._index:
            parameter.requires_grad_(False)
        for parameter in self._blocks[self.block]:
            parameter.requires_grad_(True)


class Order:
    """Which block learns in which turn: a function of the turn alone."""

    def __init__(self, mode: str, num_blocks: int, start: int | None, seed: int) -> None:
        """`start`: the first block; none takes that of the mode."""
        self._mode, self._num, self._seed = mode, num_blocks, seed
        usual = self._at(0) if mode != "descending" else num_blocks - 1
        self._start = usual if start is None else start

    def __call__(self, turn: int) -> int:
        """Return the block of a turn, both from 0."""
        steps = {"ascending": turn, "descending": -turn, "fixed": 0}
        if self._mode in steps:
            return (self._start + steps[self._mode]) % self._num
        return self._start if turn == 0 else self._at(turn)

    def _at(self, turn: int) -> int:
        if self._mode != "random":
            return 0
        pass_over, place = divmod(turn, self._num)
        return random.Random(f"{self._seed} {pass_over}").sample(range(self._num), self._num)[place]


# ---- rules: gradient, state, group -> what is taken from the parameter, times the learning rate


def adam(grad: Tensor, state: State, group: dict[str, Any]) -> Tensor:
    """Return the update of Adam (arXiv:1412.6980), bias-corrected."""
    if "exp_avg" not in state:
        state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(grad), torch.zeros_like(grad)
    _, beta2 = group["betas"]
    state["exp_avg_sq"].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    return _first_moment(grad, state, group) / _root(state, group)


def _first_moment(grad: Tensor, state: State, group: dict[str, Any]) -> Tensor:
    beta1, _ = group["betas"]
    state["exp_avg"].lerp_(grad, 1 - beta1)
    return state["exp_avg"] / (1 - beta1 ** state["step"])


def _root(state: State, group: dict[str, Any]) -> Tensor:
    return (state["exp_avg_sq"] / (1 - group["betas"][1] ** state["step"])).sqrt().add_(group["eps"])


def adam_on_part(grad: Tensor, state: State, group: dict[str, Any]) -> Tensor:
    """Return the update of Adam on a share of the entries, 0 elsewhere; its state goes when the next ones are due.

    The form of BAdam (arXiv:2404.02827) in its authors' library that takes a part of every parameter for a block.
    """
    turn, place = divmod(state["step"] - 1, group["interval"]) if group["interval"] > 0 else (0, state["step"] - 1)
    if place == 0:
        state["part"] = _part(grad, turn, state["seed"], group)
    moments = {name: state[name] for name in ("exp_avg", "exp_avg_sq")} if place else {}
    own: State = {"step": place + 1, **moments}
    update = grad.new_zeros(grad.numel())
    update[state["part"]] = adam(grad.reshape(-1)[state["part"]], own, group)
    state.update(exp_avg=own["exp_avg"], exp_avg_sq=own["exp_avg_sq"])
    return update.view(grad.shape)


def _part(grad: Tensor, turn: int, seed: int, group: dict[str, Any]) -> Tensor:
    """Return the places of the entries that learn in a turn; the last ones are followed by the first."""
    size = grad.numel()
    count = size if size < LEAST_IN_PARTS else max(1, int(size * group["share"]))
    places = (turn * count + torch.arange(count)) % size
    if group["scattered"]:
        places = torch.randperm(size, generator=torch.Generator().manual_seed(seed))[places]
    return places.to(grad.device)


def adam_mini(grad: Tensor, state: State, group: dict[str, Any]) -> Tensor:
    """Return the update of Adam-mini (arXiv:2406.16793): one second moment for each block, the mean of its squares."""
    blocks, transposed = state.get("blocks", 1), state.get("transposed", False)
    seen = grad.t() if transposed else grad
    if "exp_avg" not in state:
        state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(grad), grad.new_zeros(blocks, 1)
    beta2 = group["betas"][1]
    state["exp_avg_sq"].lerp_(seen.reshape(blocks, -1).square().mean(1, keepdim=True), 1 - beta2)
    first = _first_moment(grad, state, group)
    seen_first = first.t() if transposed else first
    update = (seen_first.reshape(blocks, -1) / _root(state, group)).reshape(seen_first.shape)
    return update.t() if transposed else update


def galore(grad: Tensor, state: State, group: dict[str, Any]) -> Tensor:
    """Return the update of GaLore (arXiv:2403.03507, algorithm 2): Adam on the gradient in its main directions.

    They are singular vectors of the gradient at every `interval`-th step; Adam's state stays when they change.
    """
    sides = _sides(group["projection"], grad)
    if (state["step"] - 1) % group["interval"] == 0:
        left_MK, _, right_KN = torch.linalg.svd(grad.float(), full_matrices=False)
        found = {"left": left_MK[:, : group["rank"]], "right": right_KN[: group["rank"]].t()}
        state.update({side: found[side].to(grad.dtype).contiguous() for side in sides})
    small = state["left"].t() @ grad if "left" in sides else grad
    small = small @ state["right"] if "right" in sides else small
    update = adam(small, state, group)
    update = update @ state["right"].t() if "right" in sides else update
    update = state["left"] @ update if "left" in sides else update
    return update * group["scale"]


def _sides(projection: str, grad: Tensor) -> tuple[str, ...]:
    shorter, longer = ("left", "right") if grad.shape[0] < grad.shape[1] else ("right", "left")
    return {
        "std": (shorter,),
        "reverse_std": (longer,),
        "left": ("left",),
        "right": ("right",),
        "full": ("left", "right"),
    }[projection]


def apollo(grad: Tensor, state: State, group: dict[str, Any]) -> Tensor:
    """Return the update of APOLLO (arXiv:2412.05270, algorithm 1): the gradient, at the rates of Adam in a small space.

    A channel's rate is |Adam's update| / |gradient| of its projection; `tensor` takes one for the whole matrix.
    """
    (side,) = _sides(group["projection"], grad)
    if (state["step"] - 1) % group["interval"] == 0:
        state["projector"] = _projector(grad, side, state, group)
    small, along = (state["projector"] @ grad, 0) if side == "left" else (grad @ state["projector"].t(), 1)
    update = adam(small, state, group)
    tiny = torch.finfo(grad.dtype).tiny
    if group["per"] == "channel":
        rate = update.norm(dim=along, keepdim=True) / small.norm(dim=along, keepdim=True).clamp(min=tiny)
    else:
        rate = update.norm() / small.norm().clamp(min=tiny)
    scaled = grad * rate * group["scale"] ** 0.5
    norm = scaled.norm()
    if "norm" in state:
        most = state["norm"] * NORM_GROWTH
        shrink = torch.where((norm > most) & (most > 0), most / norm.clamp(min=tiny), torch.ones_like(norm))
        scaled, norm = scaled * shrink, norm * shrink
    state["norm"] = norm
    return scaled


def _projector(grad: Tensor, side: str, state: State, group: dict[str, Any]) -> Tensor:
    """Return [r, m] for the left side, [r, n] for the right one."""
    size = grad.shape[0] if side == "left" else grad.shape[1]
    rank = min(group["rank"], size)
    if group["drawn"]:
        turn = (state["step"] - 1) // group["interval"]
        generator = torch.Generator().manual_seed(1_000_003 * state["seed"] + turn)
        return (torch.randn(rank, size, generator=generator) / rank**0.5).to(grad)
    left_MK, _, right_KN = torch.linalg.svd(grad.float(), full_matrices=False)
    return (left_MK.t() if side == "left" else right_KN)[:rank].to(grad.dtype).contiguous()


def muon(grad: Tensor, state: State, group: dict[str, Any]) -> Tensor:
    """Return the update of Muon: momentum, made orthogonal, at the size of Adam's (arXiv:2502.16982, equation 4)."""
    if "momentum" not in state:
        state["momentum"] = torch.zeros_like(grad)
    state["momentum"].lerp_(grad, 1 - MUON_MOMENTUM)
    ahead = grad.lerp(state["momentum"], MUON_MOMENTUM)
    return _orthogonal(ahead) * (0.2 * max(grad.shape) ** 0.5)


def _orthogonal(matrix: Tensor) -> Tensor:
    """Return U V' of U S V' roughly, by Newton-Schulz steps in bfloat16."""
    a, b, c = _NEWTON_SCHULZ
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.t() if tall else matrix).bfloat16()
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(_NEWTON_SCHULZ_STEPS):
        gram = x @ x.t()
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.t() if tall else x).to(matrix.dtype)


RULES: dict[str, Callable[[Tensor, State, dict[str, Any]], Tensor]] = {
    "adam": adam,
    "adam_on_part": adam_on_part,
    "adam_mini": adam_mini,
    "galore": galore,
    "apollo": apollo,
    "muon": muon,
}
