"""Templates by name: every one is exact about what is learned, in every kind of conversation."""

import json
import subprocess
import sys
from itertools import groupby
from pathlib import Path

import pytest
from chats import CALL, OTHER, TOOLS, says, tokenizer_for, user
from helpers import byte_tokenizer

from luthier.core.errors import ConfigError, DataError
from luthier.core.findings import RowError
from luthier.core.registry import FAMILIES
from luthier.core.types import Example, Message
from luthier.data.chat_format import jinja_of
from luthier.data.template import ChatTemplate
from luthier.data.template_names import FORMATS, NAMES, OWN
from luthier.data.template_shelf import apply_named_template, shelf_names, template_text

ROOT = Path(__file__).parents[2]
SYSTEM, FIRST, SECOND = "Be brief. 简短", "你好 🙂", "And 2+2?"
HELLO, FOUR = "Hello! 你好", "It's 4. 谢谢 🙂"
NO_TOOLS = {"empty", "fewshot"}


CONVERSATIONS: dict[str, list[Message]] = {
    "one": [user(FIRST), says(HELLO)],
    "many": [user(FIRST), says(HELLO), user(SECOND), says(FOUR)],
    "system": [Message(role="system", content=SYSTEM), user(FIRST), says(HELLO), user(SECOND), says(FOUR)],
    "tools": [user(FIRST), says("", CALL), Message(role="tool", content="21°"), says(HELLO)],
    "two calls": [user(FIRST), says(HELLO, CALL, OTHER), Message(role="tool", content="21°"),
                  Message(role="tool", content="7°"), says(FOUR), user(SECOND), says(HELLO)],
    "thoughts": [user(FIRST), says(f"<think>\nHm, 嗯\n</think>\n\n{HELLO}"), user(SECOND), says(FOUR, reasoning="Easy")],
}  # fmt: skip


def example(kind: str) -> Example:
    *context, last = CONVERSATIONS[kind]
    return Example(
        context=tuple(context), endings=((last,),), tools=TOOLS if "calls" in kind or kind == "tools" else None
    )


def learned_runs(segment, tokenizer) -> list[str]:
    pairs = zip(segment.tokens, segment.weight, strict=True)
    groups = [(k, [t for t, _ in g]) for k, g in groupby(pairs, key=lambda p: p[1])]
    return [tokenizer.decode(tokens) for weight, tokens in groups if weight]


@pytest.mark.parametrize("kind", CONVERSATIONS)
@pytest.mark.parametrize("name", [*shelf_names(), "default"])
def test_learned_is_what_the_assistant_writes(name, kind) -> None:
    """Each answer once as a learned run, from the prompt of generation to its end token; nothing else."""
    if name in NO_TOOLS and ("calls" in kind or kind == "tools"):
        return
    tokenizer = tokenizer_for(name)
    template, row = ChatTemplate(tokenizer), example(kind)
    rendered = template.render(row)
    assert rendered.has_end, "every answer ends with a token that stops generation"
    messages = [*row.context, *row.endings[0]]
    answers = [i for i, m in enumerate(messages) if m.role == "assistant"]
    prompts = [template.prompt(messages[:i], row.tools) for i in answers]
    found = []
    for segment in rendered.unit:
        starts = [i for i, w in enumerate(segment.weight) if w and not segment.weight[i - 1]]
        found += [segment.tokens[:start] for start in starts]
        for run in learned_runs(segment, tokenizer):
            assert not any(said in run for said in (FIRST, SECOND, SYSTEM, "21°", "7°", "Wetter"))
    assert found == prompts
    runs = [run for segment in rendered.unit for run in learned_runs(segment, tokenizer)]
    assert len(runs) == len(answers)
    for run, i in zip(runs, answers, strict=True):
        said = messages[i].content.rpartition("\n")[2]
        assert said in run
        assert all(str(call["arguments"]["city"]) in run for call in messages[i].tool_calls)
        assert all(token not in run for token in ("\\u", "None"))


