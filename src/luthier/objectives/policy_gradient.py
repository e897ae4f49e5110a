"""What objectives over rollouts share: ratios, surrogates, estimates of the KL divergence, sums, advantages.

Shapes: N predictions, S segments, one an answer, G answers of a group, T tokens of one answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from luthier.core.batch import PackedBatch

Ratio = Literal["token", "sequence", "sequence_token"]
Surrogate = Literal["clipped", "weighted", "plain"]
Aggregation = Literal["answers", "tokens", "limit", "sums"]
Baseline = Literal["group", "others", "none"]
Estimate = Literal["k1", "k2", "k3"]
LARGEST_EXPONENT = 20.0
"""Exponentials go on straight behind this, so that no ratio, and no gradient of one, is infinite."""
DEVIATION_EPSILON = 1e-4


class PolicyTerm(NamedTuple):
    """The policy's loss of every token, [N] each."""

    loss: Tensor
    ratio: Tensor
    is_low: Tensor
    """True where the lower bound of the ratio counts."""
    is_high: Tensor
    """True where the upper bound counts."""


def policy_term(
    batch: PackedBatch, logp_N: Tensor, *, ratio: Ratio, surrogate: Surrogate, low: float, high: float
) -> PolicyTerm:
    """Return the policy's loss of every token; ratios may lie between 1 - low and 1 + high.

    Without the stream "old_logp" the policy is the one that answered: the ratio is 1, with a gradient. The stream
    "correction", where there is one, weighs the loss.
    """
    advantage_N = batch.streams["advantage"]
    ratio_N = exp(_LOG_RATIOS[ratio](batch, logp_N, batch.streams.get("old_logp", logp_N.detach())))
    term = _SURROGATES[surrogate](logp_N, ratio_N, advantage_N, 1 - low, 1 + high)
    if "correction" not in batch.streams:
        return term
    return term._replace(loss=term.loss * batch.streams["correction"])


def exp(x_N: Tensor) -> Tensor:
    """Return e to the x, along the tangent behind `LARGEST_EXPONENT`.

    >>> import torch
    >>> exp(torch.tensor([0.0, 21.0])).div(torch.tensor(20.0).exp()).round().tolist()
    [0.0, 2.0]
    """
    return x_N.clamp(max=LARGEST_EXPONENT).exp() * (1 + (x_N - LARGEST_EXPONENT).relu())


def kl_estimate(kind: Estimate, logp_N: Tensor, other_N: Tensor) -> Tensor:
    """Return estimates of KL(p || other) at tokens drawn from p, [N], in nats.

    Schulman, "Approximating KL Divergence" (2020): with d = log p - log other, k1 is d, k2 is d^2 / 2, and k3 is
    exp(-d) + d - 1, which is never negative and right on average.
    """
    return _ESTIMATES[kind](logp_N - other_N)


def summed(batch: PackedBatch, kind: Aggregation, loss_N: Tensor) -> Tensor:
    """Return the sum over the batch, a scalar: what `counted` divides."""
    weight_N = batch.weight
    if kind == "answers":
        weight_N = weight_N / _lengths(batch)[batch.segment_ids]
    return (loss_N * weight_N).sum()


def counted(batch: PackedBatch, kind: Aggregation) -> Tensor:
    """Return the denominator, a scalar, from the batch alone."""
    return _COUNTS[kind](batch)


def group_advantages(rewards_G: Tensor, baseline: Baseline, *, scale: bool) -> Tensor:
    """Return the advantages of the answers to one prompt, [G], float64; exactly 0 where rewards do not differ.

    `baseline`: taken from each reward: the mean of the group, that of the other answers, or nothing; `scale`: divide
    by the group's unbiased deviation + 1e-4.
    """
    rewards_G = rewards_G.double()
    if baseline == "none":
        return rewards_G
    number = len(rewards_G)
    if number < 2 or bool((rewards_G == rewards_G[0]).all()):
        return rewards_G.new_zeros(number)
    centered_G = rewards_G - rewards_G.mean()
    if baseline == "others":  # s - (sum - s) / (G - 1)
        centered_G = centered_G * number / (number - 1)
    return centered_G / (rewards_G.std() + DEVIATION_EPSILON) if scale else centered_G


def rewards_to_go(score: Tensor, penalty_T: Tensor) -> Tensor:
    """Return what is still to come at each token, [T]: the score, which stands at the end, less the penalties."""
    return score - penalty_T.flip(0).cumsum(0).flip(0)


def generalized_advantages(reward_T: Tensor, value_T: Tensor, gamma: float, lam: float) -> Tensor:
    """Return A_t = d_t + gamma lam A_(t+1), d_t = r_t + gamma V_(t+1) - V_t, [T]: arXiv:1506.02438, equation 16.

    Nothing follows the last token.
    """
    rewards, values = _plain_numbers(reward_T), _plain_numbers(value_T)
    advantages: list[float] = []
    after = next_value = 0.0
    for reward, value in zip(reversed(rewards), reversed(values), strict=True):
        after = reward + gamma * next_value - value + gamma * lam * after
        next_value = value
        advantages.append(after)
    return reward_T.new_tensor(advantages[::-1])


