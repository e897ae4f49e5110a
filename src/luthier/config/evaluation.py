"""Settings of evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from luthier.config.values import Names, Positive


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateConfig:
    """What is measured, when, and how."""

    do_train: bool | None = None
    """Let `luthier train` train; none means yes, unless do_eval or do_predict asks for something else."""
    do_eval: bool | None = None
    """Without do_train: let `luthier train` measure the loss on eval_dataset only. Runs with such rows end with it."""
    do_predict: bool | None = None
    """Let `luthier train` answer the rows of eval_dataset, behind training: generated_predictions.jsonl."""
    predict_with_generate: bool = True
    """Let do_predict answer and grade; false measures the loss alone."""
    eval_kinds: Names = ()
    """What is measured: loss, generate, choice, judge, harness, forgetting. None takes loss, generate where rows have
    answers, and whatever the settings below name."""
    eval_metrics: Names = ()
    """How answers are graded: exact, json, bleu, bleu_characters, rouge, chrf. None takes exact, and json where every
    expected answer is a JSON object."""
    eval_general_dataset: Names = ()
    """General text or conversations, to see what tuning has cost elsewhere (forgetting); named like `dataset`."""
    task: str | None = None
    """Multiple-choice benchmark (choice): a folder with dev, val and test, a file, or a name such as mmlu_test."""
    task_dir: str = "evaluation"
    """Folder of benchmarks that `task` names."""
    n_shot: Annotated[int, Field(ge=0)] = 5
    """Answered questions of the same subject in front of each multiple-choice question."""
    lang: Literal["auto", "en", "zh"] = "auto"
    """Language of the words around a multiple-choice question; auto takes that of the benchmark."""
    choice_prompt: Literal["plain", "chat"] = "plain"
    """plain: questions as the benchmark was published; chat: through the chat template, shots as earlier turns."""
    choice_score: Literal["letter", "text"] = "letter"
    """Compare log p of the letters, or of the whole choices, divided by their length in bytes."""
    eval_judge: dict[str, Any] = field(default_factory=dict[str, Any])
    """Model that says which of two answers is better (judge): base_url, model, api_key_env and others."""
    eval_tasks: Names = ()
    """Tasks of lm-evaluation-harness (harness)."""
    eval_tasks_dir: str | None = None
    """Folder with further tasks of your own, as YAML files of lm-evaluation-harness."""
    eval_tasks_limit: Annotated[int, Field(ge=0)] = 0
    """Most rows of each task; 0 takes all."""
    predict_batch_size: Positive = 32
    """Prompts generated together."""
    predict_samples: Annotated[int, Field(ge=0)] = 0
    """Most rows of each data set that are answered; 0 takes all."""
