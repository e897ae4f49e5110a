"""Train the examples of alignment and write down whether they learn: curves, a picture and a page.

python benchmarks/learning.py [--only NAME ...] [--runs FOLDER] [--page]

Each example is a YAML under examples/, run as it is. Its curve (evaluations and the time of every step) goes to
docs/results/NAME.jsonl; the page docs/alignment_results.md and its picture are made from those files alone, --page does
nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.kernels.cpu import processor_name

ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "docs/results", ROOT / "docs/alignment_results.md"
KEPT = (
    "eval_reward",
    "eval_rewards/accuracies",
    "eval_loss",
    "reward",
    "reward_std",
    "rewards/accuracies",
    "seconds",
    "seconds_answering",
    "seconds_learning",
    "rollout/rounds",
    "rollout/flat_groups",
    "rollout/tokens",
    "rollout/kl",
    "policy/entropy",
    "peak_memory_bytes",
)


@dataclass(frozen=True)
class Example:
    """A file to run, what it begins with, and what of it is shown."""

    name: str
    file: str
    metric: str
    overrides: tuple[str, ...] = ()
    shown: bool = True


PAIR, REWARD = "eval_rewards/accuracies", "eval_reward"
EXAMPLES = (
    Example("replies-sft", "replies/1_sft.yaml", "loss", shown=False),
    Example("replies-reward", "replies/2_reward_model.yaml", PAIR),
    Example("replies-ppo", "replies/3_ppo.yaml", REWARD),
    Example("replies-dpo", "replies/dpo.yaml", PAIR),
    Example("replies-orpo", "replies/orpo.yaml", PAIR),
    Example("replies-simpo", "replies/simpo.yaml", PAIR),
    Example("replies-kto", "replies/kto.yaml", PAIR),
    Example("largest-sft", "largest/sft.yaml", "loss", shown=False),
    *(
        Example(f"largest-{name}", "largest/grpo.yaml", REWARD, (f"stage={name}", f"output_dir=runs/largest-{name}"))
        for name in ("grpo", "dapo", "dupo", "gspo")
    ),
)


def run(example: Example, runs: Path) -> None:
    """Train one example and keep its curve."""
    shutil.rmtree(runs / "runs" / example.name, ignore_errors=True)
    began = time.monotonic()
    command = [sys.executable, "-m", "luthier", "train", str(ROOT / "examples" / example.file), *example.overrides]
    subprocess.run(command, check=True, cwd=runs, stdout=subprocess.DEVNULL)
    seconds = time.monotonic() - began
    lines = (runs / "runs" / example.name / "events.jsonl").read_text().splitlines()
    events = [event for event in map(json.loads, lines) if event["kind"] in ("train", "eval")]
    kept = [
        {"kind": e["kind"], "step": e["step"], **{k: _short(e[k]) for k in (*KEPT, example.metric) if k in e}}
        for e in events
    ]
    facts = {"kind": "run", "seconds": round(seconds, 1), "processor": processor_name(), "cores": os.cpu_count()}
    RESULTS.mkdir(exist_ok=True)
    text = "".join(json.dumps(line) + "\n" for line in [facts, *kept])
    (RESULTS / f"{example.name}.jsonl").write_text(text)
    print(
        example.name,
        facts["seconds"],
        [line.get(example.metric) for line in kept if line["kind"] == "eval"],
        flush=True,
    )


def _short(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value


def read(example: Example) -> list[dict[str, Any]]:
    """Return the lines of a kept curve."""
    return [json.loads(line) for line in (RESULTS / f"{example.name}.jsonl").read_text().splitlines()]


def evaluations(lines: list[dict[str, Any]], metric: str) -> list[tuple[int, float]]:
    """Return (step, value) of each evaluation."""
    return [(line["step"], line[metric]) for line in lines if line["kind"] == "eval" and metric in line]


def page() -> None:
    """Write the page and its picture."""
    curves = {example.name: read(example) for example in EXAMPLES}
    facts = curves["largest-grpo"][0]
    ppo = curves["replies-ppo"]
    steps = [line for line in ppo if line["kind"] == "train"]
    first, last = (evaluations(ppo, REWARD)[i][1] for i in (0, -1))
    spread = steps[0]["reward_std"]
    pipeline = ("replies-sft", "replies-reward", "replies-ppo")
    durations = [f"{curves[name][0]['seconds']:.0f} ({name.partition('-')[2]})" for name in pipeline]
    lines = [
        "# Do they learn?",
        "",
        "`make bench-learning` runs the examples of alignment as they are, with SmolLM2-135M on "
        f"{facts['cores']} cores ({facts['processor']}), and writes this page. The curves stand in `results/`; "
        "held-out rows name people, goods, troubles and numbers that no other row names.",
        "",
        "![held-out reward and accuracy by step](alignment_results.png)",
        "",
        "## SFT, reward model, PPO",
        "",
        "`examples/replies`: a shop that used to answer letters curtly, three times out of five; a reward model of "
        "which reply is the kinder one; PPO against it.",
        "",
        f"Reward of held-out letters, answered greedily: {first:.2f} before, {last:.2f} after {len(steps)} steps. The "
        f"deviation of the rewards of the first step is {spread:.2f}, so it rose by {(last - first) / spread:.1f} "
        f"deviations. Seconds: {', '.join(durations)}.",
        "",
        "## From pairs",
        "",
        "All begin with the same curt model. Accuracy is the share of held-out pairs whose kind reply is ahead: of the "
        "policy's own mean log-probabilities (`orpo`, `simpo`), of the reward model, or against the reference (`dpo`; "
        "`kto`: single answers), where the model as it began is right half of the time by definition.",
        "",
        "| | file | before | after | seconds |",
        "|---|---|---|---|---|",
    ]
    for example in EXAMPLES:
        if example.metric == PAIR:
            (_, before), *_, (_, after) = evaluations(curves[example.name], example.metric)
            seconds, file = curves[example.name][0]["seconds"], f"`{example.file}`"
            lines.append(f"| {example.name.partition('-')[2]} | {file} | {before:.2f} | {after:.2f} | {seconds:.0f} |")
    lines += ["", "## Right and wrong alone", "", *_groups(curves)]
    PAGE.write_text("\n".join(lines) + "\n")
    picture(curves)


def _groups(curves: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Return the table of the group objectives."""
    lines = [
        "`examples/largest`: which of five numbers is the largest? A short SFT teaches the form of an answer, from "
        "rows whose numbers are drawn by chance; then an answer is right or wrong. Same prompts, rate and seed.",
        "",
        "| | before | after | steps to 0.70 | steps | seconds in all | seconds a step | answering | rounds a step |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    per_step: dict[str, float] = {}
    for name in ("grpo", "dapo", "dupo", "gspo"):
        curve = curves[f"largest-{name}"]
        found = evaluations(curve, REWARD)
        train = [line for line in curve if line["kind"] == "train"]
        reached = next((str(step) for step, value in found if value >= 0.7), "-")
        seconds, answering, rounds = (
            statistics.mean(line[key] for line in train) for key in ("seconds", "seconds_answering", "rollout/rounds")
        )
        per_step[name] = seconds
        lines.append(
            f"| {name} | {found[0][1]:.2f} | {found[-1][1]:.2f} | {reached} | {len(train)} | {curve[0]['seconds']:.0f} "
            f"| {seconds:.2f} | {answering:.2f} | {rounds:.1f} |"
        )
    ratio = per_step["dapo"] / per_step["dupo"]
    return [
        *lines,
        "",
        f"A step of dapo takes {ratio:.2f} times as long as one of dupo here, over the whole run; the later a run, the "
        "more groups are all right, and the more often dapo answers again. Only grpo has a reference, as in its paper.",
    ]


def picture(curves: dict[str, list[dict[str, Any]]]) -> None:
    """Draw held-out reward and accuracy by step."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = (
        ("the largest of five: held-out success", [e for e in EXAMPLES if e.name.startswith("largest") and e.shown]),
        ("kind replies: held-out pair accuracy", [e for e in EXAMPLES if e.metric == PAIR]),
        ("kind replies: PPO, held-out reward", [e for e in EXAMPLES if e.name == "replies-ppo"]),
    )
    for axes, (title, examples) in zip(figure.subplots(1, 3), panels, strict=True):
        for example in examples:
            found = evaluations(curves[example.name], example.metric)
            axes.plot(*zip(*found, strict=True), "o-", label=example.name.partition("-")[2])
        axes.set_title(title)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(PAGE.with_suffix(".png"), dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[example.name for example in EXAMPLES])
    parser.add_argument("--runs", type=Path, default=ROOT)
    parser.add_argument("--page", action="store_true")
    options = parser.parse_args()
    if not options.page:
        for example in EXAMPLES:
            if example.name in options.only:
                run(example, options.runs)
    if all((RESULTS / f"{example.name}.jsonl").exists() for example in EXAMPLES):
        page()


if __name__ == "__main__":
    main()
