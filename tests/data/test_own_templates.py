"""Named templates against the tokenizers' own, and exact loss weights with tokenizers of real models."""

from itertools import groupby, pairwise

import pytest

from luthier.core.findings import RowError
from luthier.core.types import Example, Message
from luthier.data.template import ChatTemplate
from luthier.data.template_input import tools_of
from luthier.data.template_shelf import apply_named_template, template_text

TOOLS = (
    '[{"type": "function", "function": {"name": "weather", "description": "城市 weather", '
    '"parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}]'
)
SYSTEM = Message(role="system", content=" Be brief. 简短\n")
QUESTION = Message(role="user", content=" 你好 🙂, what is 2+2? ")
ANSWER = Message(role="assistant", content="\n It's 4. 谢谢 🙂 ")
SHORT = Message(role="assistant", content="4")
THOUGHT = Message(role="assistant", content="<think>\nTwo and two, 嗯\n</think>\n\nIt's 4.")
CALLS = tuple({"name": "weather", "arguments": {"city": city, "days": 2}} for city in ("Zürich", "苏州 🙂"))
CALL = Message(role="assistant", content="", tool_calls=CALLS[:1])
TWO_CALLS = Message(role="assistant", content="", tool_calls=CALLS)
SAID_AND_CALLED = Message(role="assistant", content="Let me see.", tool_calls=CALLS)
RESULT = Message(role="tool", content='{"t": 21}')

CONVERSATIONS: dict[str, tuple[list[Message], str | None]] = {
    "one": ([QUESTION, ANSWER], None),
    "many": ([QUESTION, ANSWER, QUESTION, SHORT], None),
    "system": ([SYSTEM, QUESTION, ANSWER, QUESTION, SHORT], None),
    "thoughts": ([QUESTION, THOUGHT, QUESTION, THOUGHT], None),
    "call": ([QUESTION, CALL, RESULT, ANSWER], TOOLS),
    "two calls": ([SYSTEM, QUESTION, TWO_CALLS, RESULT, RESULT, SHORT, QUESTION, ANSWER], TOOLS),
    "said and called": ([QUESTION, SAID_AND_CALLED, RESULT, RESULT, SHORT], TOOLS),
    "two calls, undescribed": ([QUESTION, TWO_CALLS, RESULT, RESULT, SHORT], None),
}
SHELF = {"smollm2": "smollm2", "qwen3": "qwen3", "llama3_1": "llama3", "gemma3": "gemma3", "deepseek_v3": "deepseek3",
         "llama2": "llama2", "gptoss": "gpt_oss"}  # fmt: skip
DROPS = "the own template drops tools, so that such rows are refused with it"
DIFFERENCES: dict[tuple[str, str], str] = {
    (name, kind): DROPS
    for name in ("smollm2", "llama3_1", "gemma3", "deepseek_v3")
    for kind in CONVERSATIONS
    if "call" in kind
}
"""Where the own template refuses a row and ours does not. Everything else is equal."""
OWN = [name for name in SHELF if name not in ("llama2", "gptoss")]
"""Tokenizers that bring a template."""


def example(kind: str) -> Example:
    (*context, last), tools = CONVERSATIONS[kind]
    return Example(context=tuple(context), endings=((last,),), tools=tools)


def ours(tokenizer, name: str, **options) -> ChatTemplate:
    apply_named_template(tokenizer, SHELF[name])
    return ChatTemplate(tokenizer, options=options)


@pytest.mark.parametrize("enabled", [{}, {"enable_thinking": True}, {"enable_thinking": False}], ids=str)
@pytest.mark.parametrize("kind", CONVERSATIONS)
@pytest.mark.parametrize("name", OWN)
def test_named_template_writes_what_the_own_one_does(real_tokenizer, name, kind, enabled) -> None:
    """Ids and weights of rows, and the prompt of generation."""
    tokenizer, row = real_tokenizer(name), example(kind)
    own = ChatTemplate(tokenizer, options=enabled)
    if (name, kind) in DIFFERENCES:
        with pytest.raises(RowError, match="template"):
            own.render(row)
        assert ours(tokenizer, name, **enabled).render(row).unit
        return
    prompts = [own.prompt(row.context[:i], row.tools) for i in (1, len(row.context))]
    rendered = own.render(row)
    assert rendered.has_end
    named = ours(tokenizer, name, **enabled)
    assert tokenizer.chat_template == template_text(SHELF[name])
    assert named.render(row) == rendered
    assert [named.prompt(row.context[:i], row.tools) for i in (1, len(row.context))] == prompts