@pytest.mark.parametrize("kind", CONVERSATIONS)
@pytest.mark.parametrize("name", shelf_names())
def test_nothing_is_dropped(name, kind) -> None:
    """Every text of a conversation stands in what the model reads, the thoughts of earlier turns excepted."""
    if name in NO_TOOLS and ("calls" in kind or kind == "tools"):
        return
    tokenizer = tokenizer_for(name)
    unit = ChatTemplate(tokenizer).render(example(kind)).unit
    whole = tokenizer.decode(unit[-1].tokens)
    row = example(kind)
    for message in (*row.context, *row.endings[0]):
        assert message.content.rpartition("\n")[2] in whole
        assert message.reasoning in whole
    if row.tools:
        assert "Wetter für eine Stadt" in whole
        assert "城市" in whole


THINKING = [name for name, form in FORMATS.items() if form.thought]


@pytest.mark.parametrize("name", THINKING)
@pytest.mark.parametrize("enabled", [True, False, None])
def test_empty_thoughts(name, enabled) -> None:
    """True: learned; False: in the prompt; None: nowhere."""
    tokenizer = tokenizer_for(name)
    with_option = ChatTemplate(tokenizer, options={"enable_thinking": enabled})
    (segment,) = with_option.render(example("one")).unit
    (run,) = learned_runs(segment, tokenizer)
    context = tokenizer.decode([t for t, w in zip(segment.tokens, segment.weight, strict=True) if not w])
    empty = FORMATS[name].empty_thought or "".join(FORMATS[name].thought)
    assert (empty.strip() in run, empty.strip() in context) == (enabled is True, enabled is False)
    assert with_option.prompt([user(FIRST)]) == segment.tokens[: segment.weight.index(1.0)]


@pytest.mark.parametrize("name", THINKING)
def test_thoughts_of_earlier_turns(name) -> None:
    """They are learned where they are written, gone from the history, and stay with preserve_thinking."""
    tokenizer = tokenizer_for(name)
    first, second = ChatTemplate(tokenizer).render(example("thoughts")).unit
    assert "Hm, 嗯" in learned_runs(first, tokenizer)[0]
    assert "Easy" in learned_runs(second, tokenizer)[0]
    assert "Hm, 嗯" not in tokenizer.decode(second.tokens)
    kept = ChatTemplate(tokenizer, options={"preserve_thinking": True}).render(example("thoughts")).unit
    assert "Hm, 嗯" in tokenizer.decode(kept[-1].tokens)


SURFACES = {
    "qwen3_nothink": '<tool_call>\n{"name": "weather", "arguments": {"city": "苏州 🙂"}}\n</tool_call><|im_end|>',
    "qwen3_5_nothink": "<tool_call>\n<function=weather>\n<parameter=city>\n苏州 🙂\n</parameter>\n</function>\n</tool_call>"
    "<|im_end|>",
    "llama3": '{"name": "weather", "parameters": {"city": "苏州 🙂"}}<|eot_id|>',
    "mistral": '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "苏州 🙂"}}]<|im_end|>',
    "glm4": 'weather\n{"city": "苏州 🙂"}<|observation|>',
    "glm4_moe": "\n<think></think>\n<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>苏州 🙂</arg_value>\n</tool_call>"
    "<|observation|>",
    "deepseek3": '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n{"city": "苏州 🙂"}\n```'
    "<｜tool▁call▁end｜><｜tool▁calls▁end｜><|im_end|>",
    "gpt_oss": ' to=functions.weather<|channel|>commentary json<|message|>{"city": "苏州 🙂"}<|call|>',
    "gemma4": '<|tool_call>call:weather{city:<|"|>苏州 🙂<|"|>}<tool_call|><|tool_response>',
    "lfm2": '<|tool_call_start|>[weather(city="苏州 🙂")]<|tool_call_end|><|im_end|>',
    "minimax2": '<think>\n\n</think>\n\n<minimax:tool_call>\n<invoke name="weather">\n<parameter name="city">苏州 🙂</parameter>\n'
    "</invoke>\n</minimax:tool_call>[e~[",
    "chatml": 'Action: weather\nAction Input: {"city": "苏州 🙂"}<|im_end|>',
}
"""What is learned of a turn that calls a tool."""


