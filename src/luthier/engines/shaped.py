"""What a request changes of the distribution of its next token, and what it asks to know of it.

Rows that ask for nothing never come here. Shapes: N rows, V vocabulary, K reported tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from luthier.core.errors import ModelError
from luthier.engines.sample import choose, not_finite
from luthier.engines.shaping import ScoredToken

if TYPE_CHECKING:
    from collections.abc import Sequence

    from luthier.engines.requests import Growing, Request


@dataclass(frozen=True, slots=True)
class Drawn:
    """The next token of an answer, and its log-probability under what drew it where that is not the model."""

    token: ScoredToken
    drawn_logp: float | None


def draw_next(rows: Sequence[Growing], logits_NV: Tensor) -> list[Drawn | Exception]:
    """Return the next token of each answer, or why it has none. Rows that are drawn in one way are drawn together."""
    found: list[Drawn | Exception] = [not_finite()] * len(rows)
    by_way: dict[tuple[object, ...], list[int]] = {}
    for place, growing in enumerate(rows):
        by_way.setdefault(_way(growing.request), []).append(place)
    for way, places in by_way.items():
        part_NV = logits_NV if len(places) == len(rows) else logits_NV[places]
        chosen = [rows[place] for place in places]
        shaped_NV = None
        if way[-1]:
            shaped_NV, errors = _shaped(chosen, part_NV)
            for row, error in errors.items():
                found[places[row]] = error
            kept = [row for row in range(len(places)) if row not in errors]
            places, chosen = [places[row] for row in kept], [chosen[row] for row in kept]
            part_NV, shaped_NV = part_NV[kept], shaped_NV[kept]
        _draw_alike(places, chosen, part_NV, shaped_NV, found)
    return found


def _draw_alike(
    places: list[int],
    rows: list[Growing],
    logits_NV: Tensor,
    shaped_NV: Tensor | None,
    found: list[Drawn | Exception],
) -> None:
    if not rows:
        return
    tokens, logps, drawn = choose(logits_NV, rows[0].request.how, [row.draws for row in rows], shaped_NV)
    tops = most_probable_of(logits_NV, [row.request.shaping.top_logprobs for row in rows])
    for row, place in enumerate(places):
        if math.isfinite(logps[row]):
            scored = ScoredToken(tokens[row], logps[row], tops[row])
            found[place] = Drawn(scored, None if drawn is None else drawn[row])


def _way(request: Request) -> tuple[object, ...]:
    """Return what rows that are drawn together have in common; the last entry: something is asked beyond that."""
    how = request.how
    return how.temperature, how.top_p, how.top_k, how.min_p, is_shaped(request)


def is_shaped(request: Request) -> bool:
    """Tell whether a request changes the distribution by more than temperature and cuts, or asks about it."""
    asked = request.shaping
    return bool(
        request.how.repetition_penalty != 1.0
        or asked.presence_penalty
        or asked.frequency_penalty
        or asked.logit_bias
        or asked.guide
        or asked.top_logprobs
    )


def most_probable_of(logits_NV: Tensor, counts: Sequence[int]) -> list[tuple[tuple[int, float], ...]]:
    """Return the `counts` most probable tokens of each row with their log-probabilities, the best first."""
    most = min(max(counts, default=0), logits_NV.shape[1])
    if most == 0:
        return [()] * len(counts)
    values_NK, tokens_NK = logits_NV.topk(most)
    logps_NK = values_NK - torch.logsumexp(logits_NV, -1, keepdim=True)
    return [
        tuple(zip(tokens[:count], logps[:count], strict=True))
        for tokens, logps, count in zip(tokens_NK.tolist(), logps_NK.tolist(), counts, strict=True)
    ]


def _shaped(rows: Sequence[Growing], logits_NV: Tensor) -> tuple[Tensor, dict[int, Exception]]:
    """Return logits as each row's request wants them, and what kept rows from it."""
    out_NV = logits_NV.clone()
    errors: dict[int, Exception] = {}
    for place, (growing, row_V) in enumerate(zip(rows, out_NV, strict=True)):
        _penalize(growing, row_V)
        if growing.guide is not None:
            try:
                _mask(row_V, growing.guide.allowed_V())
            except Exception as error:  # noqa: BLE001  the guide belongs to one request, and others go on
                errors[place] = error
    return out_NV, errors


def _penalize(growing: Growing, row_V: Tensor) -> None:
    """Change a row in place, in the order of vLLM: biases, repetition (arXiv:1909.05858), frequency and presence."""
    request, device = growing.request, row_V.device
    asked, repetition = request.shaping, request.how.repetition_penalty
    if asked.logit_bias:
        index = torch.tensor(list(asked.logit_bias), device=device)
        row_V[index] += torch.tensor(list(asked.logit_bias.values()), dtype=row_V.dtype, device=device)
    if repetition != 1.0:
        index = torch.tensor(sorted(set(growing.sequence[request.num_virtual :])), device=device)
        values = row_V[index]
        row_V[index] = torch.where(values > 0, values / repetition, values * repetition)
    if growing.times:
        index = torch.tensor(list(growing.times), device=device)
        times = torch.tensor(list(growing.times.values()), dtype=row_V.dtype, device=device)
        row_V[index] -= asked.frequency_penalty * times + asked.presence_penalty


def _mask(row_V: Tensor, allowed_V: Tensor | None) -> None:
    """Leave a row with the tokens that are allowed; behind the end of `allowed_V` none is."""
    if allowed_V is None:
        return
    if not bool(allowed_V.any()):
        raise ModelError("the guide of this answer allows no token here", code="model_guide")
    size = len(allowed_V)
    row_V[:size].masked_fill_(~allowed_V.to(row_V.device), float("-inf"))
    row_V[size:] = float("-inf")
