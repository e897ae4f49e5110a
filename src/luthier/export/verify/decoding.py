"""Ask llama.cpp and transformers the same things: greedy answers, log-probabilities on the same ids, and endings.

Both answer the same prompts. Distances are taken on what the reference says, so they are those of the same ids for
every form of a model. Where the answers part, the reference reads what llama.cpp said, and tells how much it minds.

Shapes: N positions, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from math import exp
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from luthier.export.verify.llama import Llama
from luthier.export.verify.report import Check

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from luthier.export.verify.reference import Reference

NUM_GREEDY = 32
"""Tokens of an answer that are compared."""
MOST = 48
"""Tokens of an answer within which it may end."""

NEAR = 0.01
"""Share of the KL that a form may lose below which only tokens of almost the same probability change places."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a form may lose."""

    mean_kl: float
    top: float
    """Share of places where the most probable token is the same, at least."""
    tie: float | None = None
    """Log-probability by which the reference may prefer another token where answers must be identical; None: they
    need not be."""
    endings: int = 2
    """By how many of 20 prompts the number of answers that end may differ."""


LIMITS: dict[str, Limits] = {
    "F32": Limits(1e-8, 0.999, tie=1e-3),
    "F16": Limits(1e-4, 0.995, tie=1e-2),
    "BF16": Limits(1e-3, 0.98, tie=1e-1),
    "Q8_0": Limits(0.015, 0.93, endings=4),
    "Q6_K": Limits(0.05, 0.88, endings=6),
    "Q5_K": Limits(0.30, 0.72, endings=8),
    "Q5_0": Limits(0.40, 0.68, endings=8),
    "Q5_1": Limits(0.40, 0.68, endings=8),
    "Q4_K": Limits(0.30, 0.72, endings=8),
    "Q4_0": Limits(1.00, 0.50, endings=10),
    "Q4_1": Limits(1.00, 0.50, endings=10),
}
"""By the name that the file's type begins with. Two to three times what SmolLM2-135M loses: small models lose most."""
OTHER = Limits(2.0, 0.35, endings=12)
"""Forms that promise less."""


def limits_of(form: str) -> Limits:
    """Return what a form may lose; `form` is the name of the file's type, such as Q4_K_M."""
    names = [name for name in LIMITS if form.upper().startswith(name)]
    return LIMITS[max(names, key=len)] if names else OTHER


@dataclass(slots=True)
class Row:
    """A prompt, what llama.cpp says to it, and what the reference says."""

    prompt: list[int]
    answer: list[int]
    text: str
    ended: bool
    """llama.cpp ended its answer, with the last of its tokens."""
    wanted: list[int] = field(default_factory=list)
    """The reference's answer."""
    gaps: list[float] = field(default_factory=list)
    """At each token of llama.cpp's answer: by how much the reference prefers another one, 0 if it does not."""
    skipped: int = 0
    """Places in front that an earlier row has, too."""

    @property
    def ids(self) -> list[int]:
        """Return the prompt and the reference's answer."""
        return [*self.prompt, *self.wanted]


def ask(server: Llama, prompts: Sequence[list[int]], most: int = MOST) -> list[Row]:
    """Return llama.cpp's greedy answers."""
    found = server.ask("answer", prompts=[list(p) for p in prompts], most=most)
    return [Row(list(p), *each) for p, each in zip(prompts, found, strict=True)]


def answer(reference: Reference, rows: Sequence[Row], ends: Sequence[int], form: str) -> None:
    """Fill in what the reference says and, where a form must say the same, how it sees what llama.cpp says instead."""
    must = limits_of(form).tie is not None
    for row, said in zip(rows, reference.answers([row.prompt for row in rows], MOST), strict=True):
        row.wanted = list(said)
        row.gaps = _gaps(reference, row, ends) if must and row.answer != row.wanted else [0.0] * len(row.answer)
    for before, row in pairwise(rows):
        same = (i for i, (a, b) in enumerate(zip(before.ids, row.ids, strict=False)) if a != b)
        row.skipped = next(same, min(len(before.ids), len(row.ids)) - 1)


def _gaps(reference: Reference, row: Row, ends: Sequence[int]) -> list[float]:
    first = len(row.prompt) - 1
    logp_NV = torch.log_softmax(reference.logits([*row.prompt, *row.answer], first)[: len(row.answer)], -1)
    top_N, taken = logp_NV.amax(-1), torch.tensor(row.answer, dtype=torch.int64)
    found = (top_N - logp_NV[torch.arange(len(taken)), taken]).tolist()
    if row.ended:  # which of its end tokens a model takes says nothing
        found[-1] = float(top_N[-1] - logp_NV[-1, list(ends)].amax())
    return found


