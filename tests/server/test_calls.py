"""Calls of tools are found, read and enforced in the form of every family on the shelf."""

from __future__ import annotations

import json
from typing import Any

import pytest
from chats import CALL, OTHER, TOOLS, says, tokenizer_for, user

from luthier.data.chat_format import ToolFormat
from luthier.data.template import ChatTemplate
from luthier.data.template_names import NAMES
from luthier.engines.guides import grammar_guide
from luthier.server.call_forms import form_of
from luthier.server.call_grammar import CallGrammar
from luthier.server.calls import CallReader
from luthier.server.speech import CallEar, PlainEar, Said, ThoughtEar, Whole

SCHEMA = json.loads(TOOLS)[0]["parameters"]
ONE_OF_EACH: dict[str, str] = {}
for _name, _format in NAMES.items():
    if _format.tools is not None and _format.tools.call:
        ONE_OF_EACH.setdefault(_format.tools.name, _name)


def template_of(name: str) -> ChatTemplate:
    return ChatTemplate(tokenizer_for(name))


def answer_of(template: ChatTemplate, *calls: dict[str, Any], text: str = "") -> str:
    """What a model of this family writes when it calls tools: a rendered answer without its end."""
    context = [user("q")]
    whole = template.tokenizer.decode(
        template.render(_example(context, says(text, *calls))).unit[-1].tokens, skip_special_tokens=False
    )
    asked = template.tokenizer.decode(template.prompt(context, TOOLS), skip_special_tokens=False)
    assert whole.startswith(asked)
    return whole.removeprefix(asked)


def _example(context: list[Any], answer: Any) -> Any:
    from luthier.core.types import Example

    return Example(context=tuple(context), endings=((answer,),), tools=TOOLS)


def heard(ear: Any, text: str, size: int) -> Whole:
    whole = Whole()
    for place in range(0, len(text), size):
        whole.add(ear.hear(text[place : place + size], last=False))
    whole.add(ear.hear("", last=True))
    return whole


@pytest.mark.parametrize("name", ONE_OF_EACH.values())
@pytest.mark.parametrize("calls", [(CALL,), (CALL, OTHER)], ids=["one", "two"])
def test_what_the_template_writes_is_read_back(name: str, calls: tuple[dict[str, Any], ...]) -> None:
    template = template_of(name)
    form = form_of(template)
    assert form is not None
    text = answer_of(template, *calls)
    for end in ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|observation|>", "</s>"):
        text = text.strip().removesuffix(end)
    for size in (1, 7, len(text)):
        whole = heard(CallEar(CallReader(form, {"weather": SCHEMA}), many=True), text, size)
        assert [(each.name, json.loads(each.arguments)) for each in whole.calls] == [
            (each["name"], each["arguments"]) for each in calls
        ], text


@pytest.mark.parametrize("name", ONE_OF_EACH.values())
def test_the_grammar_takes_what_the_template_writes_and_nothing_else(name: str) -> None:
    template = template_of(name)
    form = form_of(template)
    assert form is not None
    tokenizer, size = template.tokenizer, len(template.tokenizer)
    grammar = CallGrammar(form, template.control_tokens).text({"weather": SCHEMA}, many=True, opened=False)
    make = grammar_guide(tokenizer, size, grammar, end_ids=[tokenizer.eos_token_id])
    written = form.open + form.call.replace("{name}", "weather").replace("{arguments}", _arguments(form)) + form.close

    def follows(text: str) -> bool:
        guide = make()
        for token in tokenizer(text, add_special_tokens=False)["input_ids"]:
            if not guide.allowed_V()[token]:
                return False
            guide.take(token)
        return bool(guide.allowed_V()[tokenizer.eos_token_id])

    assert follows(written)
    assert not follows(written.replace("weather", "whether"))
    assert not follows(written.replace("city", "town"))
    assert not follows("Let me see. " + written)
    assert not follows(written[:-1])


def _arguments(form: ToolFormat) -> str:
    if not form.argument:
        return '{"city":"Ulm"}'
    return form.argument.replace("{key}", "city").replace("{value}", "Ulm").replace("{json}", '"Ulm"')


def test_text_around_calls_stays_text() -> None:
    form = NAMES["qwen3"].tools
    assert form is not None
    call = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'
    ear = CallEar(CallReader(form, {"f": {}}), many=True)
    whole = heard(ear, f"First.\n{call}\nThen.", 3)
    assert (whole.content, [each.name for each in whole.calls]) == ("First.Then.", ["f"])
    broken = '<tool_call>\n{"name": "f", "arguments": {"x": 1}'
    assert heard(CallEar(CallReader(form, {"f": {}}), many=True), broken, 2).content == broken
    assert heard(CallEar(CallReader(form, {"f": {}}), many=True), "a <tool_ and b", 1).content == "a <tool_ and b"
    two = heard(CallEar(CallReader(form, {"f": {}}), many=False), f"{call}\n{call}", 5)
    assert len(two.calls) == 1


def test_text_is_told_at_once_where_it_cannot_begin_a_call() -> None:
    form = NAMES["qwen3"].tools
    assert form is not None
    ear = CallEar(CallReader(form, {"f": {}}), many=True)
    assert ear.hear("one <to", last=False) == Said("one")
    assert ear.hear("tal", last=False) == Said(" <total")


@pytest.mark.parametrize("size", [1, 3, 50])
@pytest.mark.parametrize("opened", [True, False])
def test_thoughts_are_told_apart(size: int, opened: bool) -> None:
    text = ("" if opened else "<think>") + "\nhm < so\n</think>\n\nfour"
    whole = heard(ThoughtEar(PlainEar(), opened=opened), text, size)
    assert (whole.reasoning, whole.content) == ("hm < so", "four")


def test_an_answer_without_a_thought_is_text() -> None:
    assert heard(ThoughtEar(PlainEar(), opened=False), "<thing> is", 1).content == "<thing> is"
    cut = heard(ThoughtEar(PlainEar(), opened=True), "never ends", 2)
    assert (cut.reasoning, cut.content) == ("never ends", "")


def test_numbers_and_texts_follow_their_schema() -> None:
    form = NAMES["qwen3_5"].tools
    assert form is not None
    schema = {"properties": {"a": {"type": "string"}, "b": {"type": "integer"}}}
    text = "<tool_call>\n<function=f>\n<parameter=a>\n12\n</parameter>\n<parameter=b>\n12\n</parameter>\n</function>\n</tool_call>"
    calls, rest = CallReader(form, {"f": schema}).read(text)
    assert json.loads(calls[0].arguments) == {"a": "12", "b": 12}
    assert rest == ""
