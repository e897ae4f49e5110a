"""The command line: parse, call a workflow, show. Heavy imports happen inside commands, so that --help is instant."""

from luthier.cli.main import main

__all__ = ["main"]
