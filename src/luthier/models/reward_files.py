"""Reward models on disk, as transformers and peft have them: a backbone and one linear layer called `score`.

A whole model is a folder for AutoModelForSequenceClassification with one label; an adapter is peft's for the task
SEQ_CLS, which keeps `score` beside it. What peft does not know has the head in a file of its own. Shapes: D hidden.
"""

from __future__ import annotations

import copy
import json
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from luthier.core.anatomy import plain_model
from luthier.core.errors import ConfigError, ModelError
from luthier.core.log import say_once
from luthier.models.quantized_files import open_weights
from luthier.tuning.parts import bottleneck as networks

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from luthier.config.schema import ModelConfig
    from luthier.models.load import ModelFiles

REWARD_FILE = "reward_head.safetensors"
"""The head beside an adapter that peft does not know."""
_SCORE, _TASK, _CLASS = "score.weight", "SEQ_CLS", "ForSequenceClassification"
_NAMES = (_SCORE, "base_model.model.score.weight", "base_model.score.weight", "v_head.summary.weight")
"""What the head is called by transformers, by peft, by peft under virtual tokens, and by TRL's value heads."""
_OF_CLASSIFIERS = ("classifier", "score")


# ---- what a folder is


def says_reward(config: Any) -> bool:
    """Tell whether a transformers config is that of a model that classifies sequences and writes nothing."""
    return any(name.endswith(_CLASS) for name in getattr(config, "architectures", None) or ())


def is_reward_folder(folder: Path) -> bool:
    """Tell whether `folder` holds a reward model, whole or as an adapter."""
    if (folder / REWARD_FILE).is_file():
        return True
    facts = _json(folder / "adapter_config.json")
    if facts:
        return facts.get("task_type") == _TASK
    return any(str(name).endswith(_CLASS) for name in _json(folder / "config.json").get("architectures") or ())


def is_reward_model(files: ModelFiles) -> bool:
    """Tell whether a model grades, by its base or any adapter on it."""
    return _graders(files) != []


def _graders(files: ModelFiles) -> list[Path]:
    places = (*reversed(files.adapters), Path(files.base))
    return [place for place in places if place.is_dir() and is_reward_folder(place)]


def refuse_reward_model(files: ModelFiles) -> None:
    """Raise ModelError when a model that only grades is asked to write."""
    for place in _graders(files):
        raise ModelError(
            f"{place} is a reward model: it grades answers and writes none; name it as reward_model, or go on training "
            "it with stage: rm",
            code="model_reward",
        )


def check_reward_form(config: Any) -> None:
    """Raise ConfigError when transformers cannot load a reward model of this architecture."""
    from transformers import AutoModelForSequenceClassification

    if type(config) not in AutoModelForSequenceClassification._model_mapping:  # pyright: ignore[reportPrivateUsage]
        raise ConfigError(
            f"transformers has no sequence-classification class for model type {config.model_type!r}, which reward "
            "models and critics are saved as; take another family, such as llama, qwen3 or gemma3",
            code="config_reward_form",
        )


