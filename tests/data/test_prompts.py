"""Prompts: their order, and what stands between two answers of an episode."""

import pytest
from helpers import byte_tokenizer

from luthier.config.schema import DataConfig
from luthier.core.errors import DataError
from luthier.core.types import Example, Message
from luthier.data.audit import AuditReport
from luthier.data.loader import Cursor
from luthier.data.prepare import Preparer
from luthier.data.prompts import PromptOrder, PromptRow, tokenize
from luthier.data.template import ChatTemplate


def order(count=5, **options):
    return PromptOrder([PromptRow(Example(origin=str(i)), (i,)) for i in range(count)], seed=3, **options)


def test_prompts_go_on_over_the_end_of_an_epoch_and_none_is_lost() -> None:
    prompts, cursor, seen = order(), Cursor(), []
    for _ in range(5):
        rows, cursor = prompts.take(cursor, 2)
        seen += [row.tokens[0] for row in rows]
    assert (cursor.epoch, cursor.position) == (2, 0)
    assert sorted(seen[:5]) == sorted(seen[5:]) == list(range(5))
    assert seen[:5] != seen[5:]
    assert prompts.passes(Cursor(1, 2)) == pytest.approx(1.4)


def test_a_place_leads_back_to_the_same_prompts() -> None:
    rows, cursor = order().take(Cursor(numbers={"step": 7.0}), 3)
    assert cursor.numbers == {"step": 7.0}
    assert order().take(Cursor(), 3)[0] == rows
    assert order().take(cursor, 4)[0] == order().take(Cursor(0, 3), 4)[0]
    assert [r.tokens[0] for r in order(shuffle=False).take(Cursor(), 5)[0]] == list(range(5))


def test_no_prompts_is_an_error() -> None:
    with pytest.raises(DataError, match="no prompt is left"):
        PromptOrder([], seed=1)


@pytest.mark.parametrize(("policy", "level"), [("cut", "warning"), ("fail", "error"), ("skip", "warning")])
def test_a_prompt_without_room_for_an_answer_is_never_cut(policy: str, level: str) -> None:
    preparer = Preparer(ChatTemplate(byte_tokenizer()), DataConfig(too_long=policy), "prompt")
    report = AuditReport()
    examples = [Example(context=(Message(role="user", content="x" * n),), origin=f"f:{n}") for n in (3, 80)]
    rows = tokenize(examples, preparer, 60, report)
    assert [row.example.origin for row in rows] == ["f:3"]
    (finding,) = report.findings
    assert (finding.kind, finding.level, finding.where) == ("prompt_too_long", level, "f:80")
    assert "beside an answer only 60 have room" in finding.message


def test_what_stands_between_two_answers_is_what_the_template_writes() -> None:
    template = ChatTemplate(byte_tokenizer())
    context = (Message(role="user", content="2 * 3?"),)
    answer, said = Message(role="assistant", content="ask <6>"), Message(role="user", content="6, emoji \N{GUITAR}")
    end = template.tokenizer.eos_token_id
    sampled = [*template.tokenizer("ask <6>").input_ids, end]
    between = template.between(context, said, None, end)
    assert template.prompt(context) + sampled + between == template.prompt([*context, answer, said])
    # An answer that was stopped by a text has no end token of its own.
    assert template.between(context, said, None, sampled[0]) == [end, *between]


def test_a_template_that_rewrites_answers_takes_no_episodes() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}<|im_start|>{{ m['content'] }}{% endif %}{% endfor %}"
    )
    with pytest.raises(DataError, match="keeps earlier answers"):
        ChatTemplate(tokenizer).between(
            (Message(role="user", content="a"),), Message(role="user", content="b"), None, 258
        )
