"""What several workflows build the same way: template, preparer, data, engine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from luthier.core.anatomy import family_of
from luthier.core.errors import ConfigError, ModelError
from luthier.core.log import first_line, logger
from luthier.core.protocols import Engine
from luthier.core.types import Sampling
from luthier.data.audit import AuditReport, leakage
from luthier.data.kept import is_kept, read_or_prepare
from luthier.data.loader import Layout, Loader, MapLoader, StreamLoader
from luthier.data.prepare import Preparer, split_note, stream_units
from luthier.data.store import UnitStore
from luthier.data.template import ChatTemplate
from luthier.data.template_names import NAMES
from luthier.data.template_shelf import apply_named_template
from luthier.engines.hf import HfEngine
from luthier.engines.local import LocalEngine
from luthier.engines.vllm import VllmEngine, library
from luthier.kernels.cpu import prepare_process
from luthier.models.adapters import use_adapter
from luthier.models.decoder_parts import obstacle as decoder_obstacle
from luthier.models.device import place
from luthier.models.foreign import read_layout
from luthier.models.load import ModelFiles, find, load_for_inference, load_tokenizer, resolve
from luthier.runs.store import is_run

if TYPE_CHECKING:
    from luthier.config.schema import ModelConfig, RunConfig


@dataclass(slots=True)
class Data:
    """Training rows, held-out rows, and what reading them found."""

    train: UnitStore | None
    train_rows: np.ndarray
    held_out: UnitStore | None
    held_out_rows: np.ndarray
    reports: dict[str, AuditReport]


def make_template(tokenizer: Any, config: RunConfig, model_type: str) -> ChatTemplate:
    """Return the chat template that the settings ask for."""
    data = config.data
    apply_named_template(tokenizer, data.template, family_of(model_type).templates, tools=data.tool_format)
    options: dict[str, Any] = {"preserve_thinking": True} if data.preserve_thinking else {}
    if data.enable_thinking != "auto":
        options["enable_thinking"] = None if data.enable_thinking == "none" else data.enable_thinking
    return ChatTemplate(
        tokenizer,
        data.train_on_prompt,
        data.mask_history,
        data.default_system,
        options,
        spelled=frozenset(config.model.add_special_tokens) - _needed(config) if data.split_special_tokens else None,
    )


def _needed(config: RunConfig) -> frozenset[str]:
    """Return the special tokens of the named template."""
    form = NAMES.get(config.data.template or "")
    return frozenset() if form is None else frozenset(form.needs)


def with_template_words(config: RunConfig) -> RunConfig:
    """Return the settings with the special tokens to add that the named template needs, where `resize_vocab` asks."""
    needed = _needed(config) if config.model.resize_vocab else frozenset()
    if not needed:
        return config
    known = load_tokenizer(find(config.model), config.model).get_vocab()
    words = tuple(sorted(needed - known.keys()))
    model = replace(config.model, add_special_tokens=(*config.model.add_special_tokens, *words))
    return replace(config, model=model)


def _text_template(tokenizer: Any, config: RunConfig) -> ChatTemplate:
    """Return what renders plain text: no turns, and the end that the family of the named template puts behind it."""
    form = NAMES.get(config.data.template or "")
    end = form.text_end if form is not None and form.text_end else None
    if end is not None and end not in tokenizer.get_vocab():
        end = None
    spelled = frozenset(config.model.add_special_tokens) if config.data.split_special_tokens else None
    return ChatTemplate(tokenizer, spelled=spelled, text_end=end)


def make_preparer(tokenizer: Any, config: RunConfig, model_type: str) -> Preparer:
    """Return what turns rows into units under these settings."""
    kind, reads = config.objective.rows, config.objective.reads
    make = _text_template if kind == "text" else partial(make_template, model_type=model_type)
    template = make(tokenizer, config)
    room = config.rollout.max_completion_length if kind == "prompt" else 0
    return Preparer(template, config.data, kind, reads_end=kind == "pair" and "value" in reads, answer_room=room)


def transformers_config(files: ModelFiles, config: RunConfig) -> Any:
    """Return the model's config without loading weights."""
    options = {"revision": config.model.model_revision, "allow_remote_code": config.model.allow_remote_code}
    try:
        return read_layout(files.base, **options).config
    except OSError as error:
        raise ModelError(
            f"{files.base} is no folder here and was not found on the hub: {first_line(error)}; `luthier models` lists "
            "short names",
            code="model_missing",
        ) from error


