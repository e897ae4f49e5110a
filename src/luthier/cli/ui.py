"""luthier ui."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def ui(
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 7860,
    host: Annotated[
        str, typer.Option(help="Address to listen on; others than this machine's own are open to other machines.")
    ] = "127.0.0.1",
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Open no browser.")] = False,
    runs: Annotated[Path, typer.Option(help="Folder of runs.")] = Path("runs"),
    data: Annotated[
        list[Path] | None, typer.Option(help="Folder of data that the page may read; repeat. [default: data]")
    ] = None,
    models: Annotated[list[Path] | None, typer.Option(help="Folder of models that the page may read; repeat.")] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="File of the token that lets people in; made when it is not there.")
    ] = None,
    allow_remote_code: Annotated[
        bool, typer.Option("--allow-remote-code", help="Let jobs run code that models bring.")
    ] = False,
) -> None:
    """Open the web page: data, training, runs, evaluation, chat, export, queue."""
    from luthier.server.ui.run import Options, serve

    folders = data if data is not None else [each for each in [Path("data")] if each.is_dir()]
    serve(
        Options(
            host=host,
            port=port,
            runs=runs,
            data=folders,
            models=models or [],
            token_file=token_file,
            allow_remote_code=allow_remote_code,
            browser=not no_browser,
        )
    )
