"""Verify GGUF files: against the model that they were made from, or alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luthier.core.progress import parts
from luthier.export.gguf import planned
from luthier.export.verify.chats import Case, Chats, chat_prompts
from luthier.export.verify.container import Container, check_container, check_reread
from luthier.export.verify.decoding import (
    Gap,
    Row,
    answer,
    ask,
    check_distance,
    check_greedy,
    check_runs,
    check_stop_ids,
    check_stopping,
)
from luthier.export.verify.llama import Llama, obstacle
from luthier.export.verify.metadata import check_metadata, check_metadata_alone, named_stops, stop_ids
from luthier.export.verify.questions import BEGINNINGS, QUESTIONS
from luthier.export.verify.reference import Reference
from luthier.export.verify.report import Check, Report, guarded, not_done
from luthier.export.verify.templates import check_template, check_template_alone
from luthier.export.verify.tensors import check_finite, check_moved, check_names, check_values
from luthier.export.verify.tokens import check_habits, check_long, check_round_trip, check_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from luthier.core.types import Message
    from luthier.export.source import Source

NUM_CHECKS = 15
"""Of a file that has a source; the rows that the distance is measured on are one."""


@parts(NUM_CHECKS)
def verify_gguf(
    path: Path, source: Source, *, prompts: Sequence[Sequence[Message] | str] | None = None, base: Source | None = None
) -> Report:
    """Hold a GGUF file against the model that it was made from.

    `prompts`: conversations up to where an answer begins, or texts to go on with, such as rows held out of training;
    `base`: the model before training.
    """
    checks: list[Check] = []
    container = _frame(path, checks)
    if container is None:
        return Report(path.name, tuple(checks))
    plan = planned(source)
    checks.append(guarded("metadata", "", lambda: check_metadata(container, source)))
    checks.append(guarded("tensor names", "", lambda: check_names(container, plan)))
    checks.append(guarded("tensor values", "", lambda: check_values(container, plan)))
    checks.append(_moved(container, source, base))
    rows = _served(container, source, prompts_of(source, prompts), _texts_of(prompts), checks)
    _decoded(path, source, rows, form_of(container), base, checks)
    return Report(path.name, tuple(checks))


def verify_gguf_alone(path: Path) -> Report:
    """Look at a GGUF file of which there is no source: what can be seen of the file itself."""
    checks: list[Check] = []
    container = _frame(path, checks)
    if container is None:
        return Report(path.name, tuple(checks))
    checks.append(guarded("metadata", "", lambda: check_metadata_alone(container)))
    checks.append(guarded("tensor values", "", lambda: check_finite(container)))
    tokens = container.get("tokenizer.ggml.tokens") or []
    types = container.get("tokenizer.ggml.token_type") or []
    control = [token for token, kind in zip(tokens, types, strict=False) if kind == _CONTROL]
    template = container.get("tokenizer.chat_template")
    done = _with_server(path, {
        "tokenizer": lambda server: check_round_trip(server, control),
        "chat template": lambda server: check_template_alone(server, template),
    })  # fmt: skip
    checks += done
    checks.append(guarded("runs", "", lambda: check_runs(path, BEGINNINGS[:4])))
    ids = sorted(named_stops(container))
    checks.append(guarded("stop ids", "", lambda: _stop_ids(path, ids, lambda i: tokens[i])))
    missing = ("tensor names", "training is in it", "greedy answers", "distance", "stopping")
    checks += [not_done(name, "needs the model that the file was made from") for name in missing]
    return Report(path.name, tuple(checks))


_CONTROL = 3
"""Type of control tokens in tokenizer.ggml.token_type."""


def _frame(path: Path, checks: list[Check]) -> Container | None:
    check, container = check_container(path)
    checks.append(check)
    if container is not None:
        checks.append(guarded("reread", "the gguf package reads it", lambda: check_reread(container)))
    return container


def _moved(container: Container, source: Source, base: Source | None) -> Check:
    if base is None:
        return not_done("training is in it", "the model before training was not given")
    return guarded("training is in it", "", lambda: check_moved(container, planned(source), planned(base)))


def form_of(container: Container) -> str:
    """Return the name of a file's type, such as Q4_K_M."""
    from gguf.constants import LlamaFileType

    names = {kind.value: kind.name.removeprefix("MOSTLY_").removeprefix("ALL_") for kind in LlamaFileType}
    return names.get(container.values.get("general.file_type", -1), "of unknown type")


def prompts_of(source: Source, prompts: Sequence[Sequence[Message] | str] | None) -> list[list[int]]:
    """Return the ids of what is asked: the given prompts, else questions of our own."""
    tokenizer = source.tokenizer
    chats = Chats(tokenizer) if tokenizer.chat_template else None
    if prompts is None:
        if chats is not None:
            return chat_prompts(chats, QUESTIONS)
        prompts = BEGINNINGS
    found: list[list[int]] = []
    for each in prompts:
        text = each if isinstance(each, str) else chats.render(Case("given", tuple(each))) if chats else None
        if text:
            found.append(list(tokenizer(text, add_special_tokens=isinstance(each, str))["input_ids"]))
    return found


