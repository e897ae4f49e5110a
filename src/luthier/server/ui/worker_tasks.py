"""What children of the server compute; everything here may take torch and a tokenizer."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from luthier.config.load import Loaded, load_config
from luthier.core.errors import ConfigError, DataError
from luthier.core.findings import Finding
from luthier.core.types import Message
from luthier.data.row_index import RowFile
from luthier.data.rows import check_kind_of
from luthier.data.sources import Row
from luthier.server.ui.roots import Roots
from luthier.server.ui.sets import source_below

if TYPE_CHECKING:
    from collections.abc import Iterator

    from luthier.config.schema import RunConfig
    from luthier.data.prepare import Preparer

_NEAREST = (("per_device_train_batch_size", "train"), ("cutoff_len", "data"))
"""Settings that are halved, in turns, to find what fits."""
MOST_TRIES = 8
_ROWS_AT_ONCE = 64


def _load(settings: dict[str, Any], *, allow_remote_code: bool) -> Loaded:
    loaded = load_config(settings["values"], settings.get("overrides") or [])
    if not allow_remote_code and loaded.config.model.allow_remote_code:
        raise ConfigError("allow_remote_code is said on the command line of `luthier ui`, not on the page")
    return loaded


def estimate(settings: dict[str, Any], available: int, *, allow_remote_code: bool) -> dict[str, Any]:
    """Return what a training takes, and where it does not fit into `available` bytes the nearest one that does."""
    from luthier.workflows.estimate import estimate as estimated

    config = _load(settings, allow_remote_code=allow_remote_code).config
    plan = estimated(config)
    remedies = [] if plan.peak_bytes <= available else _remedies(config, available)
    return {
        **asdict(plan),
        "peak_bytes": plan.peak_bytes,
        "lines": plan.lines(),
        "remedies": remedies,
        "checkpoint_bytes": _checkpoint_bytes(config, plan),
    }


def _checkpoint_bytes(config: RunConfig, plan: Any) -> int:
    """Return what a run keeps on the disk: weights in float32, and two moments of each where it can go on."""
    kept = config.train.save_total_limit or 1
    one = plan.learning * 4 * (1 if config.train.save_only_model else 3)
    return one * kept + plan.learning * 4


def _remedies(config: RunConfig, available: int) -> list[str]:
    from luthier.workflows.estimate import estimate as estimated

    found: list[str] = []
    if not config.train.gradient_checkpointing:
        config = replace(config, train=replace(config.train, gradient_checkpointing=True))
        found.append("gradient_checkpointing: true")
    for turn in range(MOST_TRIES):
        plan = estimated(config)
        if plan.peak_bytes <= available:
            return [f"{', '.join(found)}: about {plan.peak_bytes / 1e9:.1f} GB"]
        key, section = _NEAREST[turn % len(_NEAREST)]
        now = getattr(getattr(config, section), key)
        if now > 1:
            config = replace(config, **{section: replace(getattr(config, section), **{key: now // 2})})
            found = [*(each for each in found if not each.startswith(key)), f"{key}: {now // 2}"]
    return ["take a smaller model, or quantization: nf4"]


@lru_cache(maxsize=4)
def _prepared(spelled: str, *, allow_remote_code: bool) -> tuple[Preparer, Loaded]:
    from luthier.workflows.build import read_preparer

    loaded = _load({"values": json.loads(spelled)}, allow_remote_code=allow_remote_code)
    return read_preparer(loaded.config), loaded


def tokens(
    values: dict[str, Any], rows: list[int], roots: dict[str, Any], *, allow_remote_code: bool
) -> dict[str, Any]:
    """Return rows of `data.dataset`, by their places, as training sees them; its file lies below the data folders."""
    from luthier.workflows.preview import tokens_of

    preparer, loaded = _prepared(json.dumps(values, sort_keys=True), allow_remote_code=allow_remote_code)
    below, data = Roots.from_dict(roots), loaded.config.data
    source = source_below(below, data.dataset[0], data)
    if source.path is None or not source.path.is_file():
        raise DataError(f"the rows of {source.name} are not in a file on this machine")
    file = RowFile(source.path, below.open_data)
    file.build()
    places = range(0, file.total or 0, _ROWS_AT_ONCE)
    check_kind_of((row for place in places for row in _rows(file, place, _ROWS_AT_ONCE)), source, preparer.kind)
    found = [(place, row) for place in rows for row in _rows(file, place, 1)]
    shown = [{"row": place, **asdict(tokens_of(row, source, preparer))} for place, row in found]
    return {"rows": shown, "template": data.template or "", "notices": loaded.notices}


def _rows(file: RowFile, start: int, count: int) -> Iterator[Row]:
    for stored in file.each(start, count):
        where = f"{file.path}:{stored.line}"
        bad = Finding(kind="broken", level="error", where=where, message=stored.broken) if stored.broken else None
        yield Row(where, None if bad else stored.value, bad)


@lru_cache(maxsize=4)
def _template(source: str, overrides: tuple[str, ...], *, allow_remote_code: bool) -> Any:
    from luthier.models.load import find, load_tokenizer
    from luthier.workflows.build import make_template, transformers_config
    from luthier.workflows.using import settings_of

    config = settings_of(source, overrides)
    if config.model.allow_remote_code and not allow_remote_code:
        raise ConfigError("allow_remote_code is said on the command line of `luthier ui`, not on the page")
    files = find(config.model)
    return make_template(load_tokenizer(files, config.model), config, transformers_config(files, config).model_type)


def prompt(
    source: str, overrides: list[str], messages: list[dict[str, str]], *, allow_remote_code: bool
) -> dict[str, Any]:
    """Return the exact tokens that a model is given for a conversation."""
    from luthier.workflows.preview import texts_of

    template = _template(source, tuple(overrides), allow_remote_code=allow_remote_code)
    turns = [Message(role=each["role"], content=each["content"]) for each in messages]  # pyright: ignore
    ids = template.prompt(turns)
    special = {i for i, token in template.tokenizer.added_tokens_decoder.items() if token.special}
    pieces = zip(ids, texts_of(ids, template.tokenizer), strict=True)
    return {"pieces": [{"id": i, "text": text, "kind": "read", "special": i in special} for i, text in pieces]}


def templates(model: str, *, allow_remote_code: bool) -> dict[str, Any]:
    """Return whether the tokenizer of a model brings a chat template, and which named ones fit it."""
    from luthier.core.anatomy import family_of
    from luthier.data.template_names import NAMES
    from luthier.models.load import load_tokenizer, resolve
    from luthier.workflows.build import transformers_config

    config = load_config({"model_name_or_path": model}).config
    if allow_remote_code:
        config = replace(config, model=replace(config.model, allow_remote_code=True))
    files = resolve(model)
    tokenizer = load_tokenizer(files, config.model)
    words = tokenizer.get_vocab()
    family = family_of(transformers_config(files, config).model_type).templates
    fitting = [name for name in family if name in NAMES and all(word in words for word in NAMES[name].needs)]
    return {"own": bool(tokenizer.chat_template), "fitting": fitting}


def warm(*, allow_remote_code: bool) -> None:
    """Load what takes long, so that the first question does not wait for it."""
    del allow_remote_code
    import_module("luthier.workflows.estimate")
    import_module("luthier.workflows.preview")
    # Their classes are loaded at the first use.
    for name in ("AutoConfig", "AutoTokenizer", "AutoModelForCausalLM"):
        getattr(import_module("transformers"), name)


TASKS = {"warm": warm, "estimate": estimate, "tokens": tokens, "prompt": prompt, "templates": templates}
