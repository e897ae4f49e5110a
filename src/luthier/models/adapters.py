"""Adapters of every kind on a model: put on, switch, switch off, merge, write out, go on with.

Most are peft's and lie on the disk as peft writes them; bottleneck adapters are our own (`models/bottleneck.py`).
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from luthier.core.anatomy import plain_model
from luthier.core.errors import ModelError
from luthier.core.log import first_line, logger
from luthier.models import bottleneck, going_on, rope, vocabulary
from luthier.models.reward_files import for_writing
from luthier.tuning.parts import bottleneck as networks
from luthier.tuning.parts.prefix import prefix_size
from luthier.tuning.targets import has_tied_head

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

LEARNING = "default"
"""What the adapter that learns is called inside a model."""
WEIGHTS = "adapter_model.safetensors"
_MARKS = (".lora_", ".ia3_", ".vera_", ".oft_")
"""What follows the path of the tuned module in the names of an adapter's tensors."""


def is_adapter(folder: Path) -> bool:
    """Tell whether `folder` holds an adapter and no whole model."""
    return (folder / "adapter_config.json").is_file()


def facts_of(folder: Path) -> dict[str, Any]:
    """Return what adapter_config.json says."""
    return json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))


def has_adapter(model: Any) -> bool:
    """Tell whether an adapter sits on `model`."""
    return hasattr(model, "peft_config") or bool(networks.all_of(model))


# ---- putting on


def load_adapter(model: Any, folder: Path, *, trainable: bool, resume: bool = False, base: str = "") -> Any:
    """Put an adapter folder onto the base model.

    `resume`: restore training exactly as it was, and not only what the adapter does; `base`: name of the model, to
    compare with the one that the adapter names. Raises ModelError when it was made for another base.
    """
    from peft import PeftConfig, PeftModel

    facts = facts_of(folder)
    _compare_names(facts, folder, base)
    rope.restore(model, folder)
    _enlarge_for(model, folder)
    if facts.get("peft_type") == bottleneck.TYPE:
        return bottleneck.load(model, folder, LEARNING, trainable=trainable)
    _check_shapes(model, folder, facts)
    try:
        if trainable and going_on.is_needed(folder, facts, resume=resume):
            return going_on.load(model, folder)
        read = for_writing(facts)
        options: dict[str, Any] = {} if read is facts else {"config": PeftConfig.from_peft_type(**read)}
        return PeftModel.from_pretrained(model, str(folder), is_trainable=trainable, **options)
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"adapter {folder} does not fit this base model: {first_line(error)}", code="model_adapter"
        ) from error


def add_adapter(model: Any, folder: Path, name: str) -> None:
    """Put a further, frozen adapter called `name` onto a model that has one. The first one stays at work."""
    facts = facts_of(folder)
    if facts.get("peft_type") == bottleneck.TYPE:
        at_work = networks.active(model)
        bottleneck.load(model, folder, name, trainable=False)
        networks.use(model, at_work)
        return
    if not hasattr(model, "peft_config"):
        raise ModelError(f"adapter {folder} is of another kind than the one on this model", code="model_adapter")
    if facts.get("modules_to_save") and has_tied_head(model):  # peft leaves the head of a second adapter behind
        raise ModelError(
            f"adapter {folder} has embeddings of its own, and this model's head is tied to its embeddings: it cannot "
            "stand beside another adapter; load it alone, or merge it first (export_format: merged)",
            code="model_adapter",
        )
    _check_shapes(model, folder, facts)
    try:
        model.load_adapter(str(folder), adapter_name=name, is_trainable=False)
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"adapter {folder} cannot stand beside the first one: {first_line(error)}", code="model_adapter"
        ) from error


def _enlarge_for(model: Any, folder: Path) -> None:
    """Make room for the words that an adapter brings beside a tokenizer of its own."""
    if not (folder / "tokenizer_config.json").is_file():
        return
    table = plain_model(model).get_input_embeddings().weight.shape
    shapes = (shape for name, shape in _tensor_shapes(folder / WEIGHTS).items() if _is_table(name))
    rows = max((shape[0] for shape in shapes if len(shape) == 2 and shape[1] == table[1]), default=0)
    vocabulary.enlarge(model, rows)


def _is_table(name: str) -> bool:
    return "embed" in name or name.endswith((".wte.weight", "lm_head.weight"))


def _compare_names(facts: dict[str, Any], folder: Path, base: str) -> None:
    named = str(facts.get("base_model_name_or_path") or "")
    if base and named and named.rstrip("/").rpartition("/")[2] != base.rstrip("/").rpartition("/")[2]:
        logger.warning("adapter %s was made for %s and is put on %s", folder, named, base)


