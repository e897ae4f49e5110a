"""Data sets -> tokenized units: every row is read, checked, rendered and cut, once; the result is cached."""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from luthier.config.schema import DataConfig
from luthier.core.errors import DataError
from luthier.core.findings import Finding, Level, RowError
from luthier.core.log import logger
from luthier.core.paths import cache_folder
from luthier.core.progress import progress
from luthier.core.types import Example, Message, RowKind, Segment, Unit
from luthier.data.audit import AuditReport
from luthier.data.cut import cut_end, cut_prompt, learned_range, read_at_end
from luthier.data.rows import check_kind, margin_of, read_example, shows_undesirable
from luthier.data.sources import Row, Source, find_sources, read_rows
from luthier.data.store import StoreBuilder, UnitStore
from luthier.data.tagged import DESIRABLE, check_both_sides, one_by_one, with_mismatches
from luthier.data.template import ChatTemplate, Rendered

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

CACHE_VERSION = 6


@dataclass(frozen=True, slots=True)
class Preparer:
    """Turns rows into units under one template and one set of data settings."""

    template: ChatTemplate
    config: DataConfig
    kind: RowKind
    """Long documents of kind "text" become several units instead of being cut."""
    reads_end: bool = False
    """Answers keep their end, because what they are worth is read there; their prompts are cut instead."""
    answer_room: int = 0
    """Tokens of cutoff_len that stay free behind a prompt."""

    def unit_of(self, row: Row, source: Source, report: AuditReport) -> list[Unit]:
        """Return the units of one row, none if it is bad; findings go to `report`."""
        example = self.checked_example(row, source, report)
        if example is None:
            return []
        if self.kind == "prompt":
            tokens = self.prompt_of(example, self.config.cutoff_len - self.answer_room, report)
            return [[Segment(tokens=tokens, weight=[0.0] * len(tokens), origin=row.where)]] if tokens else []
        assert row.value is not None
        try:
            examples = one_by_one(example) if self.kind == "tagged" else [example]
            rendered = [self.template.render(each) for each in examples]
            tags = {"margin": margin_of(row.value, source)} if self.reads_end else {}
        except RowError as error:
            report.add(error.kind, "error", row.where, str(error))
            return []
        if self.kind == "answer" and shows_undesirable(row.value, source):
            message = "is tagged as undesirable, but learned from like all others; set stage: kto, or take the row out"
            report.add("undesirable_answer", "warning", row.where, message)
        found: list[Unit] = []
        for good, each in zip([each.desirable for each in examples], rendered, strict=True):
            here = tags if good is None else {DESIRABLE: float(good)}
            units = self._checked(each, row.where, report)
            found += [[replace(segment, tags=here) for segment in unit] for unit in units]
        return found

    def checked_example(self, row: Row, source: Source, report: AuditReport) -> Example | None:
        """Return the row as an example, None if it is bad; findings go to `report`."""
        report.begin_row()
        if row.value is None:
            assert row.finding is not None
            report.add(row.finding.kind, row.finding.level, row.where, row.finding.message)
            return None
        try:
            return self.example_of(row, source)
        except RowError as error:
            report.add(error.kind, "error", row.where, str(error))
            return None

    def prompt_of(self, example: Example, most: int, report: AuditReport) -> list[int]:
        """Return the tokens of a prompt, none if they are more than `most`: a prompt is never cut."""
        try:
            tokens = self.template.prompt(example.context, example.tools)
        except DataError as error:
            report.add("template", "error", example.origin, str(error))
            return []
        report.add_length(len(tokens))
        if len(tokens) <= most:
            return tokens
        message = (
            f"has {len(tokens)} tokens, but beside an answer only {most} have room, and is left out; "
            "raise cutoff_len, or lower max_completion_length"
        )
        report.add("prompt_too_long", self._no_room, example.origin, message)
        return []

    @property
    def _no_room(self) -> Level:
        """Return how bad a row is that has no room."""
        return "error" if self.config.too_long == "fail" else "warning"

    def example_of(self, row: Row, source: Source) -> Example:
        """Return the row as an example; raises RowError."""
        assert row.value is not None
        return replace(read_example(row.value, source, self.kind), origin=row.where)

    def _checked(self, rendered: Rendered, where: str, report: AuditReport) -> list[Unit]:
        longest = max(len(segment.tokens) for segment in rendered.unit)
        report.add_length(longest)
        if rendered.special_text:
            spelled = ", ".join(rendered.special_text)
            report.add(
                "special_text", "warning", where, f"spells the special token {spelled}; it is kept as plain text"
            )
        if self.kind == "text":
            return self._blocks(rendered.unit)
        limit = self.config.cutoff_len
        if longest > limit and self.config.too_long != "cut":
            level = "error" if self.config.too_long == "fail" else "warning"
            report.add(
                "too_long", level, where, f"has {longest} tokens, cutoff_len is {limit}; raise it, or set too_long: cut"
            )
            return []
        unit, lost = (self._with_ends if self.reads_end else self._with_beginnings)(rendered.unit, where, report)
        if not unit:
            return []
        if self.kind == "pair" and unit[0].tokens == unit[1].tokens:
            message = f"chosen and rejected are equal within cutoff_len {limit}; raise it, or set bad_rows: skip"
            report.add("equal_pair", "error", where, message)
            return []
        if lost and not self.reads_end:
            total = sum(len(segment.tokens) for segment in rendered.unit)
            report.add(
                "answer_cut", "warning", where, f"lost {lost} of {total} tokens and its end token to cutoff_len {limit}"
            )
        elif not rendered.has_end:
            report.add(
                "no_end_token",
                "warning",
                where,
                "the answer ends without an end token; the model may not learn to stop; name its family's template",
            )
        return [unit]

    def _with_beginnings(self, unit: Unit, where: str, report: AuditReport) -> tuple[Unit, int]:
        """Return the unit cut at its end, and the tokens that it lost; an empty one where no answer is left."""
        limit = self.config.cutoff_len
        cut = [cut_end(segment, limit) for segment in unit]
        lost = sum(len(a.tokens) - len(b.tokens) for a, b in zip(unit, cut, strict=True))
        report.cut_tokens += lost
        if all(any(segment.weight[1:]) for segment in cut):
            return cut, lost
        if not all(any(segment.weight[1:]) for segment in unit):
            report.add("nothing_to_learn", "error", where, "has an answer without tokens; take the row out")
            return [], lost
        longest = max(len(segment.tokens) for segment in unit)
        message = f"has no answer token within cutoff_len {limit} (the row has {longest} tokens) and is left out"
        report.add("prompt_too_long", self._no_room, where, f"{message}; raise cutoff_len")
        return [], lost

    def _with_ends(self, unit: Unit, where: str, report: AuditReport) -> tuple[Unit, int]:
        """Return the unit with whole answers, read at their ends; an empty one where they leave a prompt no room."""
        limit = self.config.cutoff_len
        if not all(any(segment.weight[1:]) for segment in unit):
            report.add("nothing_to_learn", "error", where, "has an answer without tokens; take the row out")
            return [], 0
        cut = cut_prompt(unit, limit, self.template.tokenizer.bos_token_id)
        if cut is None:
            longest = max(stop - start for start, stop in map(learned_range, unit))
            message = f"has an answer of {longest} tokens, which leaves its prompt no room within cutoff_len {limit}"
            report.add("answer_too_long", self._no_room, where, f"{message}, and is left out; raise cutoff_len")
            return [], 0
        kept, lost = cut
        report.cut_tokens += lost * len(unit)
        if lost:
            message = f"lost {lost} tokens at the beginning of its prompt to cutoff_len {limit}"
            report.add("prompt_cut", "warning", where, message)
        return [read_at_end(segment) for segment in kept], lost

    def _blocks(self, unit: Unit) -> list[Unit]:
        limit, (segment,) = self.config.cutoff_len, unit
        pieces = [
            Segment(tokens=segment.tokens[i : i + limit], weight=segment.weight[i : i + limit], origin=segment.origin)
            for i in range(0, len(segment.tokens), limit)
        ]
        return [[piece] for piece in pieces if len(piece.tokens) > 1]


