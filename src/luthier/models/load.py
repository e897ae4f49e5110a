"""ModelConfig -> tokenizer and model: resolve the name, look before loading, choose dtype, put kernels in."""

from __future__ import annotations

from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import yaml

from luthier.core.errors import ModelError
from luthier.core.hub import look_for_hub
from luthier.core.log import first_line, logger, printable, say_once
from luthier.core.registry import did_you_mean
from luthier.models.adapters import add_adapter, check_mergeable, facts_of, is_adapter, load_adapter
from luthier.models.aliases import ALIASES, gguf_in, locate, unpack_gguf
from luthier.models.foreign import Layout, read_layout
from luthier.models.inspect import check_folder, refuse_multimodal
from luthier.models.patch import attention_for, install, register_attention
from luthier.models.quantized import compute_in_torch, make_mergeable, quantized_layers, quantized_size
from luthier.models.quantized_files import open_weights, other_form, stored_form, unpack
from luthier.models.quantized_load import Choice, choose
from luthier.models.quantized_load import load as load_by_tensor
from luthier.models.reward_files import drop_output_head, refuse_reward_model, says_reward, without_report
from luthier.models.rope import stretch
from luthier.models.vocabulary import add_words, grow
from luthier.runs.store import list_checkpoints

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from luthier.config.schema import ModelConfig
    from luthier.models.device import Placement


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """Where a model's parts are."""

    base: str
    """Folder or hub name of the whole model."""
    adapters: tuple[Path, ...] = ()
    """Folders of adapters on top of it, the lowest first: all but the last are merged into the base."""
    public_base: str = ""
    """The base as others should find it: hub name for an alias, path otherwise."""

    @property
    def adapter(self) -> Path | None:
        """Return the adapter on top."""
        return self.adapters[-1] if self.adapters else None

    @property
    def below(self) -> ModelFiles:
        """Return what the adapter on top stands on."""
        return replace(self, adapters=self.adapters[:-1])


def resolve(name: str) -> ModelFiles:
    """Find the files behind an alias, folder, run directory, checkpoint or hub name.

    Raises ModelError when there is nothing.
    """
    if name in ALIASES:
        return ModelFiles(locate(name), public_base=ALIASES[name].hub)
    path = Path(name).expanduser()
    if path.is_dir():
        return _resolve_folder(path)
    if path.suffix == ".gguf" and path.is_file():
        return ModelFiles(str(unpack_gguf(path)), public_base=str(path))
    if path.exists():
        raise ModelError(
            f"{path} is a file; expected a model folder, GGUF file, run directory or alias", code="model_missing"
        )
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        known = (
            [*ALIASES, *(p.name for p in path.parent.iterdir() if p.is_dir())] if path.parent.is_dir() else [*ALIASES]
        )
        raise ModelError(
            f"model {printable(name)} is neither a folder ({path.absolute()}) nor an alias ({', '.join(ALIASES)}) "
            f"nor a hub name like organisation/model{did_you_mean(name, known)}",
            code="model_missing",
        )
    look_for_hub()
    return ModelFiles(name, public_base=name)


def _resolve_folder(path: Path) -> ModelFiles:
    has_weights = any(path.glob("*.safetensors")) or any(path.glob("*.bin"))
    if (path / "status.json").is_file() and not has_weights:
        checkpoints = list_checkpoints(path)
        if not checkpoints:
            raise ModelError(f"run {path} has neither final weights nor a checkpoint yet", code="model_incomplete")
        say_once(f"{path} is not finished; its newest checkpoint {checkpoints[0].name} is used")
        return _resolve_folder(checkpoints[0])
    if is_adapter(path):
        base = _stands_on(path)
        return replace(base, adapters=(*base.adapters, path))
    packed = gguf_in(path)
    return resolve(str(packed)) if packed is not None else ModelFiles(str(path), public_base=str(path))


def _stands_on(adapter: Path) -> ModelFiles:
    """Return what an adapter was trained on: as the run that made it says, else the base that peft wrote down."""
    for folder in (adapter, adapter.parent):
        config = folder / "config.yaml"
        if config.is_file():
            said = (yaml.safe_load(config.read_text(encoding="utf-8")) or {}).get("model", {})
            named = said.get("model_name_or_path")
            if named and Path(named).expanduser().absolute() not in (adapter.absolute(), adapter.parent.absolute()):
                files = with_adapters(resolve(str(named)), said.get("adapter_name_or_path") or ())
                return files if said.get("create_new_adapter") else files.below
    named = facts_of(adapter).get("base_model_name_or_path")
    if not named:
        raise ModelError(f"{adapter}/adapter_config.json does not name the base model", code="model_incomplete")
    return resolve(str(named))


