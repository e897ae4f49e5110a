"""Which model an objective compares with, and whether it scores the rows beforehand or while training."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.config.load import dump
from luthier.core.errors import ModelError
from luthier.core.log import first_line, logger
from luthier.core.paths import cache_folder
from luthier.models.adapters import has_adapter
from luthier.models.load import ModelFiles, load_tokenizer, load_with_adapters, put_kernels, resolve, with_adapters
from luthier.models.policy import Policy
from luthier.models.reference import Reference, with_first_adapter, without_adapter
from luthier.models.reward_files import refuse_reward_model
from luthier.training.reference import attach_reference
from luthier.training.state import versions

if TYPE_CHECKING:
    from luthier.config.schema import RunConfig
    from luthier.data.loader import Loader
    from luthier.data.store import UnitStore
    from luthier.models.device import Placement
    from luthier.training.stop import StopFlag
    from luthier.workflows.build import Data

NOT_OF_THE_REFERENCE = ("engine", "decode_dtype", "threads")
_FILES = ("*.safetensors", "*.bin", "config.json", "adapter_config.json")


def make_reference(
    config: RunConfig, policy: Policy, tokenizer: Any, placement: Placement, began: tuple[ModelFiles, Path | None]
) -> Reference | None:
    """Return the reference that the objective needs: the model as it was when this run began, or `ref_model`.

    `began`: what the run trains on, and the adapter that it goes on with. Raises ModelError when `ref_model` has
    another tokenizer.
    """
    if not config.objective.needs & {"reference", "distribution"}:
        return None
    below, continued = began
    model = config.model
    is_own = model.ref_model is not None or bool(model.ref_model_adapters)
    named = model.ref_model or model.model_name_or_path
    files = with_adapters(resolve(named), model.ref_model_adapters) if is_own else below
    refuse_reward_model(files)
    parts = (_folder(files.base, config), *files.adapters)
    if is_own:
        _check_tokenizer(files, config, tokenizer)
        logger.info("reference: %s", ", ".join((named, *model.ref_model_adapters)))
    elif has_adapter(policy.model):
        logger.info("reference: %s", f"adapter {continued} as it is now" if continued else "the model without adapter")
        return with_first_adapter(policy, parts, continued) if continued else without_adapter(policy, parts)
    else:
        logger.info("reference: a second copy of the model")
    return Reference(lambda: _load(files, config, placement), files=parts)


def _check_tokenizer(files: ModelFiles, config: RunConfig, tokenizer: Any) -> None:
    theirs = load_tokenizer(files, config.model)
    if theirs.get_vocab() != tokenizer.get_vocab():
        raise ModelError(
            f"ref_model {files.public_base} has another tokenizer ({len(theirs)} tokens) than the model "
            f"({len(tokenizer)}); their log-probabilities cannot be compared",
            code="model_reference",
        )


def _load(files: ModelFiles, config: RunConfig, placement: Placement) -> Policy:
    model = load_with_adapters(files, config.model, placement)
    put_kernels(model, config.model)
    policy = Policy(model, autocast=placement.autocast).eval()
    if "rollouts" in config.objective.needs:
        policy.temperature = config.rollout.rollout_temperature
    return policy


def _folder(base: str, config: RunConfig) -> Path:
    """Return the folder of a model that may lie in the hub's cache."""
    if Path(base).is_dir():
        return Path(base)
    from transformers.utils.hub import cached_file

    try:
        return Path(str(cached_file(base, "config.json", revision=config.model.model_revision))).parent
    except OSError as error:
        raise ModelError(f"ref_model: {base} cannot be read: {first_line(error)}", code="model_missing") from error


def score_beforehand(
    config: RunConfig, data: Data, loader: Loader, reference: Reference | None, *, accelerator: Any, stop: StopFlag
) -> Reference | None:
    """Score all rows now where that is asked for or pays; return the reference if it is still needed afterwards."""
    if reference is None or data.train is None or "distribution" in config.objective.needs or not _pays(config, loader):
        return reference
    rows = config.train.per_device_train_batch_size
    for store in {id(s): s for s in (data.train, data.held_out) if s is not None}.values():
        file = cache_folder("reference", f"{_fingerprint(config, store, reference)}.safetensors")
        attach_reference(store, reference, file, rows_per_batch=rows, accelerator=accelerator, stop=stop)
    reference.release()
    return None


def _pays(config: RunConfig, loader: Loader) -> bool:
    """Tell whether rows are read more than once, unless the settings say what to do."""
    asked, per_epoch = config.train.precompute_reference, loader.steps_per_epoch
    if asked is not None or per_epoch is None:
        return bool(asked)
    return config.train.max_steps > per_epoch if config.train.max_steps > 0 else config.train.num_train_epochs > 1


def _fingerprint(config: RunConfig, store: UnitStore, reference: Reference) -> str:
    """Return a name for exactly these tokens under exactly this reference and way to compute."""
    nested = dump(config)
    model = {key: value for key, value in nested["model"].items() if key not in NOT_OF_THE_REFERENCE}
    rows = nested["train"]["per_device_train_batch_size"]
    digest = hashlib.sha256(json.dumps([model, rows, versions()], sort_keys=True).encode())
    for name in ("tokens", "weight", "segment_start", "unit_start"):
        digest.update(store.arrays[name].tobytes())
    for folder in reference.files:
        for file in sorted(each for pattern in _FILES for each in folder.glob(pattern)):
            with file.open("rb") as opened:
                digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()[:32]