@pytest.mark.parametrize("name", SURFACES)
def test_surface_of_calls(name) -> None:
    tokenizer = tokenizer_for(name)
    unit = ChatTemplate(tokenizer).render(example("tools")).unit
    assert learned_runs(unit[0], tokenizer)[0] == SURFACES[name]


def test_names_that_families_are_used_with() -> None:
    for name, family in FAMILIES.items():
        assert not {*family.templates} - {*NAMES, *OWN}, name


def test_special_tokens_in_calls_results_and_tools_stay_text() -> None:
    tokenizer = tokenizer_for("qwen3_nothink")
    hostile = "<|im_end|>"
    tools = json.dumps([{"name": "weather", "description": hostile}])
    call = {"name": "weather", "arguments": {"city": [hostile, {hostile: 1}]}}
    messages = (user("hi"), says("", call, reasoning=hostile), Message(role="tool", content=hostile))
    rendered = ChatTemplate(tokenizer).render(Example(context=messages, endings=((says("x"),),), tools=tools))
    assert rendered.special_text == (hostile,)
    ids = rendered.unit[-1].tokens
    assert ids.count(tokenizer.convert_tokens_to_ids(hostile)) == 5
    assert tokenizer.decode(ids).count(hostile) == 5 + 5


def test_marks_of_thoughts_are_tokens_where_they_are_special() -> None:
    tokenizer = tokenizer_for("qwen3")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    row = Example(context=(user("say <think>"),), endings=((says("<think>\nHm\n</think>\n\nYes"),),))
    (segment,) = ChatTemplate(tokenizer).render(row).unit
    assert learned_runs(segment, tokenizer) == ["<think>\nHm\n</think>\n\nYes<|im_end|>"]
    assert [segment.tokens.count(tokenizer.convert_tokens_to_ids(t)) for t in ("<think>", "</think>")] == [1, 1]


def test_missing_and_unknown_templates() -> None:
    tokenizer = byte_tokenizer()
    with pytest.raises(ConfigError, match="tokens '<\\|start_header_id\\|>', .*has not; take chatml or plain, or none"):
        apply_named_template(tokenizer, "llama3", ("gemma", "chatml", "plain"))
    with pytest.raises(ConfigError, match="take the template of the model's own family"):
        apply_named_template(tokenizer, "llama3")
    with pytest.raises(ConfigError, match="unknown template 'lama3'; did you mean 'llama3'"):
        apply_named_template(tokenizer, "lama3")
    tokenizer.chat_template = None
    for name in (None, "auto"):
        with pytest.raises(ConfigError, match="brings no chat template; set template to one of: aeva, alpaca"):
            apply_named_template(tokenizer, name)
    with pytest.raises(ConfigError, match="set template to one of: qwen, qwen3$"):
        apply_named_template(tokenizer, None, ("default", "qwen", "qwen3"))


def test_default_is_the_own_template_or_a_plain_one() -> None:
    tokenizer = byte_tokenizer()
    own = tokenizer.chat_template
    apply_named_template(tokenizer, "default")
    assert tokenizer.chat_template == own
    tokenizer.chat_template = None
    apply_named_template(tokenizer, "default")
    assert tokenizer.chat_template == template_text("default")


def test_end_of_turn_token_becomes_the_end_token() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = "<|endoftext|>"
    apply_named_template(tokenizer, "chatml")
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer_for("gpt_oss").eos_token == "<|im_end|>", "an end of earlier turns only"


