"""Compare the chat template inside a file, as llama.cpp renders it, with the one of transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luthier.core.log import printable
from luthier.export.verify.llama import LlamaRefused
from luthier.export.verify.report import Check, not_done

if TYPE_CHECKING:
    from collections.abc import Sequence

    from luthier.export.verify.chats import Case, Chats
    from luthier.export.verify.llama import Llama

LIMIT = "equal text and equal ids for every case that the template takes, the begin token once"


def check_template(server: Llama, chats: Chats) -> Check:
    """Render every case in both, and compare text and ids."""
    faults: list[str] = []
    rendered = refused = 0
    for case in chats.cases():
        text = chats.render(case)
        if text is None:
            refused += 1
            continue
        rendered += 1
        fault = _compare(server, chats, case, text)
        if fault:
            faults.append(f"{case.name}: {fault}")
    numbers = {"cases": rendered, "not_taken": refused, "differ": len(faults)}
    if faults:
        return Check("chat template", False, f"{len(faults)} of {rendered} cases differ; {faults[0]}", LIMIT, numbers)
    found = f"{rendered} cases are equal, {refused} are nothing that the template takes"
    return Check("chat template", True, found, LIMIT, numbers)


def _compare(server: Llama, chats: Chats, case: Case, text: str) -> str | None:
    """Return how a case differs, or None."""
    try:
        theirs = server.ask("template", body=chats.request(case))
    except LlamaRefused as error:
        return f"llama.cpp refuses it: {error}"
    begin = chats.tokenizer.bos_token or ""
    # llama.cpp leaves out a begin token that its tokenizer adds.
    if theirs not in (text, text.removeprefix(begin)):
        return difference(theirs, text)
    ids, wanted = server.ask("tokenize", texts=[theirs], add_special=True)[0], chats.ids(text)
    if ids != wanted:
        count = ids.count(chats.tokenizer.bos_token_id) if begin else 0
        written = wanted.count(chats.tokenizer.bos_token_id) if begin else 0
        if count != written:
            return f"the begin token is there {count} times, should be {written}"
        return f"ids begin to differ behind {_shared(ids, wanted)} of {len(wanted)}"
    return None


def difference(found: str, wanted: str) -> str:
    """Return where two texts part, in words."""
    place = _shared(found, wanted)
    return (
        f"from character {place} on it is {printable(found[place : place + 30], 40)}, "
        f"should be {printable(wanted[place : place + 30], 40)}"
    )


def _shared(one: Sequence[object], other: Sequence[object]) -> int:
    """Return how many entries two sequences have in common from the front."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def check_template_alone(server: Llama, template: str | None) -> Check:
    """See that llama.cpp renders the template of a file, where there is nothing to compare with."""
    limit = "llama.cpp renders a question and an answer"
    if not template:
        return not_done("chat template", "the file has none", limit)
    turns = [{"role": "user", "content": "<question>"}, {"role": "assistant", "content": "<answer>"}]
    try:
        text = server.ask("template", body={"messages": turns, "add_generation_prompt": False})
    except LlamaRefused as error:
        return Check("chat template", False, f"llama.cpp refuses it: {error}", limit)
    lost = [each for each in ("<question>", "<answer>") if each not in text]
    found = f"{lost[0]} is not in what it renders" if lost else "question and answer are in what it renders"
    return Check("chat template", not lost, found, limit)