def _json(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


# ---- reading


def read_head(place: str | Path, config: ModelConfig) -> nn.Linear | None:
    """Return the head in a folder or under a hub name, [1, D], float32; None where there is none.

    Raises ModelError for a classifier of several classes.
    """
    tensors = _named(place, config)
    found = next((name for name in _NAMES if name in tensors), None)
    if found is None:
        return None
    weight_1D = tensors[found].float()
    if weight_1D.shape[0] != 1:
        raise ModelError(
            f"{place} is a classifier of {weight_1D.shape[0]} classes; a reward model has one number (num_labels=1)",
            code="model_reward",
        )
    bias_1 = tensors.get(found.removesuffix("weight") + "bias")
    if bias_1 is not None and bool(bias_1.any()):
        say_once(f"the value head of {place} adds {float(bias_1):.4g} to every value; that is left out")
    return head_of(weight_1D)


def head_of(weight_1D: torch.Tensor) -> nn.Linear:
    """Return a head with this weight."""
    head = nn.Linear(weight_1D.shape[1], 1, bias=False, device="meta")
    head.weight = nn.Parameter(weight_1D.detach().float().clone())
    return head


def _named(place: str | Path, config: ModelConfig) -> dict[str, torch.Tensor]:
    """Return the tensors under one of the names of a head; only these are read."""
    wanted = {*_NAMES, "v_head.summary.bias"}
    folder = Path(place)
    if not folder.is_dir() or not any(folder.glob("*.safetensors")):
        try:
            stored = open_weights(str(place), revision=config.model_revision, allow_pickle=config.allow_pickle)
        except OSError:  # no weights that may be read, which whoever loads the model will say
            return {}
        return {name: stored[name][...] for name in stored.keys() & wanted}
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            found |= {name: tensors.get_tensor(name) for name in wanted.intersection(tensors.keys())}
    return found


def for_writing(facts: dict[str, Any]) -> dict[str, Any]:
    """Return adapter_config.json without the head: what puts the adapter on a model of ours."""
    if facts.get("task_type") != _TASK:
        return facts
    saved = [name for name in facts.get("modules_to_save") or () if name not in _OF_CLASSIFIERS]
    return {**facts, "task_type": "CAUSAL_LM", "modules_to_save": saved or None}


def drop_output_head(model: Any) -> Any:
    """Take the output head off a model that only gives values: its memory, and its part in what learns."""
    plain_model(model).set_output_embeddings(None)
    return model


@contextmanager
def without_report() -> Generator[None]:
    """Keep transformers from listing the heads that a model of another kind has or has not."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


# ---- writing


def save_reward_model(model: Any, head: nn.Linear, folder: Path, *, pad: int | None, **options: Any) -> None:
    """Write a whole model for AutoModelForSequenceClassification.

    `pad`: id that never ends an answer; `options`: of transformers' save_pretrained.
    """
    from transformers import AutoModelForSequenceClassification

    plain = plain_model(model)
    config = copy.deepcopy(plain.config)
    config.num_labels, config.pad_token_id = 1, pad
    with torch.device("meta"):
        shell: Any = AutoModelForSequenceClassification.from_config(config)
    prefix = shell.base_model_prefix
    setattr(shell, prefix, getattr(plain, plain.base_model_prefix))
    shell.score = head
    if hasattr(plain, "_weight_conversions"):
        shell._weight_conversions = plain._weight_conversions
    shell.save_pretrained(folder, **options)


def add_head(folder: Path, model: Any, head: nn.Linear) -> None:
    """Put the head into an adapter folder that was just written, under the names that peft looks for."""
    tensor = {_SCORE: head.weight.detach().float().contiguous().cpu()}
    if networks.all_of(model):
        save_file(tensor, folder / REWARD_FILE, {"format": "pt"})
        return
    file = folder / "adapter_config.json"
    facts = json.loads(file.read_text(encoding="utf-8"))
    facts |= {"task_type": _TASK, "modules_to_save": [*(facts.get("modules_to_save") or ()), "score"]}
    prefix = "base_model." if "num_virtual_tokens" in facts else "base_model.model."
    weights = folder / "adapter_model.safetensors"
    save_file(load_file(weights) | {prefix + _SCORE: tensor[_SCORE]}, weights, {"format": "pt"})
    file.write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def distinct_pad(tokenizer: Any, ends: Sequence[int] = ()) -> int | None:
    """Give a tokenizer a padding token that no answer ends with, and return its id.

    transformers reads a reward at the last token that is not padding, so one that is both would be passed over.
    """
    taken = {tokenizer.eos_token_id, *ends}
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id not in taken:
        return tokenizer.pad_token_id
    special = {t.content: i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
    named = [token for token in special if "pad" in token.lower()]
    other = [token for token in (tokenizer.unk_token, tokenizer.bos_token) if token is not None]
    for token in [*named, *other]:
        if tokenizer.convert_tokens_to_ids(token) not in taken:
            tokenizer.pad_token = token
            say_once(f"padding token: {token}, because the one before also ends answers")
            return tokenizer.pad_token_id
    say_once("the padding token also ends answers: plain transformers reads rewards of this model one token too early")
    return tokenizer.pad_token_id