def with_adapters(files: ModelFiles, names: Sequence[str]) -> ModelFiles:
    """Return `files` with further adapters on top, each with those that it stands on itself."""
    stack = list(files.adapters)
    for name in [names] if isinstance(names, str) else names:
        stack += [folder for folder in _adapters_of(name) if folder not in stack]
    return replace(files, adapters=tuple(stack))


def _adapters_of(name: str) -> tuple[Path, ...]:
    found = resolve(name).adapters if Path(name).expanduser().is_dir() else ()
    if not found:
        raise ModelError(f"{printable(name)} holds no adapter (adapter_config.json)", code="model_adapter")
    return found


def find(config: ModelConfig) -> ModelFiles:
    """Return the model of the settings with every adapter that they put on it."""
    return with_adapters(resolve(config.model_name_or_path), config.adapter_name_or_path)


def load_tokenizer(files: ModelFiles, config: ModelConfig) -> Any:
    """Load the tokenizer that lies beside the adapter, else the base model's."""
    from transformers import AutoTokenizer

    folder = files.base
    if files.adapter is not None and (files.adapter / "tokenizer_config.json").is_file():
        folder = str(files.adapter)
    _look(files, config)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, revision=config.model_revision, trust_remote_code=config.allow_remote_code
        )
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"tokenizer of {files.public_base}: {first_line(error)}", code="model_missing") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    add_words(tokenizer, config)
    return tokenizer


def _grown(model: Any, files: ModelFiles, config: ModelConfig, tokenizer: Any = None) -> Any:
    """Return a model with a row for each word that the settings, or an adapter's tokenizer, have beside the base's."""
    if tokenizer is None:
        if not config.has_own_words:
            return model
        tokenizer = load_tokenizer(files, config)
    old = load_tokenizer(ModelFiles(files.base), config.without_words())
    grow(model, tokenizer, old, config.new_special_tokens_config)
    return model


def _look(files: ModelFiles, config: ModelConfig) -> None:
    options = {"allow_remote_code": config.allow_remote_code, "allow_pickle": config.allow_pickle}
    if Path(files.base).is_dir():
        check_folder(Path(files.base), **options, has_weights=not config.train_from_scratch)
    for adapter in files.adapters:
        check_folder(adapter, **options, is_adapter=True)


def load_model(files: ModelFiles, config: ModelConfig, placement: Placement) -> Any:
    """Load the base model, frozen, without adapter and kernels; a reward model without its head. Raises ModelError."""
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    choice = choose(config, placement)
    _look(files, config)
    disable_progress_bar()
    register_attention()
    try:
        layout = read_layout(files.base, revision=config.model_revision, allow_remote_code=config.allow_remote_code)
        refuse_multimodal(layout.raw, files.public_base)
        facts, options = layout.config, {"revision": config.model_revision, "trust_remote_code": layout.remote}
        attention = attention_for(facts, config.kernels)
        by_tensor = choice is not None or stored_form(facts) is not None or layout.foreign is not None
        with without_report() if says_reward(facts) else nullcontext():
            if by_tensor:
                model = _load_by_tensor(files, config, placement, layout, choice)
            else:
                model: Any = AutoModelForCausalLM.from_pretrained(
                    files.base,
                    dtype=placement.dtype,
                    attn_implementation=attention,
                    use_safetensors=None if config.allow_pickle else True,
                    **options,
                )
    except (OSError, ValueError, KeyError, RuntimeError, UnpicklingError) as error:
        raise ModelError(
            f"model {files.public_base} cannot be loaded: {first_line(error)}", code="model_missing"
        ) from error
    if says_reward(facts):
        drop_output_head(model)
    _grown(model, files, config)
    if config.rope_scaling != "none":
        stretch(model, config)
    return _moved(model, placement).requires_grad_(False)


def fresh_model(files: ModelFiles, config: ModelConfig, placement: Placement) -> Any:
    """Return a model of the same form with random weights, from torch's generator."""
    from transformers import AutoModelForCausalLM

    _look(files, config)
    layout = read_layout(files.base, revision=config.model_revision, allow_remote_code=config.allow_remote_code)
    attention = attention_for(layout.config, config.kernels)
    register_attention()
    remote = {"trust_remote_code": layout.remote}
    model: Any = AutoModelForCausalLM.from_config(
        layout.config, dtype=placement.dtype, attn_implementation=attention, **remote
    )
    _grown(model, files, config)
    if config.rope_scaling != "none":
        stretch(model, config)
    logger.info("model: random weights in the form of %s", files.public_base)
    return _moved(model, placement)


