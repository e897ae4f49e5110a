"""From rewards to advantages: by hand."""

import math
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from luthier.config.rollout import RolloutConfig
from luthier.core.errors import TrainingError
from luthier.core.types import Answer, Completion, Example
from luthier.data.prompts import PromptRow
from luthier.objectives.ppo import Ppo
from luthier.training import credit, groups
from luthier.training.episodes import Episode, Group
from luthier.training.rollout_scores import chunks, gap, weigh_by_engine
from luthier.training.rollout_state import Carried


def episode(reward, tokens=(5, 6, 7), finish="stop", logp=None, **rewards):
    completion = Completion(prompt_tokens=(1, 2), tokens=tokens, finish_reason=finish, logp=logp)
    made = Episode(Answer(example=Example(), completion=completion), rewards=rewards or {"r": reward}, reward=reward)
    made.segment = made.make_segment(8)
    return made


def group(*rewards, **options):
    return Group(PromptRow(Example(origin="rows:1"), (1, 2)), [episode(r, **options) for r in rewards])


def objective(**facts):
    base = {
        "penalty": "none",
        "smallest_group": 2,
        "on_equal_rewards": "keep",
        "whiten_rewards": False,
        "advantages": lambda r: r - r.mean(),
        "credit": lambda a, p, v: (torch.full_like(p, float(a)) - p, None),
    }
    return SimpleNamespace(**{**base, **facts})


def alone(x):
    """The sum over all ranks where there is one."""
    return x


def test_rewards_are_added_up_with_their_weights_and_missing_ones_leave_the_answer_out() -> None:
    one = Group(PromptRow(Example(), (1,)), [episode(None, a=1.0, b=2.0), episode(None, a=None, b=2.0)])
    credit.total_rewards(one, {"a": 2.0, "b": 0.5}, normalize=False)
    assert [e.reward for e in one.episodes] == [3.0, None]
    assert [e.reward for e in one.graded()] == [3.0]


def test_normalizing_brings_each_reward_to_its_own_spread() -> None:
    """1, 3 -> -0.70711, 0.70711; 10, 30 likewise, so their sum is -1.41421, 1.41421 (but for the epsilon)."""
    one = Group(PromptRow(Example(), (1,)), [episode(None, a=1.0, b=10.0), episode(None, a=3.0, b=30.0)])
    credit.total_rewards(one, {"a": 1.0, "b": 1.0}, normalize=True)
    assert [e.reward for e in one.episodes] == pytest.approx([-math.sqrt(2), math.sqrt(2)], abs=2e-4)


def test_rewards_are_clipped_scaled_and_lowered() -> None:
    episodes = [episode(4.0), episode(0.0, finish="length")]
    credit.shape_rewards(episodes, RolloutConfig(score_clip=1.0, cut_off="penalize", cut_off_penalty=0.5), 1.0)
    assert [e.reward for e in episodes] == [1.0, -0.5]
    scaled = [episode(4.0), episode(0.0)]
    credit.shape_rewards(scaled, RolloutConfig(score_scaling=True), 2.0)
    assert [e.reward for e in scaled] == [2.0, 0.0]


def test_the_running_deviation_is_that_of_all_rewards() -> None:
    values = [4.0, 0.0, 1.5, 2.5]
    carried = Carried(rewards=4, reward_sum=sum(values), reward_squares=sum(x * x for x in values))
    assert carried.deviation == pytest.approx(np.std(values, ddof=1))
    assert Carried(rewards=2, reward_sum=2, reward_squares=2).deviation == Carried(rewards=1).deviation == 1.0


def test_every_learned_token_gets_the_advantage_of_its_answer() -> None:
    one = group(1.0, 0.0)
    credit.assign_credit([one], objective(), 0.0, alone)
    assert [e.advantage for e in one.episodes] == [0.5, -0.5]
    assert one.episodes[0].segment.streams["advantage"] == [0.0, 0.0, 0.5, 0.5, 0.5]