def check_cutoff(preparer: Preparer) -> None:
    """Raise DataError when the template alone fills cutoff_len."""
    if preparer.kind == "text":
        return
    overhead = len(preparer.template.prompt([Message(role="user", content="")]))
    if overhead + 1 >= preparer.config.cutoff_len:
        raise DataError(
            f"cutoff_len is {preparer.config.cutoff_len}, but the template alone takes {overhead} tokens; "
            f"set it to {overhead + 64} or more",
            code="data_cutoff",
        )


def prepare(names: tuple[str, ...], preparer: Preparer) -> tuple[UnitStore, AuditReport]:
    """Read, check and tokenize every row of the data sets called `names`.

    Nothing is raised for bad rows: `AuditReport.enforce` does that, so that an audit can list them.
    """
    sources = find_sources(names, preparer.config)
    check_cutoff(preparer)
    cached = _cache_file(sources, preparer)
    if cached is not None and cached.exists():
        try:
            store, plain = UnitStore.load(cached)
            logger.info("data: %s (from the token cache)", (report := AuditReport.from_dict(plain)).total())
            return store, report
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("token cache %s is damaged (%s) and made again", cached, error)
    check_kind(sources, preparer.kind)
    store, report = _tokenize(sources, preparer)
    if cached is not None and report.trained_rows:
        store.save(cached, report.as_dict())
    return store, report


