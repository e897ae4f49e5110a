"""What the metrics of a run say: one table of rules, judged over medians of the first and the last tenth.

A rule is silent about a metric that is not there or has too few points. Thresholds come from the papers and from what
training the objectives here showed; they are where a person should look, not where a run is lost.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from luthier.runs.series import WINDOW, View

if TYPE_CHECKING:
    from pathlib import Path

Look = Callable[[View], str | None]
"""Returns what was seen, "fell from 2 to 1", or None where all is well."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A metric, where it is healthy, and what to think and do where it is not."""

    metric: str
    healthy: str
    means: str
    do: str
    look: Look
    level: Literal["warning", "note"] = "warning"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a rule found."""

    level: Literal["warning", "note"]
    metric: str
    seen: str
    means: str
    do: str

    def __str__(self) -> str:
        return f"{self.metric} {self.seen}: {self.means}; {self.do}"


# ---- ways to look


def _above(metric: str, limit: float) -> Look:
    def look(view: View) -> str | None:
        last = view.last(metric)
        return f"is {last:.3g} (healthy: at most {limit:g})" if last is not None and last > limit else None

    return look


def _has_learned(view: View) -> bool:
    """Tell whether the reward rose by more than answers to one prompt differ in it."""
    ends = view.ends("reward")
    return ends is not None and ends[1] - ends[0] > view.spread("reward")


def _flat_groups(*, learned: bool) -> Look:
    look = _above("rollout/flat_groups", 0.5)
    return lambda view: look(view) if _has_learned(view) == learned else None


def _entropy_collapse(view: View) -> str | None:
    found = view.get("policy/entropy")
    # Whoever has learned what is right has no reason to be in doubt.
    if found is None or _has_learned(view):
        return None
    steps, values = found.smooth()
    for end, low in enumerate(values):
        before = [values[i] for i in range(end) if steps[i] >= steps[end] - 50]
        high = max(before, default=0.0)
        if low < 0.2 * high and values[-1] < 0.2 * high:
            return f"fell from {high:.3g} to {low:.3g} within 50 steps"
    return None


def _longer_without_gain(view: View) -> str | None:
    length, reward = view.ends("rollout/tokens"), view.ends("reward")
    if length is None or reward is None or length[1] < 1.5 * length[0]:
        return None
    gain = reward[1] - reward[0]
    if gain > 0.25 * view.spread("reward"):
        return None
    went = f"reward went from {reward[0]:.3g} to {reward[1]:.3g}"
    return f"grew from {length[0]:.0f} to {length[1]:.0f} tokens while {went}"


def _length_is_reward(view: View) -> str | None:
    length, tie = view.ends("rollout/tokens"), view.together("rollout/tokens", "reward")
    if length is None or tie is None or tie < 0.8 or length[1] < 1.5 * length[0] or _longer_without_gain(view):
        return None
    return f"grew from {length[0]:.0f} to {length[1]:.0f} tokens in step with reward (correlation {tie:.2f})"


def _kl_of_answer(view: View) -> float | None:
    """Return nats an answer; policy/kl is a mean over tokens."""
    whole, by_token, length = view.last("rollout/kl"), view.last("policy/kl"), view.last("rollout/tokens")
    if whole is not None or by_token is None or length is None:
        return whole
    return by_token * length


def _kl(low: float, high: float) -> Look:
    def look(view: View) -> str | None:
        kl = _kl_of_answer(view)
        return f"is {kl:.3g} nats an answer" if kl is not None and low < kl <= high else None

    return look


def _clipped(view: View) -> float | None:
    sides = [view.last("policy/clip_low"), view.last("policy/clip_high")]
    there = [side for side in sides if side is not None]
    return sum(there) if there else None


def _clips_much(view: View) -> str | None:
    share, limit = _clipped(view), 0.3 if view.objective == "gspo" else 0.2
    return f"is {share:.2f} (healthy: at most {limit})" if share is not None and share > limit else None


def _never_clips(view: View) -> str | None:
    found = [view.get(name, 20) for name in ("policy/clip_low", "policy/clip_high")]
    moved = view.get("policy/ratio_max", 20)
    if moved is None or not any(found) or any(any(each.values) for each in found if each):
        return None
    # With one update a rollout every ratio is 1, and there is nothing to clip.
    largest = max(moved.values)
    return f"was 0 in every step, though ratios went up to {largest:.3g}" if largest > 1.001 else None


def _reward_is_gamed(view: View) -> str | None:
    reward, held_out = view.ends("reward"), view.ends("eval_reward", 4)
    if reward is None or held_out is None:
        return None
    gain, gain_held_out = reward[1] - reward[0], held_out[1] - held_out[0]
    if gain <= 0.5 * view.spread("reward") or gain_held_out > 0.1 * gain:
        return None
    return f"went from {held_out[0]:.3g} to {held_out[1]:.3g} while reward rose from {reward[0]:.3g} to {reward[1]:.3g}"


def _reward_flat(view: View) -> str | None:
    ends = view.ends("reward", 50)
    if ends is None or ends[1] - ends[0] > 0.1 * view.spread("reward"):
        return None
    return f"went from {ends[0]:.3g} to {ends[1]:.3g} in {len(view.series['reward'])} steps"


def _stuck_pairs(metric: str) -> Look:
    def look(view: View) -> str | None:
        ends = view.ends(metric, 20)
        return f"is {ends[1]:.2f} after {view.series[metric].steps[-1]} steps" if ends and ends[1] < 0.55 else None

    return look


def _trivial_pairs(metric: str) -> Look:
    def look(view: View) -> str | None:
        found = view.get(metric)
        pairs = zip(*found.smooth(), strict=True) if found else ()
        step = next((step for step, value in pairs if value >= 0.995 and step <= 20), None)
        return None if step is None else f"is 1.0 after {step} steps"

    return look


def _chosen_falls(view: View) -> str | None:
    ends = view.ends("logps/chosen")
    return f"fell from {ends[0]:.0f} to {ends[1]:.0f} nats" if ends and ends[0] - ends[1] > 50 else None


def _loss_stays(view: View) -> str | None:
    ends = None if view.is_rollout else view.ends("loss", 20)
    if ends is None or ends[1] < ends[0] - 0.01 * abs(ends[0]):
        return None
    return f"went from {ends[0]:.4g} to {ends[1]:.4g} in {view.series['loss'].steps[-1]} steps"


def _overfits(view: View) -> str | None:
    found = view.get("eval_loss", 3)
    if found is None:
        return None
    best = min(range(len(found)), key=lambda i: found.values[i])
    low, last = found.values[best], found.values[-1]
    return f"was lowest at step {found.steps[best]} ({low:.3g}) and is {last:.3g} now" if last > 1.05 * low else None


def _spikes(view: View) -> str | None:
    found = view.get("grad_norm", 20)
    usual = sorted(found.values)[len(found) // 2] if found else 0.0
    if found is None or usual <= 0:
        return None
    high = [i for i, value in enumerate(found.values) if value > 10 * usual]
    if len(high) < max(1.0, len(found) / 100):
        return None
    worst = max(high, key=lambda i: found.values[i])
    times = "once" if len(high) == 1 else f"{len(high)} times"
    return (
        f"was over 10 times its median {times}, most at step {found.steps[worst]} "
        f"({found.values[worst]:.3g}, median {usual:.3g})"
    )


def _no_rate(view: View) -> str | None:
    found = view.get("learning_rate", 5)
    if found is None or sum(value == 0 for value in found.values) <= len(found) / 2:
        return None
    return f"was 0 in {sum(value == 0 for value in found.values)} of {len(found)} lines"


def _worse_than_mean(view: View) -> str | None:
    ends = view.ends("value/explained_variance", 20)
    return f"is {ends[1]:.2f}" if ends and ends[1] < 0 else None


# ---- the table

RULES: tuple[Rule, ...] = (
    Rule(
        "learning_rate", "above 0", "nothing is learned while it is 0",
        "check lr_scheduler_type, warmup_steps and max_steps", _no_rate,
    ),
    Rule(
        "loss", "falls", "the model does not learn these rows",
        "raise learning_rate, look at the rows with `luthier data preview`, or train longer", _loss_stays,
    ),
    Rule(
        "eval_loss", "falls, then stays", "the model learns its training rows by heart",
        "fewer epochs, more rows, or load_best_model_at_end: true", _overfits,
    ),
    Rule(
        "grad_norm", "no more than 10 times its median", "single batches pull the weights away",
        "lower learning_rate or max_grad_norm, and look at the rows of that step", _spikes, "note",
    ),
    Rule(
        "rewards/accuracies", "rises to 0.6-0.9", "the pairs are not told apart",
        "check that chosen and rejected are not swapped, raise learning_rate, or clean noisy pairs",
        _stuck_pairs("rewards/accuracies"),
    ),
    Rule(
        "rewards/accuracies", "below 1 in the first 20 steps", "the pairs are trivially separable, by length or form",
        "take pairs that differ in what matters", _trivial_pairs("rewards/accuracies"), "note",
    ),
    Rule(
        "accuracy", "rises to 0.6-0.9", "the reward model does not tell the pairs apart",
        "check that chosen and rejected are not swapped, raise learning_rate, or clean noisy pairs",
        _stuck_pairs("accuracy"),
    ),
    Rule(
        "accuracy", "below 1 in the first 20 steps", "the pairs are trivially separable, by length or form",
        "take pairs that differ in what matters", _trivial_pairs("accuracy"), "note",
    ),
    Rule(
        "logps/chosen", "falls by less than 50 nats", "good answers become improbable together with the bad ones",
        "lower learning_rate, raise beta, or add sft_weight", _chosen_falls,
    ),
    Rule(
        "reward", "rises", "nothing that the reward measures is learned",
        "read answers with `luthier runs samples`, raise learning_rate, or take easier prompts", _reward_flat, "note",
    ),
    Rule(
        "reward/failed", "at most 0.1", "answers without a reward are not learned from",
        "look at log.txt for what the rewards raise, or raise reward_time_limit_seconds", _above("reward/failed", 0.1),
    ),
    Rule(
        "eval_reward", "rises with reward", "the reward is being gamed, or the training prompts are learned by heart",
        "read answers with `luthier runs samples --best`, mend the reward, or take more prompts", _reward_is_gamed,
    ),
    Rule(
        "policy/entropy", "falls slowly", "the policy gives one answer to everything and explores no more",
        "widen the upper clip range, keep rollout_temperature: 1, or lower learning_rate", _entropy_collapse,
    ),
    Rule(
        "policy/kl", "at most 10 nats an answer", "the policy is leaving the model that it began as",
        "watch eval_reward and the answers", _kl(10, 20), "note",
    ),
    Rule(
        "policy/kl", "at most 20 nats an answer", "the policy has left the model that it began as",
        "raise the weight of the KL, or lower learning_rate", _kl(20, float("inf")),
    ),
    Rule(
        "policy/clip", "0.01-0.2, gspo to 0.3", "updates go further than the objective trusts",
        "lower learning_rate, or fewer rollout_epochs", _clips_much,
    ),
    Rule(
        "policy/clip", "0.01-0.2, gspo to 0.3", "the clip range is too wide to hold anything back",
        "narrow it, or raise rollout_minibatches", _never_clips, "note",
    ),
    Rule(
        "policy/ratio_max", "at most 10", "single tokens become over ten times as probable within a step",
        "lower learning_rate, or fewer rollout_epochs", _above("policy/ratio_max", 10), "note",
    ),
    Rule(
        "rollout/flat_groups", "at most 0.5", "most prompts teach nothing: all answers to them are equally good",
        "take prompts that are answered right at times, raise num_generations, or use dapo",
        _flat_groups(learned=False),
    ),
    Rule(
        "rollout/flat_groups", "at most 0.5", "reward has risen, and prompts that are solved teach nothing more",
        "stop here, or take harder prompts", _flat_groups(learned=True), "note",
    ),
    Rule(
        "rollout/tokens", "grows only with reward", "answers get longer without getting better",
        "set cut_off: penalize, or use dr_grpo, which does not favour long answers", _longer_without_gain,
    ),
    Rule(
        "rollout/tokens", "grows only with reward", "the reward may be paying for length",
        "read answers with `luthier runs samples --best`; set cut_off: penalize", _length_is_reward, "note",
    ),
    Rule(
        "rollout/cut_off", "at most 0.1", "answers are cut before they end, and graded as they stand",
        "raise max_completion_length, or set cut_off: mask or penalize", _above("rollout/cut_off", 0.1),
    ),
    Rule(
        "rollout/logp_gap", "at most 0.05", "the engine answers from other numbers than the trainer learns with",
        "set decode_dtype like dtype, or importance_cap: 2", _above("rollout/logp_gap", 0.05),
    ),
    Rule(
        "rollout/logp_gap_max", "at most 1", "for single tokens engine and trainer disagree by a factor of e",
        "set decode_dtype like dtype, or importance_cap: 2", _above("rollout/logp_gap_max", 1.0), "note",
    ),
    Rule(
        "rollout/staleness", "at most 1", "answers are from weights of several steps ago",
        "set rollout_ahead: 0, or importance_cap: 2", _above("rollout/staleness", 1.0),
    ),
    Rule(
        "rollout/rounds", "at most 3", "each step answers several times the prompts that it learns from",
        "take prompts that are answered right at times, or raise num_generations", _above("rollout/rounds", 3), "note",
    ),
    Rule(
        "value/explained_variance", "above 0", "the value model is worse than a constant",
        "raise critic_learning_rate or critic_warmup_steps", _worse_than_mean,
    ),
)  # fmt: skip


def diagnose(view: View) -> list[Finding]:
    """Return what the rules found, warnings first."""
    found = [
        Finding(rule.level, rule.metric, seen, rule.means, rule.do)
        for rule in RULES
        if (seen := rule.look(view)) is not None
    ]
    return sorted(found, key=lambda finding: finding.level != "warning")


def healthy_range(metric: str) -> str:
    """Return where a metric is healthy, or an empty text where no rule says."""
    name = "policy/clip" if metric in ("policy/clip_low", "policy/clip_high") else metric
    return "; ".join(dict.fromkeys(rule.healthy for rule in RULES if rule.metric == name))


def examine(run: Path) -> dict[str, Any]:
    """Return findings as records under "diagnosis", how many metrics were "judged", and how all "metrics" moved."""
    return examined(View.of(run))


def examined(view: View) -> dict[str, Any]:
    """Return what `examine` does, of metrics that are there already."""
    metrics: dict[str, dict[str, Any]] = {}
    for name, series in view.series.items():
        first, last = series.ends(max(1, min(WINDOW, len(series) // 2)))
        healthy = "" if name == "loss" and view.is_rollout else healthy_range(name)
        metrics[name] = {"first": first, "last": last, "healthy": healthy}
    findings = [{**asdict(finding), "text": str(finding)} for finding in diagnose(view)]
    return {"diagnosis": findings, "judged": view.judged, "metrics": metrics}


def table() -> str:
    """Return the rules as the table of docs/runs.md."""
    rows: dict[tuple[str, str], list[Rule]] = {}
    for rule in RULES:
        rows.setdefault((rule.metric, rule.healthy), []).append(rule)
    lines = ["| metric | healthy | otherwise |", "|---|---|---|"]
    for (metric, healthy), rules in rows.items():
        name = "`policy/clip_low` + `policy/clip_high`" if metric == "policy/clip" else f"`{metric}`"
        lines.append(f"| {name} | {healthy} | {'. Or '.join(f'{rule.means}: {rule.do}' for rule in rules)} |")
    return "\n".join(lines)