class _Servers:
    """A server for one check after the other; a new one where the last check was the end of it."""

    def __init__(self, path: Path) -> None:
        self.path, self.server = path, Llama(path, "serve")

    def make(self, name: str, check: Callable[[Llama], Check]) -> Check:
        if not self.server.alive:
            self.server.close()
            self.server = Llama(self.path, "serve")
        return guarded(name, "", lambda: check(self.server))


def _texts_of(prompts: Sequence[Sequence[Message] | str] | None) -> list[str]:
    """Return every text of the given prompts."""
    return [text for each in prompts or () for text in ([each] if isinstance(each, str) else [m.content for m in each])]


def _with_server(path: Path, checks: dict[str, Callable[[Llama], Check]]) -> list[Check]:
    """Make checks that ask the server, in one process for all while it lives."""
    missing = obstacle("serve")
    if missing:
        return [not_done(name, missing) for name in checks]
    servers = _Servers(path)
    try:
        return [servers.make(name, check) for name, check in checks.items()]
    finally:
        servers.server.close()


def _served(
    container: Container, source: Source, asked: list[list[int]], texts: Sequence[str], checks: list[Check]
) -> list[Row]:
    """Make the checks of llama.cpp's server; return its answers to the prompts `asked`."""
    rows: list[Row] = []
    tokenizer, pre = source.tokenizer, str(container.get("tokenizer.ggml.pre") or "")

    def answers(server: Llama) -> Check:
        rows.extend(ask(server, asked))
        found = f"{len(rows)} prompts answered"
        return Check("runs", bool(rows), found, "llama.cpp loads it and answers", {"prompts": len(rows)})

    def template(server: Llama) -> Check:
        if not tokenizer.chat_template:
            return not_done("chat template", "the tokenizer has none")
        return check_template(server, Chats(tokenizer))

    checks += _with_server(container.path, {
        "tokenizer": lambda server: check_tokenizer(server, tokenizer, pre, texts),
        "begin and end tokens": lambda server: check_habits(server, tokenizer),
        "chat template": template,
        "runs": answers,
        "long text": lambda server: check_long(server, tokenizer),
    })  # fmt: skip
    return rows


def _decoded(path: Path, source: Source, rows: list[Row], form: str, base: Source | None, checks: list[Check]) -> None:
    """Compare what llama.cpp says and thinks with the reference."""
    names = ("greedy answers", "distance", "stopping")
    if not rows:
        checks += [not_done(name, "llama.cpp gave no answers") for name in names]
    else:
        try:
            found = _compared(path, source, rows, form, base)
        except MemoryError as error:
            found = {name: not_done(name, str(error)) for name in names}
        checks += [found.get(name) or not_done(name, "nothing to compare") for name in names]
    ids, tokenizer = stop_ids(source), source.tokenizer
    checks.append(guarded("stop ids", "", lambda: _stop_ids(path, ids, tokenizer.convert_ids_to_tokens)))


def _stop_ids(path: Path, ids: Sequence[int], name_of: Callable[[int], str]) -> Check:
    with Llama(path, "logits") as model:
        return check_stop_ids(model, ids, name_of)


def _compared(path: Path, source: Source, rows: list[Row], form: str, base: Source | None) -> dict[str, Check]:
    reference, gap, ends = Reference(source), Gap(), stop_ids(source)
    answer(reference, rows, ends, form)
    control = [token.content for token in source.tokenizer.added_tokens_decoder.values() if token.special]
    fault = _measure(path, reference, rows, gap)
    del reference  # that of the base takes as much
    return {
        "greedy answers": guarded("greedy answers", "", lambda: check_greedy(rows, form)),
        "stopping": guarded("stopping", "", lambda: check_stopping(rows, ends, control, form)),
        "distance": fault or guarded("distance", "", lambda: check_distance(gap, form, _gain(base, rows, gap))),
    }


def _measure(path: Path, reference: Reference, rows: list[Row], gap: Gap) -> Check | None:
    """Read every row with the reference and with llama.cpp, one after the other, so that few logits are in memory.

    Returns the check "distance" where llama.cpp could not.
    """
    missing = obstacle("logits")
    if missing:
        return not_done("distance", missing)
    with Llama(path, "logits") as model, parts(len(rows)):
        for row in rows:
            done = guarded("distance", "", lambda row=row: gap.take(reference.logits(row.ids, row.skipped), model, row))
            if not done.passed:
                return done
    return None


def _gain(base: Source | None, rows: list[Row], gap: Gap) -> float | None:
    """Return by how much training raised the log-probability of a token of the rows."""
    if base is None:
        return None
    reference = Reference(base)
    before = Gap()
    for row in rows:
        logits_NV = reference.logits(row.ids, row.skipped)
        before.add(logits_NV, logits_NV, row)
    return gap.mean_own - before.mean_own
