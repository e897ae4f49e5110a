"""luthier serve, and the keys that let clients in."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier.cli.common import AsJson, Overrides, Source, model_config
from luthier.core.errors import ConfigError

if TYPE_CHECKING:
    from luthier.server.keys import Keys

keys_app = typer.Typer(help="Keys that let clients of `luthier serve` in.", no_args_is_help=True)
KeyFile = Annotated[Path, typer.Option("--file", help="File of keys; it holds their hashes.")]


def serve(
    source: Source,
    overrides: Overrides = None,
    adapter: Annotated[
        list[str] | None, typer.Option(help="name=RUN: an adapter on the same model, under a name of its own; repeat.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one.")] = None,
    api_key: Annotated[
        list[str] | None, typer.Option(help="Key that lets clients in; repeat.", envvar="LUTHIER_API_KEY")
    ] = None,
) -> None:
    """Answer over HTTP as OpenAI's API does: chats, completions, embeddings."""
    options = [f"serve.host={host}"] * (host is not None) + [f"serve.port={port}"] * (port is not None)
    config = model_config(source, [*(overrides or []), *options])
    adapters = {name: model_config(run, overrides) for name, run in map(_named, adapter or [])}
    if len(adapters) < len(adapter or []):
        raise ConfigError("--adapter: each adapter needs a name of its own")
    from luthier.server.run import serve as run_server
    from luthier.workflows.serve import plan_serving

    run_server(plan_serving(config, adapters), _keys(config, api_key or []))
    _leave()


def _leave() -> None:
    """End the process now: all is closed, and Python would tidy up for seconds, or run into threads that still load."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _named(given: str) -> tuple[str, str]:
    name, found, run = given.partition("=")
    if not (found and name and run):
        raise ConfigError(f"--adapter takes name=RUN, such as tickets=runs/tickets; found {given!r}")
    return name, run


def _keys(config: Any, given: list[str]) -> Keys:
    from luthier.server.keys import Keys

    if any(not secret.strip() for secret in given):
        raise ConfigError("--api-key: an empty key would let everybody in; leave it out, or give one")
    path = config.serve.api_keys
    return Keys(given, Path(path).expanduser() if path else None)


@keys_app.command("add")
def add(name: Annotated[str, typer.Argument(help="Whose key it is.")], file: KeyFile, json: AsJson = False) -> None:
    """Make a key and print it, this once; the file keeps its hash."""
    from luthier.cli.show import as_json
    from luthier.server.keys import add_key

    secret = add_key(file.expanduser(), name)
    as_json(name=name, key=secret) if json else print(secret)


@keys_app.command("remove")
def remove(name: Annotated[str, typer.Argument(help="Whose key it is.")], file: KeyFile) -> None:
    """Revoke a key; running servers refuse it from their next request on."""
    from luthier.server.keys import remove_key

    remove_key(file.expanduser(), name)


@keys_app.command("list")
def show(file: KeyFile, json: AsJson = False) -> None:
    """Print the names of keys."""
    from luthier.cli.show import as_json
    from luthier.server.keys import read_keys

    names = list(read_keys(file.expanduser()))
    as_json(names=names) if json else print("\n".join(names))
