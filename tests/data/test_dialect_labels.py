"""Ids and labels against an independent encoder of LLaMA-Factory's format; what differs stands in docs/labels.md."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from chats import tokenizer_for
from dialect import FACTS, IGNORED, Dialect, Turn, lost_ends, unlearn_behind_end
from helpers import byte_tokenizer

from luthier.config.schema import DataConfig
from luthier.core.errors import ConfigError
from luthier.core.types import Example, Message
from luthier.data import tool_formats
from luthier.data.prepare import Preparer, prepare
from luthier.data.template import ChatTemplate
from luthier.data.template_shelf import apply_named_template

TEMPLATES = {"qwen3_nothink": "qwen3", "qwen3": "qwen3", "qwen": "qwen3", "llama3": "llama3_1", "gemma3": "gemma3",
             "deepseek3": "deepseek_v3", "deepseekr1": "deepseek_v3"}  # fmt: skip
"""Template -> the tokenizer of a real model."""
THINKING = [name for name in TEMPLATES if FACTS[name].thought]
CALLING = [name for name in TEMPLATES if FACTS[name].call]
CALL = [{"name": "weather", "arguments": {"city": "苏州 🙂", "days": 2}}]
TOOLS = json.dumps([{"type": "function", "function": {"name": "weather", "description": "城市", "parameters": {}}}])


def asks(text: str) -> Turn:
    return Turn("user", text)


def says(text: str) -> Turn:
    return Turn("assistant", text)


ROWS: dict[str, list[Turn]] = {
    "one": [asks("你好 🙂?"), says("Hi 谢谢 🙂.")],
    "many": [asks("a b"), says("c\nd"), asks("e"), says("f"), asks("g?"), says("4.")],
    "code": [asks("x\n\ny"), says("```py\nprint(1)\n```")],
    "numbers": [asks("12345 + 1"), says("12346")],
}
CALLS: dict[str, list[Turn]] = {
    "call": [asks("q"), Turn("function", json.dumps(CALL)), Turn("observation", "21°"), says("It is 21°.")],
    "calls": [asks("q"), Turn("function", json.dumps(CALL * 2)), Turn("observation", "21°"), says("It is 21°.")],
}
THOUGHTS: dict[str, list[Turn]] = {
    "thought": [asks("q"), says("<think>\nHm 嗯\n</think>\n\nA")],
    "thoughts": [asks("q"), says("<think>\nHm\n</think>\n\nA"), asks("r"), says("<think>\nOh\n</think>\n\nB")],
    "first only": [asks("q"), says("<think>\nHm\n</think>\n\nA"), asks("r"), says("B")],
    "none": [asks("q"), says("A"), asks("r"), says("B")],
}
_ROLES = {"user": "user", "assistant": "assistant", "observation": "tool", "function": "assistant"}


def example(turns: list[Turn], system: str = "", tools: str | None = None) -> Example:
    messages = [
        Message(
            role=_ROLES[turn.role],
            content="" if turn.role == "function" else turn.text,
            tool_calls=tuple(json.loads(turn.text)) if turn.role == "function" else (),
        )
        for turn in turns
    ]
    front = [Message(role="system", content=system)] if system else []
    return Example(context=(*front, *messages[:-1]), endings=((messages[-1],),), tools=tools)


def ours(segment) -> tuple[list[int], list[int]]:
    pairs = zip(segment.tokens, segment.weight, strict=True)
    return segment.tokens, [token if weight else IGNORED for token, weight in pairs]


def theirs(dialect: Dialect, found: tuple[list[int], list[int]]) -> tuple[list[int], list[int]]:
    ids, labels = found
    return ids, unlearn_behind_end(ids, labels, dialect.eos)


@pytest.fixture
def both(real_tokenizer):
    """Our template and the other encoder, by the name of a template."""

    def get(name: str, *, options: dict | None = None, **settings) -> tuple[ChatTemplate, Dialect]:
        tokenizer = real_tokenizer(TEMPLATES[name])
        apply_named_template(tokenizer, name)
        of_template = {k: v for k, v in settings.items() if k in ("train_on_prompt", "mask_history")}
        return ChatTemplate(tokenizer, options=options or {}, **of_template), Dialect(
            tokenizer, FACTS[name], **settings
        )

    return get


@pytest.mark.parametrize("system", ["", "Be brief. 简短"], ids=["plain", "system"])
@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_every_answer_is_learned_as_there(both, name, kind, system) -> None:
    template, dialect = both(name, mask_history=True) if FACTS[name].thought else both(name)
    unit = template.render(example(ROWS[kind], system)).unit
    assert ours(unit[-1]) == theirs(dialect, dialect.row(ROWS[kind], system))


@pytest.mark.parametrize("name", TEMPLATES)
def test_only_the_last_answer_and_the_whole_conversation(both, name) -> None:
    template, dialect = both(name, mask_history=True)
    (segment,) = template.render(example(ROWS["many"])).unit
    assert ours(segment) == theirs(dialect, dialect.row(ROWS["many"]))
    template, dialect = both(name, train_on_prompt=True)
    segment = template.render(example(ROWS["many"])).unit[-1]
    assert ours(segment) == dialect.row(ROWS["many"])


@pytest.mark.parametrize("kind", CALLS)
@pytest.mark.parametrize("name", CALLING)
def test_calls_and_results_of_tools(both, name, kind) -> None:
    settings = {"mask_history": True} if FACTS[name].thought else {}
    template, dialect = both(name, **settings)
    segment = template.render(example(CALLS[kind])).unit[-1]
    assert ours(segment) == theirs(dialect, dialect.row(CALLS[kind]))


@pytest.mark.parametrize("name", ["qwen3_nothink", "qwen", "gemma3"])
def test_descriptions_of_tools_end_the_system_text(both, name) -> None:
    form = tool_formats.DEFAULT if name == "gemma3" else tool_formats.QWEN
    each = "weather: 城市\nArguments: {}" if name == "gemma3" else json.dumps(json.loads(TOOLS)[0], ensure_ascii=False)
    template, dialect = both(name)
    (segment,) = template.render(example(CALLS["call"], "Be brief.", TOOLS)).unit
    described = form.gap + form.intro + each + form.outro
    assert ours(segment) == theirs(dialect, dialect.row(CALLS["call"], "Be brief.", described))


@pytest.mark.parametrize("kept", [False, True], ids=["removed", "preserved"])
@pytest.mark.parametrize("enabled", [True, False, None])
@pytest.mark.parametrize("kind", THOUGHTS)
@pytest.mark.parametrize("name", THINKING)
def test_thoughts_and_empty_thoughts(both, name, kind, enabled, kept) -> None:
    turns = THOUGHTS[kind]
    if enabled is False and "<think>" in turns[-1].text:
        pytest.skip("a thought where thinking is off has a test of its own")
    options = {"enable_thinking": enabled, **({"preserve_thinking": True} if kept else {})}
    settings = {"mask_history": True, "enable_thinking": enabled, "preserve_thinking": kept}
    template, dialect = both(name, options=options, **settings)
    (segment,) = template.render(example(turns)).unit
    assert ours(segment) == theirs(dialect, dialect.row(turns))


@pytest.mark.parametrize("kind", ["many", "thoughts", "first only"])
@pytest.mark.parametrize("name", THINKING)
def test_each_answer_of_a_thinking_family_is_a_row_of_its_own(both, name, kind) -> None:
    """Where there every answer is learned in one row, here each stands behind the prompt of its use."""
    turns = {**ROWS, **THOUGHTS}[kind]
    template, _ = both(name)
    _, dialect = both(name, mask_history=True)
    found = [ours(segment) for segment in template.render(example(turns)).unit]
    assert found == [theirs(dialect, dialect.row(turns[:end])) for end in range(2, len(turns) + 1, 2)]


@pytest.mark.parametrize("name", TEMPLATES)
def test_pairs_and_tagged_answers(both, name) -> None:
    template, dialect = both(name)
    turns = ROWS["many"]
    chosen, rejected = example(turns), example([*turns[:-1], says("Nein 不")])
    pair = replace(chosen, endings=(*chosen.endings, *rejected.endings))
    wanted = [dialect.answer(turns, "S"), dialect.answer([*turns[:-1], says("Nein 不")], "S")]
    if FACTS[name].thought:
        _, masked = both(name, mask_history=True)
        wanted = [masked.answer(turns, "S"), masked.answer([*turns[:-1], says("Nein 不")], "S")]
    pair = replace(pair, context=(Message(role="system", content="S"), *pair.context))
    assert [ours(s) for s in template.render(pair).unit] == [theirs(dialect, each) for each in wanted]
    tagged = replace(chosen, desirable=True, context=pair.context)
    assert [ours(s) for s in template.render(tagged).unit] == [theirs(dialect, wanted[0])]


def test_the_stop_word_becomes_the_end_token(real_tokenizer) -> None:
    for name, tokenizer in TEMPLATES.items():
        loaded = real_tokenizer(tokenizer)
        own = loaded.eos_token
        apply_named_template(loaded, name)
        assert loaded.eos_token == (FACTS[name].end or own)


# ---- where ids or labels differ


def test_a_line_break_behind_the_end_token_is_no_label(both) -> None:
    template, dialect = both("qwen3_nothink")
    (segment,) = template.render(example(ROWS["many"])).unit
    ids, labels = dialect.row(ROWS["many"])
    differ = [i for i, (a, b) in enumerate(zip(ours(segment)[1], labels, strict=True)) if a != b]
    assert [ids[i - 1] for i in differ] == [dialect.eos] * 3
    assert dialect.tokenizer.decode([ids[i] for i in differ]) == "\n\n\n"


def test_blanks_around_turns_go_where_the_family_removes_them(both) -> None:
    for name, text in {"qwen3_nothink": " e\n", "llama3": "e", "gemma3": "e"}.items():
        template, dialect = both(name)
        (segment,) = template.render(example([asks(" e\n"), says("f")])).unit
        assert ours(segment) == theirs(dialect, dialect.row([asks(text), says("f")]))


def test_llama2_keeps_the_blank_before_the_end(real_tokenizer) -> None:
    tokenizer = real_tokenizer("llama2")
    apply_named_template(tokenizer, "llama2")
    dialect = Dialect(tokenizer, FACTS["llama2"])
    for kind, turns in ROWS.items():
        (segment,) = ChatTemplate(tokenizer).render(example(turns, "Be brief.")).unit
        ids, labels = dialect.row(turns, "Be brief.")
        blank = tokenizer.convert_tokens_to_ids("▁")
        kept = [
            i for i, t in enumerate(segment.tokens) if t != blank or segment.tokens[i + 1] != tokenizer.eos_token_id
        ]
        assert ([segment.tokens[i] for i in kept], [ours(segment)[1][i] for i in kept]) == (ids, labels), kind


def test_gpt_oss_writes_its_channels(real_tokenizer) -> None:
    tokenizer = real_tokenizer("gptoss")
    apply_named_template(tokenizer, "gpt_oss")
    (segment,) = ChatTemplate(tokenizer).render(example(ROWS["one"])).unit
    learned = tokenizer.decode([label for label in ours(segment)[1] if label != IGNORED])
    assert learned == "<|channel|>final<|message|>Hi 谢谢 🙂.<|return|>"
    _, labels = Dialect(tokenizer, FACTS["gpt_oss"]).row(ROWS["one"])
    assert tokenizer.decode([label for label in labels if label != IGNORED]).endswith(learned)


def test_a_label_is_always_the_token_that_stands_there() -> None:
    """Templates with efficient_eos carry the end token as the label of the next question there."""
    tokenizer = tokenizer_for("falcon")
    facts = replace(FACTS["chatml"], system="{{content}}", user="User: {{content}}\nFalcon:", assistant="{{content}}\n",
                    end="", efficient_eos=True)  # fmt: skip
    ids, labels = Dialect(tokenizer, facts).row(ROWS["many"])
    assert [i for i, (a, b) in enumerate(zip(ids, labels, strict=True)) if b not in (a, IGNORED)]
    unit = ChatTemplate(tokenizer).render(example(ROWS["many"])).unit
    ends = [ours(segment)[1][-1] for segment in unit]
    assert ends == [tokenizer.eos_token_id] * 3


def test_thoughts_where_thinking_is_off(both) -> None:
    template, _ = both("qwen3", options={"enable_thinking": False})
    (segment,) = template.render(example(THOUGHTS["thought"])).unit
    text = template.tokenizer.decode([t for t in ours(segment)[1] if t != IGNORED])
    assert text == "A<|im_end|>"
    assert segment.tokens[: segment.weight.index(1.0)] == template.prompt([Message(role="user", content="q")])


# ---- cutting, joining, formats of tools


@pytest.mark.parametrize("limit", [60, 100])
def test_a_cut_answer_is_counted_and_learns_no_end(tmp_path: Path, limit: int) -> None:
    """There it is cut by the same number of tokens, without a word."""
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"instruction": "q" * 4, "output": "a" * 200}) + "\n")
    tokenizer = byte_tokenizer()
    store, report = prepare((str(path),), Preparer(ChatTemplate(tokenizer), DataConfig(cutoff_len=limit), "answer"))
    ((segment,),) = store
    whole = ChatTemplate(tokenizer).render(example([asks("q" * 4), says("a" * 200)])).unit[0]
    asked = whole.weight.index(1.0)
    ((source, target),) = lost_ends([(asked, len(whole.tokens) - asked)], limit)
    assert (len(segment.tokens), sum(segment.weight)) == (source + target, target)
    assert tokenizer.eos_token_id not in segment.tokens[asked:]
    assert report.cut_tokens == len(whole.tokens) - limit
    assert str(report.findings[0]).startswith(
        f"{path}:1 lost {len(whole.tokens) - limit} of {len(whole.tokens)} tokens"
    )


def test_a_prompt_is_never_cut_at_its_end(tmp_path: Path) -> None:
    """There the question would lose its end, and with it what asks for an answer."""
    assert lost_ends([(100, 10)], 60) == [(50, 10)]
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"instruction": "q" * 100, "output": "a"}) + "\n")
    _, report = prepare((str(path),), Preparer(ChatTemplate(byte_tokenizer()), DataConfig(cutoff_len=60), "answer"))
    (finding,) = report.findings
    assert finding.level == "warning"
    assert str(finding).startswith(f"{path}:1 has no answer token within cutoff_len 60")


def test_documents_are_not_joined_and_nothing_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    texts = ["aaa", "b" * 25, "cc", "d" * 8]
    path.write_text("\n".join(texts))
    tokenizer = byte_tokenizer()
    store, _ = prepare((str(path),), Preparer(ChatTemplate(tokenizer), DataConfig(cutoff_len=10), "text"))
    blocks = [tokenizer.decode(segment.tokens) for (segment,) in store]
    end = "<|im_end|>"
    assert blocks == ["aaa" + end, "b" * 10, "b" * 10, "b" * 5 + end, "cc" + end, "d" * 8 + end]


def test_end_of_a_text_of_llama3(real_tokenizer) -> None:
    tokenizer = real_tokenizer("llama3_1")
    assert tokenizer.eos_token == "<|eot_id|>"
    (segment,) = ChatTemplate(tokenizer, text_end="<|end_of_text|>").render(Example(text="你好 a")).unit
    assert tokenizer.decode(segment.tokens) == "<|begin_of_text|>你好 a<|end_of_text|>"


@pytest.mark.parametrize("name", sorted(tool_formats.NAMED))
def test_any_tool_format_in_a_template(name) -> None:
    tokenizer = tokenizer_for("chatml")
    apply_named_template(tokenizer, "chatml", tools=name)
    text = tokenizer.decode(ChatTemplate(tokenizer).render(example(CALLS["call"], "Be brief.", TOOLS)).unit[-1].tokens)
    assert text.count("苏州 🙂") == 1
    assert "城市" in text
    form = tool_formats.NAMED[name]
    assert form.call.partition("{")[0] in text


def test_tool_formats_that_contradict_the_template() -> None:
    tokenizer = tokenizer_for("chatml")
    for template, tools, message in (
        ("empty", "qwen", "tool_format: qwen and template: empty contradict each other: that template has no place"),
        ("chatml", "qwne", "unknown tool_format 'qwne'; did you mean 'qwen'"),
        ("auto", "qwen", "tool_format: qwen changes a named template, but this tokenizer keeps its own"),
    ):
        with pytest.raises(ConfigError, match=message):
            apply_named_template(tokenizer, template, tools=tools)
    with pytest.raises(ConfigError, match="This tokenizer brings a template of its own"):
        apply_named_template(tokenizer, "chatlm")
