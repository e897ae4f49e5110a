"""Prompts -> answers -> rewards -> advantages -> packed windows: what an objective over rollouts learns from.

To the loop a collector is a loader whose windows are made when they are asked for, with the weights of that moment.
"""

from __future__ import annotations

import math
import random
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from math import ceil
from typing import TYPE_CHECKING, Any

import torch

from luthier.core.errors import TrainingError
from luthier.core.types import Sampling, Segment
from luthier.data.loader import Cursor, Window
from luthier.data.pack import pack
from luthier.training import credit, rollout_scores
from luthier.training import groups as groups_of
from luthier.training.episodes import Episode, Group, answer_prompts, check_answered
from luthier.training.rollout_state import Carried, Sizes
from luthier.training.samples import write_groups

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from luthier.config.rollout import RolloutConfig
    from luthier.core.batch import PackedBatch
    from luthier.core.protocols import Engine, Environment, RolloutObjective
    from luthier.data.prompts import PromptOrder, PromptRow
    from luthier.data.template import ChatTemplate
    from luthier.models.policy import Policy
    from luthier.models.reference import Reference
    from luthier.rewards.grading import Grader
    from luthier.runs.store import RunStore

TOKENS_TOGETHER = {True: 640, False: 16384}
"""Tokens of one forward pass, prompts counted once, on a processor (True) and on a GPU; a longer answer stands alone.

A processor gains nothing from more, and activations are the most of what learning needs."""


@dataclass(slots=True)
class Rollout:
    """The answers of one step."""

    groups: list[Group]
    """What is learned from; a group that stands in for another one is there twice."""
    seen: list[Group]
    cursor: Cursor
    metrics: dict[str, tuple[float, float]] = field(default_factory=dict[str, tuple[float, float]])
    peaks: dict[str, float] = field(default_factory=dict[str, float])