def _tokenize(sources: list[Source], preparer: Preparer) -> tuple[UnitStore, AuditReport]:
    builder, report = StoreBuilder(), AuditReport()
    first_seen: dict[int, str] = {}
    for index, source in enumerate(sources):
        for row in read_rows(source):
            units = preparer.unit_of(row, source, report)
            progress(report.rows, None, f"reading rows of {source.name}")
            report.trained_rows += bool(units)
            for unit in units:
                builder.add(unit, index)
                report.tokens += sum(len(s.tokens) for s in unit)
                report.learned_tokens += sum(w > 0 for s in unit for w in s.weight[1:])
                twin = first_seen.setdefault(builder.unit_hash[-1], row.where)
                if twin != row.where:
                    report.add("duplicate", "warning", row.where, f"is the same as {twin}")
    report.row = None
    store = builder.build()
    if preparer.kind == "tagged" and len(store):
        check_both_sides(store, report)
        store = with_mismatches(store, preparer.config.cutoff_len)
    return store, report


def stream_units(
    names: tuple[str, ...], preparer: Preparer, seed: int = 0
) -> Callable[[], Iterator[tuple[Row, Source]]]:
    """Return a function that starts reading the rows of all data sets from the beginning, mixed as the settings say."""
    sources = find_sources(names, preparer.config)
    check_cutoff(preparer)
    check_kind(sources, preparer.kind)
    if preparer.config.mix_strategy == "concat":
        return lambda: ((row, source) for source in sources for row in read_rows(source))
    return lambda: _interleaved(sources, preparer.config, seed)


def _interleaved(sources: list[Source], config: DataConfig, seed: int) -> Iterator[tuple[Row, Source]]:
    """Yield rows of sources drawn by weight, until the first (under) or the last of them (over, once) is used up."""
    draw = random.Random(seed)
    weights = list(config.interleave_probs or [1.0] * len(sources))
    left = {index for index, weight in enumerate(weights) if weight > 0}
    streams = [read_rows(source) for source in sources]
    waiting = [next(stream, None) for stream in streams]
    while left:
        (index,) = draw.choices(range(len(sources)), weights)
        row = waiting[index]
        if row is None:
            raise DataError(f"data set {sources[index].name!r} is empty", code="data_empty")
        yield row, sources[index]
        waiting[index] = next(streams[index], None)
        if waiting[index] is not None:
            continue
        left.discard(index)
        if config.mix_strategy == "interleave_under":
            return
        if config.mix_strategy == "interleave_once":
            weights[index] = 0.0
            continue
        streams[index] = read_rows(sources[index])
        waiting[index] = next(streams[index], None)


def _cache_file(sources: list[Source], preparer: Preparer) -> Path | None:
    """Return the cache file for exactly these bytes under exactly these settings; None for rows from a hub."""
    if any(source.path is None for source in sources):
        return None
    tokenizer, config = preparer.template.tokenizer, preparer.config
    settings = (
        preparer.answer_room, config.cutoff_len, config.too_long, config.max_samples, preparer.kind, preparer.reads_end,
        preparer.template.train_on_prompt, preparer.template.mask_history, preparer.template.default_system,
        preparer.template.options, preparer.template.spelled and sorted(preparer.template.spelled),
        preparer.template.text_end,
    )  # fmt: skip
    digest = hashlib.sha256(json.dumps([CACHE_VERSION, settings, tokenizer.chat_template], default=str).encode())
    digest.update(tokenizer.backend_tokenizer.to_str().encode())
    for source in sources:
        digest.update(json.dumps({**asdict(source), "path": str(source.path)}, default=str, sort_keys=True).encode())
        assert source.path is not None
        for file in sorted(source.path.rglob("*")) if source.path.is_dir() else [source.path]:
            if file.is_file():
                with file.open("rb") as opened:
                    digest.update(hashlib.file_digest(opened, "sha256").digest())
    return cache_folder("tokens", f"{digest.hexdigest()[:32]}.safetensors")


def split_note(findings: list[Finding]) -> str:
    """Return one line about leakage between training and evaluation rows."""
    exact = sum(finding.kind == "leak" for finding in findings)
    first = f", such as {findings[0]}" if findings else ""
    return f"evaluation overlaps training: {exact} equal rows, {len(findings) - exact} equal questions{first}"