def adapted_kl_coef(current: float, measured: float, target: float, num_answers: int, horizon: float) -> float:
    """Return the coefficient that brings the KL divergence nearer to `target`: arXiv:1909.08593, section 2.2.

    >>> round(adapted_kl_coef(0.1, 12.0, 6.0, 500, 10000), 6)
    0.101
    """
    error = min(max(measured / target - 1, -0.2), 0.2)
    return current * (1 + error * num_answers / horizon)


def watched(
    batch: PackedBatch, term: PolicyTerm, logp_N: Tensor, entropy_N: Tensor | None
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return name -> (sum over tokens, number of tokens) of what tells how far the policy has moved."""
    import torch

    count, logp_N = batch.weight.sum(), logp_N.detach()
    found = {"policy/ratio": term.ratio, "policy/clip_low": term.is_low, "policy/clip_high": term.is_high}
    if entropy_N is not None:
        found["policy/entropy"] = entropy_N
    with torch.no_grad():
        if "old_logp" in batch.streams:
            found["policy/kl_old"] = kl_estimate("k3", batch.streams["old_logp"], logp_N)
        if "ref_logp" in batch.streams:
            found["policy/kl"] = kl_estimate("k3", logp_N, batch.streams["ref_logp"])
        return {name: ((x_N * batch.weight).sum(), count) for name, x_N in found.items()}


def largest(ratio_N: Tensor) -> dict[str, Tensor]:
    """Return the largest ratio; 0 where nothing is predicted."""
    return {"policy/ratio_max": ratio_N.detach().amax() if len(ratio_N) else ratio_N.new_zeros(())}


def _plain_numbers(x_T: Tensor) -> list[float]:
    return x_T.tolist()  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


def _lengths(batch: PackedBatch) -> Tensor:
    return batch.sum_by_segment(batch.weight).clamp(min=1e-6)


def _by_token(_: PackedBatch, logp_N: Tensor, old_N: Tensor) -> Tensor:
    return logp_N - old_N


def _by_sequence(batch: PackedBatch, logp_N: Tensor, old_N: Tensor) -> Tensor:
    """arXiv:2507.18071, equation 7: the mean over the tokens of an answer, the same at each of them."""
    mean_S = batch.sum_by_segment((logp_N - old_N) * batch.weight) / _lengths(batch)
    return mean_S[batch.segment_ids]


def _by_sequence_and_token(batch: PackedBatch, logp_N: Tensor, old_N: Tensor) -> Tensor:
    """arXiv:2507.18071, equation 14: the value of the sequence's ratio, the gradient of each token's."""
    return _by_sequence(batch, logp_N, old_N).detach() + logp_N - logp_N.detach()


def _clipped(_: Tensor, ratio_N: Tensor, advantage_N: Tensor, least: float, most: float) -> PolicyTerm:
    """arXiv:1707.06347, equation 7."""
    import torch

    loss_N = -torch.minimum(ratio_N * advantage_N, ratio_N.clamp(least, most) * advantage_N)
    ratio_N = ratio_N.detach()
    return PolicyTerm(loss_N, ratio_N, (ratio_N < least) & (advantage_N < 0), (ratio_N > most) & (advantage_N > 0))


def _weighted(logp_N: Tensor, ratio_N: Tensor, advantage_N: Tensor, least: float, most: float) -> PolicyTerm:
    """arXiv:2506.13585, equations 4 and 5: the bounded ratio is a weight, so that every token keeps its gradient."""
    ratio_N = ratio_N.detach()
    loss_N = -ratio_N.clamp(least, most) * advantage_N * logp_N
    return PolicyTerm(loss_N, ratio_N, ratio_N < least, ratio_N > most)


def _plain(logp_N: Tensor, ratio_N: Tensor, advantage_N: Tensor, _least: float, _most: float) -> PolicyTerm:
    """REINFORCE (Williams 1992): the ratio is watched and does not count."""
    never_N = ratio_N.detach() < 0
    return PolicyTerm(-advantage_N * logp_N, ratio_N.detach(), never_N, never_N)


def _number_of_answers(batch: PackedBatch) -> Tensor:
    return batch.weight.new_tensor(float(batch.num_segments))


_LOG_RATIOS: Mapping[Ratio, Callable[[PackedBatch, Tensor, Tensor], Tensor]] = {
    "token": _by_token,
    "sequence": _by_sequence,
    "sequence_token": _by_sequence_and_token,
}
_SURROGATES: Mapping[Surrogate, Callable[[Tensor, Tensor, Tensor, float, float], PolicyTerm]] = {
    "clipped": _clipped,
    "weighted": _weighted,
    "plain": _plain,
}
_ESTIMATES: Mapping[Estimate, Callable[[Tensor], Tensor]] = {
    "k1": lambda d_N: d_N,
    "k2": lambda d_N: d_N**2 / 2,
    "k3": lambda d_N: exp(-d_N) + d_N - 1,
}
_COUNTS: Mapping[Aggregation, Callable[[PackedBatch], Tensor]] = {
    "answers": _number_of_answers,
    "tokens": lambda batch: batch.weight.sum(),
    "limit": lambda batch: batch.tags["limit"].sum(),
    "sums": _number_of_answers,
}
