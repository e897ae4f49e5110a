"""What stands behind `luthier` before a command sees it: words of `llamafactory-cli`, and `--key value`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luthier.core.log import logger

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping, Sequence

WORDS = {"api": "serve", "eval": "evaluate", "env": "doctor", "webui": "ui", "webchat": "ui"}
"""Word of `llamafactory-cli` -> command here; the others are called alike."""
PAGE_ADDRESS = {"GRADIO_SERVER_NAME": "--host", "GRADIO_SERVER_PORT": "--port"}
"""Variable that the pages of `llamafactory-cli` read -> option."""
SERVING = {"API_HOST": "host", "API_PORT": "port", "API_MODEL_NAME": "served_model_name"}
"""Variable that `llamafactory-cli api` reads -> setting."""
KEY, OWN_KEY = "API_KEY", "LUTHIER_API_KEY"


def translate(
    argv: Sequence[str], options: Mapping[str, frozenset[str]], environ: MutableMapping[str, str]
) -> list[str]:
    """Return the arguments as the commands take them: settings as key=value, behind everything else.

    `options`: command -> the options that it declares. A key of `llamafactory-cli api` in `environ` is put where
    `luthier serve` looks for one.

    >>> translate(["eval", "--top_k", "5", "a.yaml"], {"evaluate": frozenset()}, {})
    ['evaluate', 'a.yaml', 'top_k=5']
    """
    if not argv:
        return []
    word, given = argv[0], list(argv[1:])
    command = WORDS.get(word, word)
    if command not in options:
        return list(argv)
    end = given.index("--") if "--" in given else len(given)
    others, settings = _sort(given[:end], options[command])
    if word == "api":
        settings += _of_the_environment(others, settings, environ)
    if word in ("webui", "webchat"):
        return [command, *_page_options(word, others, settings, environ)]
    return [command, *others, *settings, *given[end:]]


def _sort(given: Sequence[str], own: frozenset[str]) -> tuple[list[str], list[str]]:
    """Return what stays as it is, and `--key value`, `--key=value` and `--key` as settings."""
    others: list[str] = []
    settings: list[str] = []
    rest = list(given)
    while rest:
        text = rest.pop(0)
        name, equals, value = text.partition("=")
        key = name.removeprefix("--").replace("-", "_")
        if not text.startswith("--") or name in own or not _is_key(key):
            others.append(text)
        elif equals:
            settings.append(f"{key}={value}")
        else:
            has_value = bool(rest) and not rest[0].startswith("--")
            settings.append(f"{key}={rest.pop(0) if has_value else 'true'}")
    return others, settings


def _page_options(
    word: str, others: Sequence[str], settings: Sequence[str], environ: Mapping[str, str]
) -> Sequence[str]:
    """Return the options of `luthier ui`; a model that `webchat` was given is chosen on the page."""
    found = [(name, option) for name, option in PAGE_ADDRESS.items() if environ.get(name) and option not in others]
    for name, option in found:
        logger.info("%s: %s, from %s", option, environ[name], name)
    model = [*settings, *(text for text in others if text.endswith((".yaml", ".yml", ".json")))]
    if word == "webchat" and model:
        logger.info("webchat: %s is not read here; choose the model on the page, under Chat", " ".join(model))
        others, settings = [text for text in others if text not in model], []
    return [*others, *settings, *(text for name, option in found for text in (option, environ[name]))]


def _is_key(key: str) -> bool:
    """Tell whether an option that the command does not declare is meant as a setting."""
    from luthier.config import compat
    from luthier.config.load import homes

    return "_" in key or "." in key or key in {*homes(), *compat.RENAMED, *compat.SWITCHES, *compat.IGNORED}


def _of_the_environment(others: Sequence[str], settings: Sequence[str], environ: MutableMapping[str, str]) -> list[str]:
    if environ.get(KEY):
        logger.info("%s is the key that lets clients in", KEY)
        environ.setdefault(OWN_KEY, environ[KEY])
    named = {text.partition("=")[0].removeprefix("--").removeprefix("serve.") for text in (*others, *settings)}
    found = {name: key for name, key in SERVING.items() if environ.get(name) and key not in named}
    for name, key in found.items():
        logger.info("%s: %s, from %s", key, environ[name], name)
    return [f"serve.{key}={environ[name]}" for name, key in found.items()]