def read_preparer(config: RunConfig) -> Preparer:
    """Return a preparer from settings alone, with the tokenizer but without the model."""
    config = with_template_words(config)
    files = resolve(config.model.model_name_or_path)
    tokenizer = load_tokenizer(files, config.model)
    return make_preparer(tokenizer, config, transformers_config(files, config).model_type)


def read_data(config: RunConfig, preparer: Preparer) -> Data:
    """Read, check and tokenize training and evaluation rows, and split off val_size.

    Raises DataError under the policy `bad_rows`.
    """
    kept = config.data.tokenized_path
    if not config.data.dataset and not is_kept(kept, "train"):
        raise ConfigError("dataset is required: a name in dataset_info.json or a file", code="config_missing")
    empty = np.zeros(0, dtype=np.int64)
    reports: dict[str, AuditReport] = {}
    train, train_rows, held_out, held_out_rows = None, empty, None, empty
    if not config.data.streaming:
        train, reports["train"] = read_or_prepare(config.data.dataset, preparer, "train")
        logger.info("data: %s", reports["train"].total())
        reports["train"].enforce(config.data.bad_rows)
        train_rows = np.arange(len(train))
    if config.data.eval_dataset or (not config.data.val_size and is_kept(kept, "eval")):
        held_out, reports["eval"] = read_or_prepare(config.data.eval_dataset, preparer, "eval")
        logger.info("evaluation data: %s", reports["eval"].total())
        reports["eval"].enforce(config.data.bad_rows)
        held_out_rows = np.arange(len(held_out))
    elif config.data.val_size and train is not None:
        held_out = train
        train_rows, held_out_rows = split_rows(len(train), config.data.val_size, seed_of_rows(config))
    if train is not None and held_out is not None:
        found = leakage(train, train_rows, held_out, held_out_rows)
        for finding in found:
            reports["train"].add(finding.kind, finding.level, finding.where, finding.message)
        if found:
            logger.warning(split_note(found))
    return Data(train, train_rows, held_out, held_out_rows, reports)


def seed_of_rows(config: RunConfig) -> int:
    """Return where the order of rows comes from."""
    return config.train.seed if config.data.data_seed is None else config.data.data_seed