@dataclass(slots=True)
class Gap:
    """Distances between two models on the same ids, over all places so far."""

    kl: list[Tensor] = field(default_factory=list)
    logp: list[Tensor] = field(default_factory=list)
    """Of the token that follows: ours less the reference's."""
    own: list[Tensor] = field(default_factory=list)
    """Of the token that follows, under the reference."""
    top: list[Tensor] = field(default_factory=list)

    def add(self, reference_NV: Tensor, found_NV: Tensor, row: Row) -> None:
        """Take in the logits of a row from `row.skipped` on; the last place has nothing that follows."""
        wanted, found = (torch.log_softmax(each.double(), -1) for each in (reference_NV, found_NV))
        self.kl.append((wanted.exp() * (wanted - found)).sum(-1))
        self.top.append(wanted.argmax(-1) == found.argmax(-1))
        target = torch.tensor(row.ids[row.skipped + 1 :])
        places = torch.arange(len(target))
        self.own.append(wanted[places, target])
        self.logp.append(found[places, target] - wanted[places, target])

    def take(self, reference_NV: Tensor, model: Llama, row: Row) -> Check:
        """Ask llama.cpp for the logits of a row, and take them in."""
        found = torch.from_numpy(model.logits(row.ids, row.skipped).copy())
        if not torch.isfinite(found).all():
            return Check("distance", False, "llama.cpp's logits are not finite", "finite logits")
        self.add(reference_NV, found, row)
        return Check("distance", True, "", "")

    @property
    def mean_own(self) -> float:
        """Return the mean log-probability of a token under the reference."""
        return float(torch.cat(self.own).mean())

    def numbers(self) -> dict[str, float]:
        """Return what is reported."""
        moved = torch.cat(self.logp)
        return {
            "places": float(len(moved)),
            "mean_kl": float(torch.cat(self.kl).mean()),
            "max_kl": float(torch.cat(self.kl).max()),
            "mean_logp": float(moved.abs().mean()),
            "p99_logp": float(moved.abs().quantile(0.99)),
            "same_top": float(torch.cat(self.top).double().mean()),
            "perplexity_ratio": exp(-float(moved.mean())),
            "perplexity": exp(-self.mean_own),
        }


# ---- checks


def check_greedy(rows: Sequence[Row], form: str) -> Check:
    """Compare what both say when each always takes its most probable token."""
    tie = limits_of(form).tie
    shown = [row.gaps[:NUM_GREEDY] for row in rows]
    same = sum(row.answer[:NUM_GREEDY] == row.wanted[:NUM_GREEDY] for row in rows)
    worst = max((max(gaps) for gaps in shown if gaps), default=0.0)
    found = f"{same} of {len(rows)} answers are the same"
    if tie is None:
        limit = f"for {form} reported only; its limits are those of distance"
        return Check("greedy answers", True, found, limit, {"prompts": len(rows), "same": same})
    numbers = {"prompts": len(rows), "same": same, "worst_gap": worst}
    limit = f"the same {NUM_GREEDY} tokens; where the reference prefers another one by less than {tie:g} it is a tie"
    if same < len(rows):
        found += f"; in the others it prefers another token by {worst:.2g}" + (", a tie" if worst < tie else "")
    return Check("greedy answers", worst < tie, found, limit, numbers)


def check_distance(gap: Gap, form: str, gain: float | None = None) -> Check:
    """Hold the distance between the distributions against what the form may lose.

    `gain`: what training gained in log-probability of the same tokens, to be seen beside what the form costs.
    """
    limits, numbers = limits_of(form), gap.numbers()
    if gain is not None:
        numbers["trained_gain"] = gain
    limit = f"{form}: mean KL at most {limits.mean_kl:g}, same most probable token at least {limits.top:.1%}"
    found = (
        f"mean KL {numbers['mean_kl']:.2g}, same most probable token {numbers['same_top']:.1%}, "
        f"|log p| moves {numbers['mean_logp']:.2g} (99 %: {numbers['p99_logp']:.2g}), "
        f"perplexity x {numbers['perplexity_ratio']:.4f}"
    )
    near = numbers["mean_kl"] <= NEAR * limits.mean_kl
    if near and numbers["same_top"] < limits.top:
        found += "; so near that which of several tokens is first says nothing"
    passed = numbers["mean_kl"] <= limits.mean_kl and (near or numbers["same_top"] >= limits.top)
    return Check("distance", passed, found, limit, numbers)


def check_stopping(rows: Sequence[Row], ends: Sequence[int], control: Sequence[str], form: str) -> Check:
    """Compare how many answers end, and see that no control token is left in their text."""
    allowed = limits_of(form).endings
    limit = f"within {MOST} tokens as many answers end as the reference's, give or take {allowed}; no control token"
    ended, wanted = sum(row.ended for row in rows), sum(bool(row.wanted) and row.wanted[-1] in ends for row in rows)
    visible = sorted({token for token in control for row in rows if token.strip() and token in row.text})
    numbers = {"prompts": len(rows), "ended": ended, "reference_ended": wanted, "visible": len(visible)}
    found = f"{ended} of {len(rows)} end, of the reference's {wanted}"
    if visible:
        found += f"; {visible[0]} stands in the text"
    alike = abs(ended - wanted) <= allowed and (ended > 0 or wanted <= 2)
    return Check("stopping", alike and not visible, found, limit, numbers)


def check_stop_ids(model: Llama, ids: Sequence[int], name_of: Callable[[int], Any]) -> Check:
    """Ask llama.cpp whether it ends an answer with each id that should end one."""
    limit = "llama.cpp ends an answer with every id that the generation config names"
    ends = model.ask("ends", ids=list(ids))
    missing = [str(name_of(i)) for i, end in zip(ids, ends, strict=True) if not end]
    numbers = {"ids": len(ids), "missing": len(missing)}
    found = f"it goes on behind {', '.join(missing)}" if missing else f"{len(ids)} ids end an answer"
    return Check("stop ids", not missing, found, limit, numbers)


def check_runs(path: Path, prompts: Sequence[str]) -> Check:
    """See that llama.cpp loads a file and answers, where there is nothing to compare with."""
    limit = "llama.cpp loads it and answers"
    with Llama(path, "serve") as server:
        rows = ask(server, [ids or [0] for ids in server.ask("tokenize", texts=list(prompts), add_special=True)])
    numbers = {
        "prompts": len(rows),
        "ended": sum(row.ended for row in rows),
        "tokens": sum(len(r.answer) for r in rows),
    }
    return Check(
        "runs", True, f"{len(rows)} prompts answered, {numbers['ended']} answers end by themselves", limit, numbers
    )
