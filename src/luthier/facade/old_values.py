"""Values of training arguments that this machine or today's TRL cannot take, made to fit; each change is said once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

import torch

from luthier.core.log import say_once
from luthier.facade.old_table import ELSEWHERE

Values = dict[str, Any]

TRACKERS: Mapping[str, tuple[str, ...]] = {
    "clearml": ("clearml",),
    "codecarbon": ("codecarbon",),
    "comet_ml": ("comet_ml",),
    "mlflow": ("mlflow",),
    "neptune": ("neptune",),
    "swanlab": ("swanlab",),
    "tensorboard": ("tensorboard", "tensorboardX"),
    "trackio": ("trackio",),
    "wandb": ("wandb",),
}
"""Name in `report_to` -> packages of which one must be there."""


def fit(values: Values, defaults: Mapping[str, Any]) -> Values:
    """Return `values` as this machine can take them; `defaults` are those of the class that they are for."""
    made = dict(values)
    for change in _CHANGES:
        change(made, defaults)
    return made


def say_silent(given: frozenset[str]) -> None:
    """Say which defaults hold that scripts for other libraries may count on."""
    silent = [f"{name} ({value:g})" if isinstance(value, float) else f"{name} ({value})"
              for name, value in ELSEWHERE.items() if name not in given]  # fmt: skip
    if silent:
        say_once(
            "TRL's defaults hold where the script is silent; in brackets what scripts for Unsloth may count on: "
            + ", ".join(silent)
        )


def is_there(package: str) -> bool:
    """Tell whether a package can be imported, without doing it."""
    return find_spec(package) is not None


def _precision(values: Values, defaults: Mapping[str, Any]) -> None:
    """Without an accelerator: computed there, in the model's own format unless bfloat16 is asked for."""
    if torch.accelerator.is_available() and not values.get("use_cpu"):
        if values.get("bf16") is None and not values.get("fp16") and defaults["bf16"] is None and _only_half():
            values["fp16"] = True
            say_once("bf16: this GPU has none, so fp16=True")
        return
    values.setdefault("use_cpu", True)
    if values.get("fp16"):
        values["fp16"] = False
        say_once("fp16=True needs a GPU; here the model computes in the format it was loaded in")
    if values.get("bf16") is None:
        values["bf16"] = False


def _only_half() -> bool:
    return torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False)


def _optimizer(values: Values, defaults: Mapping[str, Any]) -> None:
    asked = values.get("optim")
    name = str(getattr(asked, "value", asked))
    if ("8bit" in name or name.startswith("paged_")) and not is_there("bitsandbytes"):
        values["optim"] = "adamw_torch"
        say_once(f"optim={name!r} needs bitsandbytes, which is not here; adamw_torch learns the same in more memory")


def _trackers(values: Values, defaults: Mapping[str, Any]) -> None:
    if "report_to" not in values:
        return
    asked = values["report_to"]
    names = [] if asked is None else [asked] if isinstance(asked, str) else list(asked)
    kept = [name for name in names if name not in TRACKERS or any(map(is_there, TRACKERS[name]))]
    for name in set(names) - set(kept):
        say_once(
            f"report_to={name!r} is left out: {TRACKERS[name][0]} is not installed (pip install {TRACKERS[name][0]})"
        )
    values["report_to"] = kept or "none"


def _sampling(values: Values, defaults: Mapping[str, Any]) -> None:
    """Read what vLLM's class of settings, a namespace or a mapping says about drawing."""
    params = values.pop("vllm_sampling_params", None)
    if params is None:
        return
    read = params.get if isinstance(params, Mapping) else lambda name: getattr(params, name, None)
    taken: list[str] = []
    for name, to_ours in _SAMPLING.items():
        value = read(name)
        ours = None if value is None else to_ours(value)
        if ours is not None and name in defaults and name not in values:
            values[name] = ours
            taken.append(f"{name}={ours}")
    longest = read("max_tokens")
    if longest and "max_completion_length" not in values and longest != 16:  # vLLM's own default says nothing
        values["max_completion_length"] = int(longest)
        taken.append(f"max_completion_length={longest}")
    say_once(
        f"vllm_sampling_params are read as {', '.join(taken) or 'the defaults'}; answers end with the end token, and "
        "seed, stop and n are the trainer's own"
    )


_SAMPLING: Mapping[str, Callable[[Any], Any]] = {
    "temperature": float,
    "top_p": float,
    "top_k": lambda k: max(0, int(k)),
    "min_p": lambda p: float(p) or None,
    "repetition_penalty": float,
}


def _vllm(values: Values, defaults: Mapping[str, Any]) -> None:
    if values.get("use_vllm") and not is_there("vllm"):
        values["use_vllm"] = False
        say_once("use_vllm=True: vLLM is not here, so the trainer's own generation answers")


def _whole_groups(values: Values, defaults: Mapping[str, Any]) -> None:
    """Raise the batch until a step holds whole groups of answers."""
    if "num_generations" not in defaults or values.get("generation_batch_size"):
        return
    now: Values = {**defaults, **{name: value for name, value in values.items() if value is not None}}
    group, rows = now["num_generations"], now["per_device_train_batch_size"]
    rounds = now["steps_per_generation"] or now["gradient_accumulation_steps"]
    batches = {"per_device_train_batch_size": rows * rounds}
    if str(getattr(now["eval_strategy"], "value", now["eval_strategy"])) != "no":
        batches["per_device_eval_batch_size"] = now["per_device_eval_batch_size"]
    for name, answers in batches.items():
        if answers % group:
            values[name] = -(-now[name] // group) * group
            say_once(
                f"{name}={now[name]} makes no whole groups of num_generations={group} answers; raised to {values[name]}"
            )


_CHANGES = (_precision, _optimizer, _trackers, _sampling, _vllm, _whole_groups)
