"""What happens around a trainer of TRL that is built: settings go into its config, rows and model are made to fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from luthier.core.log import say_once
from luthier.facade.chat_ends import one_end
from luthier.facade.modes import wants_recomputing
from luthier.facade.old_arguments import translate
from luthier.facade.old_prompts import cut_in
from luthier.facade.old_table import ARGUMENTS, CONFIGS, TRAINER_ARGUMENTS

REFERENCE = "ref"
"""What TRL calls the second copy of an adapter that it compares with."""


def move(
    kind: str, given: Mapping[str, Any], known: Sequence[str], config: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split a trainer's arguments into its own, and those that are settings today."""
    settings = {field.name for field in fields(config)} | {*ARGUMENTS, *CONFIGS.get(config.__name__, {})}
    moved = {
        name: value
        for name, value in given.items()
        if name not in known and name not in TRAINER_ARGUMENTS and name in settings
    }
    for name in moved:
        say_once(f"{kind}: {name} belongs to {config.__name__} today, and is read from there")
    return {name: value for name, value in given.items() if name not in moved}, moved


def before(trainer: Any, kind: str, made: dict[str, Any], moved: dict[str, Any], config: Any) -> None:
    """Change the arguments of a trainer that is about to be built."""
    model = made.get("model")
    if kind == "Trainer" and made.get("args") is None and not moved:
        return
    args = made["args"] = _settings(kind, made.get("args"), moved, config, model)
    _length(args, model)
    _recomputing(args, model)
    answer = getattr(args, "max_target_length", None) or _own(args, "max_completion_length")
    if (prompt := _own(args, "max_prompt_length")) or answer:
        cut_in(trainer, kind, prompt, answer)
    if model is not None and not isinstance(model, str):
        _prepare(model)
    if kind == "SFTTrainer":
        _format_one(made)
        _one_beginning(made, args)
        one_end(made, getattr(args, "dataset_text_field", "text"))


def after(trainer: Any, made: Mapping[str, Any]) -> None:
    """Drop the copy of an adapter that changes nothing yet: switched off, the model itself is the reference."""
    model = trainer.model
    if REFERENCE in getattr(model, "peft_config", {}) and _is_fresh(model):
        model.delete_adapter(REFERENCE)
        say_once("reference: the model with its adapter off")


def _settings(kind: str, args: Any, moved: Mapping[str, Any], config: Any, model: Any) -> Any:
    """Return settings of today's class, with what the trainer was given in them."""
    if args is None:
        name = model if isinstance(model, str) else getattr(getattr(model, "config", None), "_name_or_path", "")
        return config(f"{str(name).split('/')[-1] or 'model'}-{kind.removesuffix('Trainer')}", **moved)
    if not isinstance(args, config):
        plain = {**args.to_dict(), "hub_token": args.hub_token}
        known = {field.name for field in fields(config) if field.init}
        given = args.__dict__.get("_luthier_given", frozenset(plain))
        args = config(**{**{name: value for name, value in plain.items() if name in known}, **moved})
        args.__dict__["_luthier_given"] = given | frozenset(moved)
        return args
    names = [field.name for field in fields(config)]
    table = {**ARGUMENTS, **CONFIGS.get(config.__name__, {})}
    values, ours = translate(config.__name__, moved, names, table)
    for name, value in (values | ours).items():
        if value is not None:
            args.__dict__[name] = value
    if "_luthier_given" in args.__dict__:
        args.__dict__["_luthier_given"] |= frozenset(values)
    return args


def _own(args: Any, name: str) -> Any:
    """Return a setting that the façade obeys; None where TRL has it itself."""
    return None if name in {field.name for field in fields(args)} else args.__dict__.get(name)


def _length(args: Any, model: Any) -> None:
    """Take the model's length where the settings name none, and the shorter of both otherwise."""
    most = getattr(model, "max_seq_length", None)
    if not isinstance(most, int) or not hasattr(args, "max_length"):
        return
    is_given = "max_length" in args.__dict__.get("_luthier_given", ())
    if is_given and (args.max_length is None or args.max_length <= most):
        return
    if args.max_length != most:
        say_once(f"max_length: {most}, the model's max_seq_length" + (f", not {args.max_length}" if is_given else ""))
    args.max_length = args.__dict__["max_seq_length"] = most


def _recomputing(args: Any, model: Any) -> None:
    """Keep activations where the model was made so and the settings are silent."""
    silent = "gradient_checkpointing" not in args.__dict__.get("_luthier_given", ("gradient_checkpointing",))
    if silent and args.gradient_checkpointing and wants_recomputing(model) is False:
        args.gradient_checkpointing = False
        say_once("gradient_checkpointing: False, as the model was asked for")


def _prepare(model: Any) -> None:
    """Give a model what trainers of older versions write to, and take away what an earlier trainer left."""
    if not hasattr(model, "warnings_issued"):
        model.warnings_issued = {}
    if REFERENCE in getattr(model, "peft_config", {}):
        model.delete_adapter(REFERENCE)


def _is_fresh(model: Any) -> bool:
    """Tell whether the adapter called default changes nothing yet: it is LoRA whose second factors are zero."""
    learning = [(name, parameter) for name, parameter in model.named_parameters() if ".default" in name]
    second = [parameter for name, parameter in learning if "lora_B" in name or "lora_embedding_A" in name]
    return (
        bool(second)
        and all("lora_" in name for name, _ in learning)
        and not any("magnitude" in name for name, _ in learning)
        and not any(bool(parameter.any()) for parameter in second)
    )


# ---- rows of supervised fine-tuning


def _format_one(made: dict[str, Any]) -> None:
    """Let a function that formats several rows at a time format one."""
    function, rows = made.get("formatting_func"), made.get("train_dataset")
    if function is None or rows is None:
        return
    if not _takes_several(function, next(iter(rows))):
        return
    say_once("formatting_func returns a list for several rows; it is given one row at a time, as TRL does today")
    made["formatting_func"] = lambda row: function({name: [value] for name, value in row.items()})[0]


def _takes_several(function: Any, row: Mapping[str, Any]) -> bool:
    """Tell whether a function makes a list of texts; one that fails for a single row is tried with columns."""
    for given in (row, {name: [value] for name, value in row.items()}):
        try:
            return isinstance(function(given), list)
        except Exception:  # noqa: BLE001  a function of one kind may raise anything when called as the other
            continue
    return False


def _one_beginning(made: dict[str, Any], args: Any) -> None:
    """Take the token that begins a text away from texts that have it, where the tokenizer adds it anyway."""
    tokenizer: Any = made.get("processing_class")
    field: str = getattr(args, "dataset_text_field", "text")
    begin: str | None = getattr(tokenizer, "bos_token", None)
    if not begin or tokenizer("a")["input_ids"][:1] != [tokenizer.bos_token_id]:
        return

    def once(row: dict[str, Any]) -> dict[str, Any]:
        return {field: row[field].removeprefix(begin)}

    for name in ("train_dataset", "eval_dataset"):
        rows = made.get(name)
        if rows is None or isinstance(rows, Mapping):
            continue
        text = next(iter(rows)).get(field)
        if isinstance(text, str) and text.startswith(begin):
            made[name] = rows.map(once)
            say_once(f"{begin} begins the texts already, and the tokenizer adds it: it is kept once")