def test_penalties_by_answer_and_by_token() -> None:
    for penalty, expected in (("answer", [0.8, -0.8]), ("token", [1.0, -1.0])):
        one = group(2.0, 0.0)
        for each, ref in zip(one.episodes, (-1.5, -1.1), strict=True):
            credit.put_stream(each.segment, "old_logp", np.full(3, -1.0))
            credit.put_stream(each.segment, "ref_logp", np.full(3, ref))
        credit.assign_credit([one], objective(penalty=penalty), 1 / 3, alone)
        # k1 is 0.5 and 0.1 a token, three tokens: 2 - 0.5 and 0 - 0.1.
        assert [e.advantage for e in one.episodes] == pytest.approx([0.8 if penalty == "answer" else 1.0,
                                                                    -0.8 if penalty == "answer" else -1.0])  # fmt: skip
        assert expected[0] == pytest.approx(one.episodes[0].advantage)
        first = credit.stream_of(one.episodes[0].segment, "advantage")
        assert first == pytest.approx([expected[0] - (0.5 / 3 if penalty == "token" else 0)] * 3)


def test_a_group_with_one_reward_left_is_left_out() -> None:
    one = group(1.0, None)
    credit.assign_credit([one], objective(), 0.0, alone)
    assert one.episodes[0].segment is None


def test_an_advantage_that_is_not_finite_stops_the_run_and_names_the_row() -> None:
    with pytest.raises(TrainingError, match=r"rows:1 is not finite \(rewards of its group: \[1.0, 2.0\]\)"):
        credit.assign_credit([group(1.0, 2.0)], objective(advantages=lambda r: r / 0), 0.0, alone)


def test_whitening_brings_all_tokens_to_mean_0_and_deviation_1() -> None:
    one = group(1.0, 0.0, 5.0)
    credit.assign_credit([one], objective(), 0.0, alone)
    segments = [e.segment for e in one.episodes]
    credit.whiten(segments, alone)
    every = np.concatenate([credit.stream_of(s, "advantage") for s in segments])
    assert (every.mean(), every.std(ddof=1)) == pytest.approx((0.0, 1.0), abs=1e-6)


def with_values(one, penalties):
    for each, penalty in zip(one.episodes, penalties, strict=True):
        credit.put_stream(each.segment, "old_value", np.zeros(3))
        credit.put_stream(each.segment, "old_logp", np.array(penalty))
        credit.put_stream(each.segment, "ref_logp", np.zeros(3))
    return one


def test_rewards_are_whitened_by_all_tokens_and_their_mean_stays() -> None:
    """Rewards 0 0 1 and 0 0 0: mean 1/6, deviation sqrt(1/6); 0 becomes -0.24158, 1 becomes 2.20791."""
    one = with_values(group(1.0, 0.0), [(0, 0, 0), (0, 0, 0)])
    credit.assign_credit([one], Ppo(lam=1.0, whiten_rewards=True), 0.5, alone)
    returns = [credit.stream_of(e.segment, "return").tolist() for e in one.episodes]
    assert returns[0] == pytest.approx([1.7247449, 1.9663265, 2.2079081], abs=1e-6)
    assert returns[1] == pytest.approx([-0.7247449, -0.4831633, -0.2415816], abs=1e-6)
    assert [e.advantage for e in one.episodes] == [1.0, 0.0]


def test_whitened_rewards_are_scores_less_penalties() -> None:
    """Penalties of 0.5 x (2, 0, -2) make rewards -1 0 2 and 0 0 0; whitened as TRL's whiten(shift_mean=False)."""
    one = with_values(group(1.0, 0.0), [(2.0, 0.0, -2.0), (0, 0, 0)])
    credit.assign_credit([one], Ppo(lam=0.0, gamma=0.0, whiten_rewards=True), 0.5, alone)
    found = np.concatenate([credit.stream_of(e.segment, "advantage") for e in one.episodes])
    every = np.array([-1.0, 0, 2, 0, 0, 0])
    assert found == pytest.approx((every - every.mean()) / every.std(ddof=1) + every.mean(), abs=1e-6)


def test_rewards_are_whitened_over_all_ranks() -> None:
    """Two ranks with half of the answers each get what one with all of them gets."""
    whole = with_values(group(1.0, 0.0), [(2.0, 0.0, -2.0), (0, 0, 0)])
    parts = [with_values(group(1.0), [(2.0, 0.0, -2.0)]), with_values(group(0.0), [(0, 0, 0)])]
    objective, told = Ppo(whiten_rewards=True), []
    credit.assign_credit([whole], objective, 0.5, lambda x: told.append(x) or x)
    for part in parts:
        credit.assign_credit([part], objective, 0.5, lambda x: told.append(x) or told[0])
    assert (told[1] + told[2]).tolist() == told[0].tolist()
    for episode, part in zip(whole.episodes, parts, strict=True):
        here = credit.stream_of(part.episodes[0].segment, "advantage")
        assert here == pytest.approx(credit.stream_of(episode.segment, "advantage"), abs=1e-12)