def split_rows(num_rows: int, val_size: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return sorted training and held-out rows. Raises ConfigError when none is left to train on."""
    held = int(val_size) if val_size >= 1 else max(1, round(val_size * num_rows))
    if held >= num_rows:
        raise ConfigError(f"val_size {val_size:g} leaves no row to train on: there are {num_rows}")
    order = np.random.default_rng(seed).permutation(num_rows)
    return np.sort(order[held:]), np.sort(order[:held])


def make_layout(config: RunConfig, *, rank: int = 0, num_ranks: int = 1) -> Layout:
    """Return how rows form batches."""
    packing = config.objective.rows == "text" if config.data.packing is None else config.data.packing
    return Layout(
        rows_per_batch=config.train.per_device_train_batch_size,
        fill_tokens=config.data.cutoff_len if packing else None,
        batches_per_window=config.train.gradient_accumulation_steps,
        rank=rank,
        num_ranks=num_ranks,
    )


def make_loaders(config: RunConfig, data: Data, preparer: Preparer, layout: Layout) -> tuple[Loader, MapLoader | None]:
    """Return the training loader and, where there are rows for it, the evaluation loader."""
    seed, shuffle = seed_of_rows(config), not config.data.disable_shuffling
    loader: Loader
    if data.train is None:
        start = stream_units(config.data.dataset, preparer, seed)
        rows = config.data.buffer_size if shuffle else 1
        loader = StreamLoader(start, preparer, layout, seed=seed, buffer_rows=rows)
    else:
        mix, weights = config.data.mix_strategy, config.data.interleave_probs
        loader = MapLoader(
            data.train, data.train_rows, layout, seed=seed, shuffle=shuffle, mix=mix, probabilities=weights
        )
    if data.held_out is None:
        return loader, None
    return loader, _held_out_loader(config, data.held_out, data.held_out_rows, layout)


def _held_out_loader(config: RunConfig, held_out: UnitStore, rows: np.ndarray, layout: Layout) -> MapLoader:
    per_pass = Layout(
        rows_per_batch=config.train.per_device_eval_batch_size, rank=layout.rank, num_ranks=layout.num_ranks
    )
    return MapLoader(held_out, rows, per_pass, seed=seed_of_rows(config), shuffle=False)


def held_out_parts(config: RunConfig, data: Data, layout: Layout) -> dict[str, MapLoader]:
    """Return a loader for each evaluation data set by its name, where each shall be reported."""
    names = config.data.eval_dataset
    if not config.data.eval_on_each_dataset or data.held_out is None or len(names) < 2:
        return {}
    short = [Path(name).stem for name in names]
    labels = short if len(set(short)) == len(names) else names
    rows = ((label, np.flatnonzero(data.held_out.source_index == i)) for i, label in enumerate(labels))
    return {label: _held_out_loader(config, data.held_out, found, layout) for label, found in rows if len(found)}


@dataclass(slots=True)
class Speaker:
    """A model that answers conversations: template, engine and how to draw."""

    template: ChatTemplate
    engine: Engine
    how: Sampling
    model: Any

    def use(self, adapter: str) -> None:
        """Answer with another adapter of the model. Raises ModelError naming those that are there."""
        use_adapter(self.model, adapter)
        self.engine.sync(self.model, 0)


def load_speaker(config: RunConfig, *, with_adapter: bool = True) -> Speaker:
    """Load a model for answering; `with_adapter=False` gives the untouched base of an adapter."""
    check_engine(config)
    prepare_process(config.model.threads)
    placement = place(config.model)
    logger.info("device: %s", placement.reason)
    model, tokenizer = load_for_inference(config.model, placement, with_adapter=with_adapter)
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    template = make_template(tokenizer, config, plain.config.model_type)
    return Speaker(template, make_engine(model, tokenizer, config), config.generate, model)


def check_engine(config: RunConfig) -> None:
    """Raise ConfigError or DependencyError when `engine` cannot be had here, before anything is loaded."""
    if config.model.engine != "vllm":
        return
    if config.model.decode_dtype == "int8":
        raise ConfigError("decode_dtype: int8 is a form of our decoder; for engine: vllm set bfloat16 or float32")
    rollout = config.rollout
    is_cut = rollout.rollout_top_p < 1 or rollout.rollout_top_k > 0
    if is_cut and rollout.rollout_temperature != 1 and (rollout.old_logp == "engine" or rollout.importance_cap):
        raise ConfigError(
            "engine: vllm reports no log-probabilities of draws with a temperature and rollout_top_p or rollout_top_k; "
            "set rollout_temperature: 1, or leave out old_logp: engine and importance_cap"
        )
    library()


def make_engine(model: Any, tokenizer: Any, config: RunConfig) -> Engine:
    """Return what generates answers, as `engine` says. Raises ModelError when what is asked for cannot run `model`."""
    wanted, size = config.model.engine, config.evaluate.predict_batch_size
    kind = None if config.model.decode_dtype == "auto" else config.model.decode_dtype
    if wanted == "vllm":
        check_engine(config)
        engine = VllmEngine(
            model,
            tokenizer,
            batch_size=size,
            kind=kind,
            memory_fraction=config.model.vllm_memory_fraction,
            temperature=config.rollout.rollout_temperature,
        )
        logger.info("answers: %s", engine.description)
        return engine
    reason = "kernels are off" if config.model.kernels == "off" else decoder_obstacle(model)
    if wanted == "local" and reason is not None:
        raise ModelError(f"engine: local cannot run this model: {reason}; set engine: auto", code="model_engine")
    if wanted == "hf" or reason is not None:
        logger.info("answers: transformers generate%s", f" ({reason})" if wanted == "auto" else "")
        return HfEngine(model, tokenizer, batch_size=size)
    engine = LocalEngine(model, tokenizer, batch_size=size, kind=kind)
    logger.info("answers: %s", engine.description)
    return engine


def load_base_speaker(config: RunConfig) -> Speaker:
    """Load the model that `config`'s model was made from. Raises ModelError when there is none."""
    name = config.model.model_name_or_path
    if find(config.model).adapter is not None:
        return load_speaker(config, with_adapter=False)
    base = base_of_run(config.model)
    if base is None:
        raise ModelError(f"{name} is no run directory and no adapter, so there is no base to compare it with")
    return load_speaker(replace(config, model=base))


def base_of_run(config: ModelConfig) -> ModelConfig | None:
    """Return the model that a run was started from, with the adapters that were merged into it; None for no run."""
    path = Path(config.model_name_or_path).expanduser()
    for folder in (path, path.parent):
        if is_run(folder):
            said = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))["model"]
            adapters = tuple(said.get("adapter_name_or_path") or ())
            return replace(config, model_name_or_path=said["model_name_or_path"], adapter_name_or_path=adapters)
    return None