LEARNED = {
    "smollm2": (" It's 4. 谢谢 🙂 <|im_end|>", "Let me see.\n", "\nAction Input: ", "<|im_end|>"),
    "qwen3": (
        " It's 4. 谢谢 🙂 <|im_end|>",
        "Let me see.\n<tool_call>\n",
        '", "arguments": ',
        "}\n</tool_call><|im_end|>",
    ),
    "llama3_1": ("It's 4. 谢谢 🙂<|eot_id|>", "Let me see.\n[", '", "parameters": ', "<|eot_id|>"),
    "gemma3": ("It's 4. 谢谢 🙂<end_of_turn>", "Let me see.\n", "\nAction Input: ", "<end_of_turn>"),
    "deepseek_v3": (
        "\n It's 4. 谢谢 🙂 <｜end▁of▁sentence｜>",
        "Let me see.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function",
        "\n```json\n",
        "\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜><｜end▁of▁sentence｜>",
    ),
    "llama2": ("It's 4. 谢谢 🙂 </s>", "Let me see. \n", "\nAction Input: ", "</s>"),
    "gptoss": (
        "<|channel|>final<|message|>\n It's 4. 谢谢 🙂 <|return|>",
        "<|channel|>commentary<|message|>Let me see.<|end|><|start|>assistant to=functions.",
        "<|channel|>commentary json<|message|>",
        "<|call|>",
    ),
}
"""How a learned answer ends; then how a learned turn with text and calls begins, goes on behind a name, and ends."""


@pytest.mark.parametrize("kind", CONVERSATIONS)
@pytest.mark.parametrize("name", SHELF)
def test_weights_cover_the_answers_exactly(real_tokenizer, name, kind) -> None:
    tokenizer, row = real_tokenizer(name), example(kind)
    template = ours(tokenizer, name)
    messages = [*row.context, *row.endings[0]]
    answers = [i for i, m in enumerate(messages) if m.role == "assistant"]
    rendered = template.render(row)
    assert rendered.has_end
    runs, contexts = [], []
    for segment in rendered.unit:
        pairs = zip(segment.tokens, segment.weight, strict=True)
        runs += [tokenizer.decode([t for t, _ in group]) for w, group in groupby(pairs, key=lambda p: p[1]) if w]
        contexts += [segment.tokens[: i + 1] for i, (a, b) in enumerate(pairwise(segment.weight)) if b and not a]
    assert contexts == [template.prompt(messages[:i], row.tools) for i in answers]
    answer_end, call_start, call_middle, call_end = LEARNED[name]
    for run, message in zip(runs, (messages[i] for i in answers), strict=True):
        if message is ANSWER:
            assert run.replace("<|end|>", "<|return|>").endswith(answer_end)
        if message.tool_calls:
            assert run.endswith(call_end)
            assert run.count(call_middle) == len(message.tool_calls)
        if message is SAID_AND_CALLED:
            assert call_start in run
        if message is THOUGHT:
            assert run.count("Two and two, 嗯") == 1
        assert not any(other in run for other in ("what is", "Be brief", '"t": 21', "城市"))


@pytest.mark.parametrize("name", SHELF)
def test_tokens_are_those_of_the_text(real_tokenizer, name) -> None:
    """Marks and borders leave nothing behind: the ids of a row decode to what the template writes."""
    tokenizer = real_tokenizer(name)
    template = ours(tokenizer, name)
    for kind, (messages, tools) in CONVERSATIONS.items():
        text = tokenizer.apply_chat_template([m.as_dict() for m in messages], tools=tools_of(tools), tokenize=False)
        ids = template.render(example(kind)).unit[-1].tokens
        whole = tokenizer(text, add_special_tokens=False).input_ids
        assert tokenizer.decode(ids) == tokenizer.decode(whole)