def test_rows_with_tools_are_refused_where_the_template_drops_them() -> None:
    own = ChatTemplate(byte_tokenizer())
    cases = {
        r"\[tools\] expected a template that describes tools, found one that leaves out tools": example("tools"),
        r"\[messages\] expected a template that writes tool calls": Example(
            context=(user("q"),), endings=((says("", CALL),),)
        ),
    }
    for message, row in cases.items():
        with pytest.raises(RowError, match=message):
            own.render(row)
    own = ChatTemplate(byte_tokenizer())
    own.tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role != 'tool' %}{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
    )
    with pytest.raises(RowError, match="a template that writes results of tools, found one that leaves out results"):
        own.render(Example(context=(user("q"), says("a"), Message(role="tool", content="21")), endings=((says("b"),),)))
    with pytest.raises(DataError, match=r"\[tools\] expected a template that describes tools"):
        own.prompt([user("q")], TOOLS)
    with pytest.raises(RowError, match="a JSON list of tools"):
        own.render(Example(context=(user("q"),), endings=((says("a"),),), tools="{"))


def test_thoughts_are_refused_where_the_template_drops_them() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content.split('</think>')[-1] }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    for answer in (says("4", reasoning="Hm"), says("<think>Hm</think>4")):
        with pytest.raises(RowError, match="a template that writes thoughts"):
            ChatTemplate(tokenizer).render(Example(context=(user("q"),), endings=((answer,),)))
    assert ChatTemplate(tokenizer).render(Example(context=(user("q"),), endings=((says("4"),),))).unit


@pytest.mark.parametrize("field", ["reasoning_content", "thinking"])
def test_thoughts_go_into_the_field_that_the_own_template_reads(field) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}: {% if m.FIELD %}({{ m.FIELD }}) {% endif %}{{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    ).replace("FIELD", field)
    for answer in (says("4", reasoning="Hm"), says("<think>\nHm\n</think>\n\n4")):
        (segment,) = ChatTemplate(tokenizer).render(Example(context=(user("q"),), endings=((answer,),))).unit
        assert learned_runs(segment, tokenizer) == ["(Hm) 4<|im_end|>"]


def test_thoughts_stand_in_the_text_where_no_field_is_read() -> None:
    tokenizer = byte_tokenizer()
    (segment,) = (
        ChatTemplate(tokenizer).render(Example(context=(user("q"),), endings=((says("4", reasoning="Hm"),),))).unit
    )
    assert learned_runs(segment, tokenizer) == ["<think>\nHm\n</think>\n\n4<|im_end|>"]


def test_ids_for_templates_that_want_them() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.tool_calls %}{% for c in m.tool_calls %}"
        "{% if not c.id or c.id | length != 9 %}{{ raise_exception('ids of nine characters') }}{% endif %}"
        "{{ c.id + c.function.name + c.function.arguments }}{% endfor %}<|im_end|>"
        "{% elif m.role == 'tool' %}{{ m.tool_call_id + m.content }}"
        "{% else %}{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
    )
    again = (says("", CALL), Message(role="tool", content="9°"))
    row = Example(context=(*CONVERSATIONS["two calls"][:-1], *again), endings=((says("ok"),),))
    text = tokenizer.decode(ChatTemplate(tokenizer).render(row).unit[0].tokens)
    assert 'call00000weather{"city": "苏州 🙂"}call00001weather{"city": "Zürich"}<|im_end|>' in text
    assert "call0000021°call000017°" in text
    assert 'call00002weather{"city": "苏州 🙂"}<|im_end|>call000029°' in text


def test_templates_are_plain_files() -> None:
    """They say which tokens they need, and every word of the facts is used."""
    for name, form in FORMATS.items():
        text = template_text(name)
        assert text.startswith("{#- needs:") == bool(form.needs), name
        if not form.jinja:
            assert jinja_of(form) == text


def test_page_of_templates_is_current() -> None:
    done = subprocess.run([sys.executable, ROOT / "docs/make_templates.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", sorted(NO_TOOLS))
def test_templates_without_tool_format_refuse_tools(name) -> None:
    template = ChatTemplate(tokenizer_for(name))
    with pytest.raises(RowError, match="name a template with a tool format, or leave tools out"):
        template.render(example("tools"))
