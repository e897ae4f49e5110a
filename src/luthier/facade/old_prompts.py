"""Prompts and answers cut to lengths that today's TRL has no argument for; the end of a prompt is kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from typing import Any

from luthier.core.errors import ConfigError, DependencyError
from luthier.core.log import say_once

Hook = Callable[[Any, Any, int | None, int | None], Any]


def cut_in(trainer: Any, kind: str, prompt: int | None, answer: int | None) -> None:
    """Make a trainer that is about to be built cut prompts and answers to so many tokens.

    Raises ConfigError for a trainer that has no place for it, and DependencyError where TRL's has moved.
    """
    if kind not in _HOOKS:
        raise ConfigError(f"max_prompt_length has no meaning for {kind}; leave it out")
    name, hook = _HOOKS[kind]
    original = getattr(trainer, name, None)
    if original is None:
        raise DependencyError(
            f"max_prompt_length: this version of TRL prepares prompts in another place than {kind}.{name}; "
            "leave it out, or run: pip install 'trl>=1.16,<1.17'"
        )
    setattr(trainer, name, hook(trainer, original, prompt, answer))
    limits = {"prompts": prompt, "answers": answer}
    told = " and ".join(f"{what} to {most} tokens" for what, most in limits.items() if most)
    say_once(f"{kind}: {told} are cut by luthier, because TRL does not any more; the end of a prompt is kept")


def _in_columns(trainer: Any, original: Any, prompt: int | None, answer: int | None) -> Any:
    """Cut the tokenized columns before rows without room for an answer are dropped."""

    def short(row: dict[str, Any]) -> dict[str, Any]:
        cut = {"prompt_ids": row["prompt_ids"][-prompt:]} if prompt else {}
        return cut | {name: row[name][:answer] for name in row if answer and name in _ANSWERS}

    def prepared(dataset: Any, processing_class: Any, args: Any, name: str) -> Any:
        unlimited = copy(args)
        unlimited.max_length = None
        rows = original(dataset, processing_class, unlimited, name).map(short)
        if args.max_length is None:
            return rows
        return rows.filter(lambda row: len(row["prompt_ids"]) < args.max_length)

    return prepared


def _in_batches(trainer: Any, original: Any, prompt: int | None, answer: int | None) -> Any:
    """Cut the prompts of a step before they are answered."""

    def tokenized(prompts: Any, *args: Any, **kwargs: Any) -> Any:
        ids, *more = original(prompts, *args, **kwargs)
        return ([each[-prompt:] for each in ids] if prompt else ids, *more)

    return tokenized


def _in_texts(trainer: Any, original: Any, prompt: int | None, answer: int | None) -> Any:
    """Cut the text of a prompt where its last tokens begin."""

    def tokenized(feature: dict[str, Any], model: Any = None) -> Any:
        if prompt:
            found = trainer.processing_class(feature["prompt"], add_special_tokens=False, return_offsets_mapping=True)
            if len(found["offset_mapping"]) > prompt:
                feature = {**feature, "prompt": feature["prompt"][found["offset_mapping"][-prompt][0] :]}
        return original(feature, model)

    return tokenized


_ANSWERS = ("chosen_ids", "rejected_ids", "completion_ids", "KL_completion_ids")
_HOOKS: Mapping[str, tuple[str, Hook]] = {
    "DPOTrainer": ("_prepare_dataset", _in_columns),
    "KTOTrainer": ("_prepare_dataset", _in_columns),
    "GRPOTrainer": ("_tokenize_prompts", _in_batches),
    "RLOOTrainer": ("_tokenize_prompts", _in_batches),
    "ORPOTrainer": ("tokenize_row", _in_texts),
    "CPOTrainer": ("tokenize_row", _in_texts),
}
"""Trainer -> the method of it that turns rows into tokens, and what is put around it."""