def _check_shapes(model: Any, folder: Path, facts: dict[str, Any]) -> None:
    """Raise ModelError when the adapter tunes modules that are not there, or of another size."""
    modules = dict(plain_model(model).named_modules())
    sizes = {name: list(p.shape) for name, p in plain_model(model).named_parameters()}
    made_for = facts.get("base_model_name_or_path") or "another model"
    _check_virtual(model, folder, facts, made_for)
    for key, shape in _tensor_shapes(folder / WEIGHTS).items():
        mark = next((mark for mark in _MARKS if mark in key), None)
        if mark is None:
            _check_whole(folder, made_for, key.removeprefix("base_model.model."), shape, sizes)
            continue
        if key.partition(mark)[0] == "base_model":  # matrices that all layers share
            continue
        path = key.partition(mark)[0].removeprefix("base_model.model.").removesuffix(".base_layer")
        module: Any = modules.get(path)
        if module is None:
            raise ModelError(
                f"adapter {folder} was made for {made_for}: it tunes {path}, which this model has not",
                code="model_adapter",
            )
        side = {".lora_A": ("in_features", -1), ".lora_B": ("out_features", 0)}.get(mark + key.partition(mark)[2][:1])
        size = getattr(module, side[0], None) if side else None
        if side is not None and size is not None and size != shape[side[1]]:
            raise ModelError(
                f"adapter {folder} was made for {made_for}: {path} has {shape[side[1]]} {side[0]} there, {size} here",
                code="model_adapter",
            )


def _check_whole(folder: Path, made_for: str, name: str, shape: list[int], sizes: dict[str, list[int]]) -> None:
    """Raise ModelError for a module that is saved whole with the adapter and has another size here."""
    here = sizes.get(name)
    if here is not None and here != shape:
        why = (
            "; the vocabulary was resized for it, so load the model that it was trained on"
            if shape[1:] == here[1:]
            else ""
        )
        raise ModelError(
            f"adapter {folder} was made for {made_for}: {name} is {shape} there, {here} here{why}", code="model_adapter"
        )


def _check_virtual(model: Any, folder: Path, facts: dict[str, Any], made_for: str) -> None:
    """Raise ModelError when virtual tokens have another size than those that the model takes."""
    if "num_virtual_tokens" not in facts:
        return
    config = plain_model(model).config
    size = config.hidden_size
    if facts["peft_type"] == "PREFIX_TUNING":
        size = prefix_size(plain_model(model))
    there, here = (facts["num_layers"], facts["token_dim"]), (config.num_hidden_layers, size)
    if there != here:
        raise ModelError(
            f"adapter {folder} was made for {made_for}, with {there[0]} layers and {there[1]} numbers a virtual token; "
            f"this model has {here[0]} layers and takes {here[1]}",
            code="model_adapter",
        )


def _tensor_shapes(file: Path) -> dict[str, list[int]]:
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        return {}
    try:
        with safe_open(file, framework="pt") as tensors:
            return {key: tensors.get_slice(key).get_shape() for key in tensors.keys()}  # noqa: SIM118  no mapping
    except SafetensorError as error:
        raise ModelError(f"{file} is damaged: {error}; copy it again", code="model_damaged") from error


# ---- switching


def adapter_names(model: Any) -> list[str]:
    """Return the names of the adapters on `model`."""
    if hasattr(model, "peft_config"):
        return list(model.peft_config)
    return sorted({name for each in networks.all_of(model) for name in each.adapters})


def use_adapter(model: Any, name: str) -> None:
    """Let the adapter called `name` work. Raises ModelError naming those that are there."""
    if name not in adapter_names(model):
        raise ModelError(f"no adapter is called {name!r}; there are: {', '.join(adapter_names(model)) or 'none'}")
    model.set_adapter(name) if hasattr(model, "peft_config") else networks.use(model, name)


@contextmanager
def exchanged(model: Any, name: str) -> Generator[None]:
    """Let another adapter work inside the block."""
    before = model.active_adapter if hasattr(model, "peft_config") else networks.active(model) or LEARNING
    use_adapter(model, name)
    try:
        yield
    finally:
        use_adapter(model, before)


@contextmanager
def switched_off(model: Any) -> Generator[None]:
    """Take the effect of every adapter away inside the block."""
    if hasattr(model, "peft_config"):
        with model.disable_adapter():
            yield
        return
    before = networks.active(model)
    networks.use(model, None)
    try:
        yield
    finally:
        networks.use(model, before)


def keep_start(model: Any, name: str) -> bool:
    """Add a frozen adapter called `name` that gives the model before training, where switching off does not."""
    return going_on.add_start(model, name)


# ---- writing out and merging


def save_trained(model: Any, folder: Path, base: str) -> None:
    """Write what was trained: the adapter that learns, naming `base` as others find it, or else the whole model."""
    if networks.all_of(model):
        bottleneck.save(model, LEARNING, folder, base)
        rope.write(model, folder)
        return
    if not has_adapter(model):
        model.save_pretrained(folder)
        return
    for config in model.peft_config.values():
        config.base_model_name_or_path = base
    # A second adapter may serve as the reference: only the one that learns is the result.
    model.save_pretrained(folder, save_embedding_layers=False, selected_adapters=[LEARNING])
    going_on.save(model, LEARNING, folder)
    rope.write(model, folder)


def check_mergeable(folder: Path) -> None:
    """Raise ModelError for an adapter that cannot become part of the weights, with what can be done instead."""
    kind = str(facts_of(folder).get("peft_type"))
    reason = _UNMERGEABLE.get(kind)
    if reason is not None:
        raise ModelError(
            f"adapter {folder} cannot be merged: {reason}; set export_format: adapter and load it beside the model",
            code="model_adapter",
        )


_UNMERGEABLE = {
    "PROMPT_TUNING": "a soft prompt is input, not weights",
    "P_TUNING": "a soft prompt is input, not weights",
    "PREFIX_TUNING": "a prefix is keys and values, not weights",
    bottleneck.TYPE: "bottleneck networks are not linear",
}
"""`peft_type` -> why there is no weight to merge it into."""