@pytest.mark.parametrize("score", [0.0, 3.0])
def test_rewards_without_difference_keep_their_mean(score: float) -> None:
    one = Group(PromptRow(Example(), (1, 2)), [episode(score, tokens=(5,)), episode(score, tokens=(5,))])
    for each in one.episodes:
        credit.put_stream(each.segment, "old_value", np.zeros(1))
    credit.assign_credit([one], Ppo(kl_coef=0.0, whiten_rewards=True), 0.0, alone)
    found = [float(credit.stream_of(e.segment, "return")[0]) for e in one.episodes]
    assert found == pytest.approx([score, score], abs=1e-9)


def test_groups_without_difference_are_dropped_or_stood_in_for() -> None:
    flat, told, other = group(1.0, 1.0), group(1.0, 0.0), group(0.0, 1.0)
    draw = random.Random(1)
    assert groups.exchange_flat([flat, told], objective(), draw) == [flat, told]
    assert groups.exchange_flat([flat, told], objective(on_equal_rewards="drop"), draw) == [told]
    doubled = groups.exchange_flat([flat, told, other, flat], objective(on_equal_rewards="duplicate"), draw)
    assert doubled[:2] == [told, other]
    assert len(doubled) == 4
    assert flat not in doubled
    assert groups.exchange_flat([flat, flat], objective(on_equal_rewards="duplicate"), draw) == []


def test_steps_without_difference_are_warned_of_and_then_stop(caplog) -> None:
    seen, config = [group(0.0, 0.0, finish="length")], RolloutConfig(max_flat_steps=4)
    for steps in (1, 3):
        groups.watch_flat(seen, steps, config)
    assert not caplog.records
    groups.watch_flat(seen, 2, config)
    assert "in the last 2 steps no two answers" in caplog.text
    assert "the run stops after 4 such steps" in caplog.text
    with pytest.raises(TrainingError, match="no answer ends within max_completion_length 256: there is nothing to"):
        groups.watch_flat(seen, 4, config)


def test_an_answer_alone_is_not_a_step_without_difference() -> None:
    assert not groups.all_flat([group(1.0)], smallest=1)
    assert groups.all_flat([group(1.0)], smallest=2)
    assert groups.all_flat([group(1.0), group(1.0)], smallest=1)
    assert groups.all_flat([group(None)], smallest=1)
    assert not groups.all_flat([group(1.0), group(0.0)], smallest=1)


def test_metrics_of_a_step() -> None:
    told, flat = group(1.0, 0.0), group(1.0, 1.0, finish="length")
    found = groups.seen_metrics([told, flat], [told, told], ["r"], 2)
    assert found["reward"] == (3.0, 4)
    assert found["rollout/cut_off"] == (2, 4)
    assert found["rollout/flat_groups"] == (1, 2)
    assert found["rollout/dropped_prompts"] == (1, 1)
    assert found["rollout/duplicates"] == (1, 1)
    assert found["reward_std"] == (pytest.approx(math.sqrt(0.5)), 2)


def test_weights_against_the_engine_are_truncated() -> None:
    """old -1, engine -2: e = 2.718 becomes 2; old -2, engine -1: 0.36788 stays."""
    one = episode(1.0, logp=(-2.0, -1.0, -1.0))
    credit.put_stream(one.segment, "old_logp", np.array([-1.0, -2.0, -1.0]))
    weigh_by_engine([one.segment], 2.0)
    assert credit.stream_of(one.segment, "correction") == pytest.approx([2.0, math.exp(-1), 1.0])
    assert gap([one.segment]) == pytest.approx((2.0, 3.0, 1.0))


def test_chunks_keep_order_and_lose_nothing() -> None:
    for count in range(1, 9):
        parts = chunks(list(range(7)), count)
        assert [x for part in parts for x in part] == list(range(7))
        assert len(parts) == count
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