class Collector:
    """Makes the windows of a rollout objective."""

    def __init__(
        self,
        *,
        prompts: PromptOrder,
        held_out: Sequence[PromptRow],
        sizes: Sizes,
        objective: RolloutObjective,
        config: RolloutConfig,
        policy: Policy,
        reference: Reference | None,
        engine: Engine,
        grader: Grader,
        template: ChatTemplate,
        environment: Environment | None,
        run: RunStore,
        accelerator: Any,
        seed: int,
    ) -> None:
        self.prompts, self.held_out, self.sizes, self.seed = prompts, held_out, sizes, seed
        self.objective, self.config, self.policy, self.reference = objective, config, policy, reference
        self.engine, self.grader, self.template, self.environment = engine, grader, template, environment
        self.run, self.accelerator = run, accelerator
        self.between: Callable[[], None] = lambda: None
        """Called before a round of answers; the trainer leaves from here when it shall stop."""
        self.steps_per_epoch: int | None = ceil(len(prompts.rows) / sizes.prompts)
        self._version: int | None = None
        """Of the weights in the engine: none as long as it has those that it was made with, -1 while it rests."""
        self._pool = ThreadPoolExecutor(1, "rollout") if config.rollout_ahead else None
        self._ahead: Future[Rollout] | None = None
        self._complaint: str | None = None

    # ---- the story

    def windows(self, start: Cursor) -> Iterator[Window]:
        """Yield windows without end; each is made with the weights of the moment, or, ahead, with those before it."""
        carried = Carried(**{"kl_coef": self.objective.kl_coef, **start.numbers})
        if self._version is None:
            self._version = self.engine.version = int(carried.step)
        cursor = replace(start, numbers=carried.as_numbers())
        self.run.drop_samples(int(carried.step))
        while True:
            if self._ahead is None:
                self.between()
                self._adopt(int(cursor.numbers["step"]))
                rollout = self._collect(cursor)
                if self._pool is None:
                    self._rest()
            else:
                rollout, self._ahead = self._ahead.result(), None
                kl_coef = {"kl_coef": cursor.numbers["kl_coef"]}
                rollout.cursor = replace(rollout.cursor, numbers={**rollout.cursor.numbers, **kl_coef})
            if self._pool is not None:
                self._adopt(int(cursor.numbers["step"]))
                self._ahead = self._pool.submit(self._collect, rollout.cursor)
            window = self._window(rollout)
            cursor = window.next
            yield window

    def _rest(self) -> None:
        """Give the engine's memory to the learning."""
        if self.engine.keeps_weights:
            self.engine.rest()
            self._version = -1

    def close(self) -> None:
        """Give up what is under way."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        self.grader.close()

    def _adopt(self, version: int) -> None:
        if version != self._version:
            self.engine.sync(self.policy.model, version)
            self._version = version

    # ---- answers and rewards

    def _collect(self, cursor: Cursor) -> Rollout:
        """Answer prompts and grade the answers until there are groups enough."""
        began, carried = time.perf_counter(), Carried(**cursor.numbers)
        version, size, rank = int(carried.step), self.accelerator.num_processes, self.accelerator.process_index
        wanted, smallest, rounds = self.sizes.prompts // size, self.objective.smallest_group, 0
        kept: list[Group] = []
        seen: list[Group] = []
        resamples = self.objective.on_equal_rewards == "resample"
        while True:
            missing = self._most(wanted - len(kept))
            rows, cursor = self.prompts.take(cursor, missing * size)
            groups = self._answered(rows[rank::size], version, rounds, carried)
            rounds, seen = rounds + 1, [*seen, *groups]
            kept += [g for g in groups if not (resamples and g.is_flat(smallest))]
            if not resamples or self._most(wanted - len(kept)) <= 0:
                break
            if rounds == self.config.max_resample_rounds:
                there = int(self._sum(torch.tensor(float(len(kept)))))
                groups_of.too_few(there, self.sizes.prompts, rounds, stop=self.config.too_few_groups == "stop")
                break
        self._check_graded(seen)
        carried.step += 1
        has_nothing = groups_of.all_flat(seen, smallest) or not any(
            self._is_learned(e) for g in seen for e in g.episodes
        )
        is_flat = self._most(0 if has_nothing else 1) == 0
        carried.flat_steps = carried.flat_steps + 1 if is_flat else 0
        groups_of.watch_flat(seen, int(carried.flat_steps), self.config)
        draw = random.Random(f"{self.seed} {rank} {version} duplicates")
        kept = groups_of.exchange_flat(kept, self.objective, draw)
        metrics = groups_of.seen_metrics(seen, kept, list(self.grader.weights), smallest)
        metrics["rollout/rounds"] = (rounds, 1)
        metrics["rollout/staleness"] = (version - groups_of.mean_version(seen, version), 1)
        metrics["seconds_answering"] = (time.perf_counter() - began, 1)
        groups_of.say_cut_off(metrics, self.config)
        return Rollout(kept, seen, replace(cursor, numbers=carried.as_numbers()), metrics)

    def _answered(self, rows: Sequence[PromptRow], version: int, turn: int, carried: Carried) -> list[Group]:
        hows = [self._how(f"{version} {turn} {place}") for place in range(len(rows))]
        groups = answer_prompts(
            rows,
            self.engine,
            hows,
            self.config.num_generations,
            environment=self.environment,
            template=self.template,
            max_turns=self.config.max_turns,
        )
        check_answered(groups)
        self._grade(groups, normalize=self.config.combine_rewards == "normalize")
        graded = [e for g in groups for e in g.graded()]
        if self.config.score_scaling:
            self._take_in(carried, [e.reward for e in graded if e.reward is not None])
        credit.shape_rewards(graded, self.config, carried.deviation)
        return groups

    def _take_in(self, carried: Carried, rewards: Sequence[float]) -> None:
        """Add the rewards of every rank to the running sums."""
        x = torch.tensor(rewards, dtype=torch.float64)
        found = self._sum(torch.stack([x.new_tensor(float(len(x))), x.sum(), (x**2).sum()]))
        count, total, squares = (float(each) for each in found)
        carried.rewards, carried.reward_sum = carried.rewards + count, carried.reward_sum + total
        carried.reward_squares += squares

    def _how(self, place: str, temperature: float | None = None) -> Sampling:
        """Return how answers are drawn; each prompt of each step has numbers of its own."""
        config = self.config
        return Sampling(
            max_new_tokens=config.max_completion_length,
            temperature=config.rollout_temperature if temperature is None else temperature,
            top_p=config.rollout_top_p,
            top_k=config.rollout_top_k,
            sampling_seed=random.Random(f"{self.seed} {self.accelerator.process_index} {place}").getrandbits(62),
        )

    def _grade(self, groups: Sequence[Group], *, normalize: bool) -> None:
        episodes = [episode for group in groups for episode in group.episodes]
        grades = self.grader.grade([episode.answer for episode in episodes])
        self._complaint = grades.complaint or self._complaint
        for number, episode in enumerate(episodes):
            episode.rewards = {name: values[number] for name, values in grades.by_name.items()}
        for group in groups:
            credit.total_rewards(group, self.grader.weights, normalize=normalize)

    def _check_graded(self, groups: Sequence[Group]) -> None:
        """Raise TrainingError when no answer of any rank has a reward."""
        if not self._sum(torch.tensor(float(sum(len(group.graded()) for group in groups)))):
            raise TrainingError(self._complaint or "no answer has a reward", code="rewards_failed")

    # ---- what is learned from

    def _window(self, rollout: Rollout) -> Window:
        """Score, give credit and pack."""
        began, carried = time.perf_counter(), Carried(**rollout.cursor.numbers)
        groups = list({id(group): group for group in rollout.groups}.values())
        for episode in (episode for group in groups for episode in group.graded()):
            limit = self.config.max_completion_length
            episode.segment = episode.make_segment(limit) if self._is_learned(episode) else None
        segments = _segments(groups)
        self._score(segments, rollout)
        if self.objective.penalty != "none":
            kl = [float(credit.log_ratio(segment).sum()) for segment in segments]
            rollout.metrics["rollout/kl"] = (sum(kl), len(kl))
            rollout.metrics["rollout/kl_coef"] = (carried.kl_coef, 1)
        credit.assign_credit(groups, self.objective, carried.kl_coef, self._sum)
        segments = _segments(groups)
        if self.objective.whitens:
            credit.whiten(segments, self._sum)
        if self.config.old_logp == "engine":
            for segment in segments:
                segment.streams["old_logp"] = segment.streams["engine_logp"]
        rollout_scores.drop_streams(segments, self._streams)
        self._adapt(rollout, carried)
        advantages = [abs(e.advantage) for g in groups for e in g.graded() if e.advantage is not None]
        rollout.metrics["advantage"] = (sum(advantages), len(advantages))
        write_groups(self.run, rollout.seen, int(carried.step))
        updates = self._updates(rollout.groups, int(carried.step))
        rollout.metrics["seconds_scoring"] = (time.perf_counter() - began, 1)
        cursor = replace(rollout.cursor, numbers=carried.as_numbers())
        warms_up = carried.step <= self.config.critic_warmup_steps
        return Window(
            updates, cursor, self.prompts.passes(cursor), rollout.metrics, rollout.peaks, only_critic=warms_up
        )

    def _is_learned(self, episode: Episode) -> bool:
        return not (self.config.cut_off == "mask" and episode.is_cut_off)

    def _score(self, segments: Sequence[Segment], rollout: Rollout) -> None:
        objective, config = self.objective, self.config
        by_policy = self._scores_beforehand
        rollout_scores.score(
            segments,
            self.sizes.rows,
            TOKENS_TOGETHER[self.accelerator.device.type == "cpu"],
            policy=self.policy if by_policy else None,
            reads=objective.reads - {"entropy"},
            reference=self.reference,
            device=self.accelerator.device,
        )
        if by_policy:
            total, count, largest = rollout_scores.gap(segments)
            rollout.metrics["rollout/logp_gap"] = (total, count)
            rollout.peaks["rollout/logp_gap_max"] = largest
        if config.importance_cap:
            rollout_scores.weigh_by_engine(segments, config.importance_cap)

    @property
    def _scores_beforehand(self) -> bool:
        """Tell whether the policy looks at the answers before it learns from them."""
        objective, config = self.objective, self.config
        return (
            self.sizes.updates > 1
            or objective.penalty != "none"
            or "value" in objective.needs
            or config.importance_cap > 0
            or config.rollout_ahead > 0
        )

    @property
    def _streams(self) -> frozenset[str]:
        """Return what of the segments goes into batches: the same on every rank, whether it has answers or not."""
        config, beforehand, has_value = self.config, self._scores_beforehand, "value" in self.objective.needs
        wanted = {
            "advantage": True,
            "old_logp": beforehand or config.old_logp == "engine",
            "engine_logp": not beforehand,
            "ref_logp": self.reference is not None,
            "correction": config.importance_cap > 0,
            "old_value": has_value,
            "return": has_value,
        }
        return frozenset(name for name, is_wanted in wanted.items() if is_wanted)

    def _adapt(self, rollout: Rollout, carried: Carried) -> None:
        if "rollout/kl" not in rollout.metrics:
            return
        total, count = (float(x) for x in self._sum(torch.tensor(rollout.metrics["rollout/kl"], dtype=torch.float64)))
        if count:
            carried.kl_coef = self.objective.next_kl_coef(carried.kl_coef, total / count, int(count))

    def _updates(self, groups: Sequence[Group], step: int) -> list[list[PackedBatch]]:
        """Return the batches of every update; groups stay together, so that prompts are computed once."""
        sizes, draw = self.sizes, random.Random(f"{self.seed} {step} minibatches")
        updates: list[list[PackedBatch]] = []
        for _ in range(sizes.epochs):
            order = list(groups) if sizes.updates == 1 else draw.sample(list(groups), len(groups))
            parts = rollout_scores.chunks(_segments(order), sizes.updates // sizes.epochs)
            updates += [batches for part in parts if (batches := self._batches(part))]
        return updates

    def _batches(self, segments: Sequence[Segment]) -> list[PackedBatch]:
        """Return the batches of one update; every rank has the same number, empty ones where it has no more answers."""
        tokens = TOKENS_TOGETHER[self.accelerator.device.type == "cpu"]
        packed = [pack([[each] for each in part]) for part in rollout_scores.split(segments, self.sizes.rows, tokens)]
        missing = self._most(len(packed)) - len(packed)
        if not missing:
            return packed
        spare = pack([[segments[0] if segments else self._placeholder()]]).without_predictions()
        return [*packed, *[spare] * missing]

    def _placeholder(self) -> Segment:
        """Return a sequence for a rank that has no answer to learn from."""
        tokens = [self.prompts.rows[0].tokens[0]] * 2
        streams = {name: [0.0, 0.0] for name in self._streams}
        return Segment(tokens=tokens, weight=[0.0, 1.0], streams=streams, tags={"limit": 1.0})

    # ---- held-out prompts

    def evaluate(self) -> dict[str, float]:
        """Answer the held-out prompts greedily and return mean rewards, length and the share of cut-off answers."""
        if self._ahead is not None:
            self._ahead.exception()
        if self._version is not None:
            self._version = None
            self._adopt(-1)
        how = replace(self._how("held out", temperature=0.0), top_p=1.0, top_k=0)
        rows = self.held_out[self.accelerator.process_index :: self.accelerator.num_processes]
        groups = answer_prompts(
            rows,
            self.engine,
            [how] * len(rows),
            1,
            environment=self.environment,
            template=self.template,
            max_turns=self.config.max_turns,
        )
        self._rest()
        self._grade(groups, normalize=False)
        self._check_graded(groups)
        episodes = [episode for group in groups for episode in group.episodes]
        found: dict[str, list[float]] = {"reward": [e.reward for e in episodes if e.reward is not None]}
        for name in self.grader.weights:
            found[f"reward/{name}"] = [x for e in episodes if (x := e.rewards[name]) is not None]
        found["tokens"] = [len(e.answer.completion.tokens) for e in episodes]
        found["cut_off"] = [float(e.is_cut_off) for e in episodes]
        sums = self._sum(torch.tensor([[sum(x), len(x)] for x in found.values()], dtype=torch.float64)).tolist()
        return {n: total / count if count else math.nan for n, (total, count) in zip(found, sums, strict=True)}

    # ---- ranks

    def _sum(self, value: torch.Tensor) -> torch.Tensor:
        return self.accelerator.reduce(value.to(self.accelerator.device), reduction="sum")

    def _most(self, value: int) -> int:
        """Return the largest of all ranks' numbers."""
        if self.accelerator.num_processes == 1:
            return value
        return int(self.accelerator.gather(torch.tensor([value], device=self.accelerator.device)).max())


def _segments(groups: Sequence[Group]) -> list[Segment]:
    return [episode.segment for group in groups for episode in group.graded() if episode.segment is not None]
