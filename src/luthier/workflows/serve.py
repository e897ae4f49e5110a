"""What a server answers with: a model and its adapters, under names that clients ask for."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.config.schema import RunConfig
from luthier.core.anatomy import plain_model
from luthier.core.errors import ConfigError, ModelError
from luthier.core.log import logger
from luthier.core.types import Sampling
from luthier.data.template import ChatTemplate
from luthier.engines.local import LocalEngine
from luthier.engines.pump import Pump
from luthier.kernels.cpu import prepare_process
from luthier.models.adapters import LEARNING, add_adapter
from luthier.models.decoder_parts import obstacle
from luthier.models.device import place
from luthier.models.load import ModelFiles, find, load_tokenizer, load_with_adapters, put_kernels
from luthier.models.reward_files import refuse_reward_model
from luthier.workflows.build import make_template

if TYPE_CHECKING:
    from collections.abc import Callable

    Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A loaded model at work."""

    tokenizer: Any
    templates: Mapping[str, ChatTemplate | None]
    """By name of the model; None where the tokenizer brings none and none is asked for: it goes on with texts only."""
    engine: LocalEngine
    pump: Pump
    how: Sampling
    """How answers are drawn where a request does not say."""
    context: int
    """Most tokens of prompt and answer."""
    vocabulary: int
    fingerprint: str
    """Changes with the software and with what is served."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What will be served, found and checked before anything is loaded."""

    config: RunConfig
    files: ModelFiles
    """The model that is loaded, with an adapter merged in where nothing else stands beside it."""
    adapters: Mapping[str, str | None]
    """Name that clients ask for -> name of the adapter inside the model; None is the model itself."""
    sources: Mapping[str, tuple[ModelFiles, RunConfig]]
    """The same names -> where they come from."""

    def load(self, tell: Tell) -> Served:
        """Load everything; `tell` hears how far it is. Raises ModelError for what our decoder cannot run."""
        config = self.config
        prepare_process(config.model.threads)
        placement = place(config.model)
        logger.info("device: %s", placement.reason)
        tell("reading the tokenizer")
        tokenizer = load_tokenizer(self.files, config.model)
        tell("reading the weights")
        model = self._model(placement)
        kind = plain_model(model).config.model_type
        templates = {name: self._template(name, tokenizer, kind) for name in self.sources}
        tell("preparing the decoder")
        inside = [name for name in self.adapters.values() if name is not None]
        more: dict[str, Any] = {"adapters": inside} if inside else {}
        form = None if config.model.decode_dtype == "auto" else config.model.decode_dtype
        engine = LocalEngine(model, tokenizer, batch_size=config.serve.max_concurrent, kind=form, **more)
        logger.info("answers: %s", engine.description)
        return Served(
            tokenizer=tokenizer,
            templates=templates,
            engine=engine,
            pump=Pump(engine),
            how=config.generate,
            context=engine.max_tokens,
            vocabulary=engine.num_tokens,
            fingerprint=self._fingerprint(),
        )

    def _model(self, placement: Any) -> Any:
        config = self.config.model
        first, *others = [name for name, inside in self.adapters.items() if inside is not None] or [""]
        files = self.sources[first][0] if first else self.files
        model = load_with_adapters(files, config, placement)
        for name in others:
            folder = self.sources[name][0].adapter
            assert folder is not None, "the plan took adapters only"
            add_adapter(model, folder, name)
        model.eval()
        put_kernels(model, config)
        reason = "kernels are off" if config.kernels == "off" else obstacle(model)
        if reason is not None:
            raise ModelError(
                f"this model cannot be served: our decoder, which answers many requests at once, does not run it "
                f"({reason}); `luthier chat` does",
                code="model_engine",
            )
        return model

    def _template(self, name: str, tokenizer: Any, kind: str) -> ChatTemplate | None:
        files, config = self.sources[name]
        own = tokenizer if files == self.files else load_tokenizer(files, config.model)
        if own is not tokenizer and own.get_vocab() != tokenizer.get_vocab():
            raise ModelError(
                f"adapter {name} has a vocabulary of its own, so it cannot share the model; serve it alone"
            )
        try:
            return make_template(own, config, kind)
        except ConfigError as error:
            if error.code != "config_no_template":
                raise
            logger.info("%s has no chat template, so it only goes on with texts (/v1/completions)", name)
            return None

    def _fingerprint(self) -> str:
        facts = [version("luthier"), self.files, dict(self.adapters), self.config.model.decode_dtype]
        return f"luthier_{hashlib.sha256(repr(facts).encode()).hexdigest()[:12]}"


def plan_serving(config: RunConfig, adapters: Mapping[str, RunConfig] | None = None) -> Plan:
    """Return what is served: the model of `config`, and adapters by name that stand on the same weights.

    Raises ConfigError or ModelError for what cannot be served together.
    """
    if config.model.engine in ("hf", "vllm"):
        raise ConfigError(f"engine: {config.model.engine} does not serve; leave engine out: our decoder answers")
    files = find(config.model)
    refuse_reward_model(files)
    named = {**{n: _on_top(config, f) for n, f in config.model.more_adapters.items()}, **(adapters or {})}
    name = config.serve.served_model_name or clean_name(config.model.model_name_or_path)
    _check_names([name, *named])
    if not named:
        return Plan(config=config, files=files, adapters={name: None}, sources={name: (files, config)})
    sources = {each: (find(its.model), its) for each, its in named.items()}
    if files.adapter is not None:
        # An adapter that is served beside others is one of them.
        sources = {name: (files, config), **sources}
        files, name = files.below, clean_name(files.public_base)
        _check_names([name, *sources])
    for each, (found, _) in sources.items():
        _check_base(each, found, files)
    first = next(iter(sources))
    inside = {each: LEARNING if each == first else each for each in sources}
    plain = replace(config, model=replace(config.model, adapter_name_or_path=()))
    return Plan(
        config=config,
        files=files,
        adapters={name: None, **inside},
        sources={name: (files, plain), **sources},
    )


def _on_top(config: RunConfig, folder: str) -> RunConfig:
    return replace(config, model=replace(config.model, model_name_or_path=folder, adapter_name_or_path=()))


def _check_base(name: str, found: ModelFiles, base: ModelFiles) -> None:
    if found.adapter is None:
        raise ModelError(f"adapter {name}: {found.base} holds no adapter", code="model_adapter")
    if (Path(found.base), found.below.adapters) != (Path(base.base), base.adapters):
        stands_on = ", ".join(map(str, [found.base, *found.below.adapters]))
        raise ModelError(
            f"adapter {name} stands on {stands_on}, and not on {', '.join(map(str, [base.base, *base.adapters]))}; "
            "adapters that are served together stand on the same model",
            code="model_adapter",
        )


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")


def clean_name(source: str) -> str:
    """Return a name for clients: never a path.

    >>> clean_name("/home/me/runs/tickets"), clean_name("runs/tickets/checkpoint-20")
    ('tickets', 'tickets-checkpoint-20')
    """
    path = Path(source)
    parts = [path.parent.name, path.name] if path.name.startswith("checkpoint") else [path.resolve().name]
    return re.sub(r"[^A-Za-z0-9._:-]+", "-", "-".join(part for part in parts if part)).strip("-.:_") or "model"


def _check_names(names: list[str]) -> None:
    for name in names:
        if _NAME.fullmatch(name) is None:
            raise ConfigError(f"{name!r} is no name for clients; take letters, digits, dots and dashes, at most 128")
        if names.count(name) > 1:
            raise ConfigError(f"two models would be called {name}; name one of them otherwise (served_model_name)")