def _load_by_tensor(
    files: ModelFiles, config: ModelConfig, placement: Placement, layout: Layout, choice: Choice | None
) -> Any:
    """Read tensor by tensor: unpack whole numbers, re-lay what has another layout, make narrow what shall be."""
    from transformers import GenerationConfig

    facts = layout.config
    if (form := other_form(facts)) is not None:
        raise ModelError(
            f"{files.public_base} is quantized already ({form}); leave quantization out, or take the original model",
            code="model_quantization",
        )
    weights = open_weights(files.base, revision=config.model_revision, allow_pickle=config.allow_pickle)
    stored = stored_form(facts)
    if stored is not None:
        weights = unpack(weights, stored)
        method, dtype = str(stored["quant_method"]).upper(), str(placement.dtype).removeprefix("torch.")
        then = (
            f"{dtype}: they are frozen weights like others" if choice is None else f"float32 and kept as {choice.form}"
        )
        logger.info("%s weights are unpacked to %s", method, then)
        del facts.quantization_config
    if layout.foreign is not None:
        weights = layout.relay(weights)
    options = {"attn_implementation": attention_for(facts, config.kernels)}
    remote = {"trust_remote_code": layout.remote}
    model = load_by_tensor(facts, weights, options | remote, choice, placement)
    model.config._name_or_path = model.name_or_path = files.base
    with suppress(OSError):  # many models have none; transformers derives it from the config
        model.generation_config = GenerationConfig.from_pretrained(files.base, revision=config.model_revision)
    return model


def _moved(model: Any, placement: Placement) -> Any:
    """Move a model; bitsandbytes has put its layers where they compute already."""
    return model if getattr(model, "hf_device_map", None) else model.to(placement.device)


def put_kernels(model: Any, config: ModelConfig, *, quiet: bool = False) -> None:
    """Install kernels where the settings want them, and say which."""
    make_mergeable(model)
    if config.kernels == "off":
        compute_in_torch(model)
    lines = ["off, plain transformers"] if config.kernels == "off" else install(model)
    if lines and not quiet:
        logger.info("kernels: %s", ", ".join(lines))


def load_with_adapters(files: ModelFiles, config: ModelConfig, placement: Placement) -> Any:
    """Load a frozen model with its adapters: all but the last are merged into it."""
    model = merge_in(load_model(files, config, placement), files.below.adapters)
    return model if files.adapter is None else load_adapter(model, files.adapter, trainable=False)


def merge_in(model: Any, folders: Sequence[Path]) -> Any:
    """Make adapters part of the weights, one after the other. Raises ModelError when one is no part of weights."""
    for folder in folders:
        check_mergeable(folder)
        model = load_adapter(model, folder, trainable=False)
        if make_mergeable(model):
            say_once("layers that an adapter is merged into are no longer quantized")
        model = model.merge_and_unload().requires_grad_(False)
        logger.info("adapter %s is merged into the model", folder)
    return model


def load_for_inference(config: ModelConfig, placement: Placement, *, with_adapter: bool = True) -> tuple[Any, Any]:
    """Return (model, tokenizer) ready to answer; `with_adapter=False` gives the untouched base."""
    files = find(config)
    refuse_reward_model(files if with_adapter else files.below)
    tokenizer = load_tokenizer(files, config)
    model = load_with_adapters(files if with_adapter else files.below, config, placement)
    if not with_adapter and len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        _grown(model, files, config, tokenizer)
    for name, folder in config.more_adapters.items() if with_adapter else ():
        add_adapter(model, _adapters_of(folder)[-1], name)
    model.eval()
    put_kernels(model, config)
    return model, tokenizer


def parameter_counts(model: torch.nn.Module) -> tuple[int, int]:
    """Return (all, learning) parameters; tied ones count once."""
    narrow = {f"{path}.weight" for path, _ in quantized_layers(model)}
    every = {id(p): p for name, p in model.named_parameters() if name not in narrow}.values()
    learning = sum(p.numel() for p in every if p.requires_grad)
    return sum(p.numel() for p in every) + quantized_size(model)[0], learning
