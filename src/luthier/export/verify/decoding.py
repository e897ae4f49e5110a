"""Ask llama.cpp and transformers the same things: greedy answers, log-probabilities on the same ids, and endings.

llama.cpp answers first. Its answers are then read by the reference in one pass each: where the reference's most
probable token is the one that llama.cpp took at every place, the reference would have said the same.

Shapes: N positions, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from math import exp, sqrt
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


@dataclass(frozen=True, slots=True)
class Limits:
    """What a form may lose."""

    mean_kl: float
    top: float
    """Share of places where the most probable token is the same, at least."""
    tie: float | None = None
    """Log-probability by which the reference may prefer another token where answers must be identical; None: they
    need not be."""


LIMITS: dict[str, Limits] = {
    "F32": Limits(1e-8, 0.999, tie=1e-3),
    "F16": Limits(1e-4, 0.995, tie=1e-2),
    "BF16": Limits(5e-4, 0.99, tie=5e-2),
    "Q8_0": Limits(1e-3, 0.98),
    "Q6_K": Limits(5e-3, 0.95),
    "Q5_K": Limits(2e-2, 0.93),
    "Q5_0": Limits(3e-2, 0.90),
    "Q5_1": Limits(3e-2, 0.90),
    "Q4_K": Limits(8e-2, 0.85),
    "Q4_0": Limits(2e-1, 0.80),
    "Q4_1": Limits(2e-1, 0.80),
}
"""By the name that the file's type begins with."""
OTHER = Limits(0.5, 0.6)
"""Forms that promise less."""


def limits_of(form: str) -> Limits:
    """Return what a form may lose; `form` is the name of the file's type, such as Q4_K_M."""
    names = [name for name in LIMITS if form.upper().startswith(name)]
    return LIMITS[max(names, key=len)] if names else OTHER


@dataclass(slots=True)
class Row:
    """A prompt, what llama.cpp says to it, and how the reference sees that."""

    prompt: list[int]
    answer: list[int]
    text: str
    ended: bool
    """llama.cpp ended its answer, with the last of its tokens."""
    skipped: int = 0
    """Places in front that an earlier row has, too."""
    gaps: list[float] = field(default_factory=list)
    """At each token of the answer: by how much the reference prefers another one, 0 if it does not."""

    @property
    def ids(self) -> list[int]:
        """Return prompt and answer."""
        return [*self.prompt, *self.answer]


def ask(server: Llama, prompts: Sequence[list[int]], most: int = MOST) -> list[Row]:
    """Return llama.cpp's greedy answers."""
    found = server.ask("answer", prompts=[list(p) for p in prompts], most=most)
    rows = [Row(list(p), *each) for p, each in zip(prompts, found, strict=True)]
    for before, row in pairwise(rows):
        same = (i for i, (a, b) in enumerate(zip(before.ids, row.ids, strict=False)) if a != b)
        row.skipped = next(same, min(len(before.ids), len(row.ids)) - 1)
    return rows


def read(reference: Reference, row: Row, ends: Sequence[int]) -> Tensor:
    """Fill in how the reference sees an answer; return its logits behind each id of the row, [N, V]."""
    logits_NV = reference.logits(row.ids)
    first = len(row.prompt) - 1
    logp_NV = torch.log_softmax(logits_NV[first:], -1)
    top_N = logp_NV.amax(-1)
    taken = torch.tensor(row.answer)
    row.gaps = (top_N[: len(taken)] - logp_NV[torch.arange(len(taken)), taken]).tolist()
    if row.ended:  # which of its end tokens a model takes says nothing
        row.gaps[-1] = float(top_N[len(taken) - 1] - logp_NV[len(taken) - 1, list(ends)].amax())
    return logits_NV


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
        """Take in a row; the last place has nothing that follows, and what an earlier row has is left out."""
        wanted, found = (torch.log_softmax(each[row.skipped :].double(), -1) for each in (reference_NV, found_NV))
        self.kl.append((wanted.exp() * (wanted - found)).sum(-1))
        self.top.append(wanted.argmax(-1) == found.argmax(-1))
        target = torch.tensor(row.ids[row.skipped + 1 :])
        places = torch.arange(len(target))
        self.own.append(wanted[places, target])
        self.logp.append(found[places, target] - wanted[places, target])

    def take(self, reference_NV: Tensor, model: Llama, row: Row) -> Check:
        """Ask llama.cpp for the logits of a row, and take them in."""
        found = torch.from_numpy(model.logits(row.ids, 0).copy())
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
    same = sum(not any(gaps) for gaps in shown)
    worst = max((max(gaps) for gaps in shown if gaps), default=0.0)
    tied = sum(any(gaps) and max(gaps) < (tie or 0.0) for gaps in shown)
    numbers = {"prompts": len(rows), "same": same, "tied": tied, "worst_gap": worst}
    found = f"{same} of {len(rows)} answers are the same" + (f", {tied} but for ties" if tied else "")
    if tie is None:
        return Check(
            "greedy answers", True, found, f"for {form} reported only; its limits are those of distance", numbers
        )
    limit = f"the same {NUM_GREEDY} tokens; where the reference prefers another one by less than {tie:g} it is a tie"
    if worst >= tie:
        found += f"; the reference prefers another token by {worst:.3g}"
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
    passed = numbers["mean_kl"] <= limits.mean_kl and numbers["same_top"] >= limits.top
    return Check("distance", passed, found, limit, numbers)


def check_stopping(rows: Sequence[Row], reference: Reference, ends: Sequence[int], control: Sequence[str]) -> Check:
    """Compare how many answers end, and see that no control token is left in their text.

    Answers that part company end or not by chance; so only a difference to one side counts, beyond two deviations.
    """
    limit = (
        f"within {MOST} tokens as many answers end as the reference's, give or take two, or two deviations of chance"
    )
    other = [row for row in rows if any(row.gaps)]
    answers = reference.answers([row.prompt for row in other], MOST) if other else []
    theirs = {id(row): bool(answer) and answer[-1] in ends for row, answer in zip(other, answers, strict=True)}
    fewer = sum(theirs.get(id(row), row.ended) and not row.ended for row in rows)
    more = sum(row.ended and not theirs.get(id(row), row.ended) for row in rows)
    ended = sum(row.ended for row in rows)
    expected = ended + fewer - more
    visible = sorted({token for token in control for row in rows if token.strip() and token in row.text})
    numbers = {"prompts": len(rows), "ended": ended, "reference_ended": expected, "visible": len(visible)}
    found = f"{ended} of {len(rows)} end, of the reference's {expected}"
    if visible:
        found += f"; {visible[0]} stands in the text"
    alike = abs(fewer - more) <= max(2.0, 2 * sqrt(fewer + more)) and (ended > 0 or expected <= 2)
    return Check("stopping", alike and not visible, found, f"{limit}; no control token in a text", numbers)


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
