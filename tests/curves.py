"""Run directories with metrics that follow given curves."""

import json
import math
from collections.abc import Callable
from pathlib import Path

Curve = Callable[[int], float]


def flat(value: float) -> Curve:
    return lambda step: value


def line(first: float, last: float, steps: int = 100) -> Curve:
    return lambda step: first + (last - first) * min(1.0, (step - 1) / (steps - 1))


def noisy(curve: Curve, size: float) -> Curve:
    return lambda step: curve(step) + size * math.sin(12.9898 * step)


HEALTHY: dict[str, dict[str, Curve]] = {
    "sft": {
        "loss": noisy(line(2.1, 1.2), 0.2), "grad_norm": noisy(flat(1.0), 0.5), "learning_rate": line(1e-4, 0),
        "tokens_per_second": flat(900), "eval_loss": line(2.0, 1.3),
    },
    "dpo": {
        "loss": noisy(line(0.69, 0.5), 0.05), "grad_norm": flat(2), "learning_rate": line(5e-6, 0),
        "rewards/chosen": line(0, 0.3), "rewards/rejected": line(0, -0.6), "rewards/margins": line(0, 0.9),
        "rewards/accuracies": noisy(line(0.5, 0.78), 0.05), "logps/chosen": line(-120, -135),
        "logps/rejected": line(-130, -190), "eval_loss": noisy(line(0.68, 0.55), 0.004),
    },
    "rm": {"loss": line(0.7, 0.4), "accuracy": line(0.5, 0.8), "margin": line(0, 1.2), "grad_norm": flat(1)},
    "grpo": {
        "loss": noisy(flat(0.0), 0.05), "grad_norm": noisy(flat(0.3), 0.1), "learning_rate": flat(1e-6),
        "reward": noisy(line(0.2, 0.7), 0.05), "reward_std": flat(0.3), "reward/failed": flat(0),
        "policy/entropy": line(1.2, 0.7), "policy/kl": line(0, 0.02), "policy/ratio": flat(1), "policy/ratio_max": flat(1.6),
        "policy/clip_low": flat(0.01), "policy/clip_high": flat(0.02), "rollout/flat_groups": flat(0.3),
        "rollout/tokens": noisy(line(120, 160), 8), "rollout/cut_off": flat(0.03), "rollout/logp_gap": flat(0.004),
        "rollout/logp_gap_max": flat(0.4), "rollout/staleness": flat(0), "rollout/rounds": flat(1),
        "rollout/dropped_prompts": flat(0), "eval_reward": line(0.2, 0.6),
        "value/loss": line(0.4, 0.1), "value/explained_variance": line(-0.2, 0.6),
    },
}  # fmt: skip


def write(folder: Path, objective: str, curves: dict[str, Curve], steps: int = 100, every: int = 10) -> Path:
    """A run directory: training lines of each step, evaluations every tenth."""
    folder.mkdir(exist_ok=True)
    lines = []
    for step in range(1, steps + 1):
        values = {name: curve(step) for name, curve in curves.items() if not name.startswith("eval_")}
        lines.append({"kind": "train", "step": step, "epoch": step / steps, "tokens": 100 * step, **values})
        held_out = {name: curve(step) for name, curve in curves.items() if name.startswith("eval_")}
        if held_out and step % every == 0:
            lines.append({"kind": "eval", "step": step, **held_out})
    numbered = [json.dumps({"seq": number, **each}) for number, each in enumerate(lines, 1)]
    (folder / "events.jsonl").write_text("\n".join(numbered) + '\n{"seq": 999, "kind": "trai')
    (folder / "config.yaml").write_text(f"objective: {{name: {objective}}}\n")
    (folder / "status.json").write_text('{"state": "done"}')
    return folder
