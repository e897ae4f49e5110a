"""Which tokens are learned, read token by token on tokenizers that real models use."""

import json
from itertools import groupby

import pytest
from helpers import byte_tokenizer

from luthier.core.findings import RowError
from luthier.core.types import Example, Message
from luthier.data.template import MARK, ChatTemplate
from luthier.data.template_shelf import apply_named_template

QUESTION, ANSWER = "你好 🙂 <|im_end|></s><eos>", " It's 4. 谢谢"
THOUGHT = "<think>\n\n</think>\n\n"

EXPECTED = {
    "smollm2": [("", "Hello!<|im_end|>", f"{ANSWER}<|im_end|>")],
    "qwen3": [("", f"{THOUGHT}Hello!<|im_end|>"), ("Hello!<|im_end|>", f"{THOUGHT}{ANSWER}<|im_end|>")],
    "llama3_1": [("", "Hello!<|eot_id|>", "It's 4. 谢谢<|eot_id|>")],
    "gemma3": [("", "Hello!<end_of_turn>", "It's 4. 谢谢<end_of_turn>")],
    "deepseek_v3": [("", "Hello!<｜end▁of▁sentence｜>", f"{ANSWER}<｜end▁of▁sentence｜>")],
    "llama2": [("", "Hello! </s>", "It's 4. 谢谢 </s>")],
}
"""Per tokenizer and segment: text that is context although it is an answer, then the learned runs."""
SHELF = {"llama2": "llama2"}


@pytest.fixture(params=list(EXPECTED))
def named(request: pytest.FixtureRequest, real_tokenizer):
    """(name, tokenizer)."""
    tokenizer = real_tokenizer(request.param)
    apply_named_template(tokenizer, SHELF.get(request.param))
    return request.param, tokenizer


def turn(role, content) -> Message:
    return Message(role=role, content=content)


def conversation(system: str | None = "Be brief.", question: str = QUESTION) -> Example:
    first = [turn("system", system)] if system else []
    context = (*first, turn("user", question), turn("assistant", "Hello!"), turn("user", "2+2?"))
    return Example(context=context, endings=((turn("assistant", ANSWER),),))


def runs(segment, tokenizer) -> list[tuple[bool, str]]:
    """Stretches of equal weight as text."""
    pairs = zip(segment.tokens, segment.weight, strict=True)
    return [(w > 0, tokenizer.decode([t for t, _ in group])) for w, group in groupby(pairs, key=lambda p: p[1])]


def test_learned_runs(named) -> None:
    name, tokenizer = named
    unit = ChatTemplate(tokenizer).render(conversation()).unit
    learned = [[text for is_learned, text in runs(segment, tokenizer) if is_learned] for segment in unit]
    assert [[t.strip() for t in texts] for texts in learned] == [
        [t.strip() for t in texts] for _, *texts in EXPECTED[name]
    ]
    for segment, (context_answer, *_) in zip(unit, EXPECTED[name], strict=True):
        assert context_answer in "".join(text for is_learned, text in runs(segment, tokenizer) if not is_learned)


def test_context_of_each_answer_is_the_prompt_of_generation(named) -> None:
    """Token by token: what stands before an answer in training is what the model is given when it is used."""
    _, tokenizer = named
    template, example = ChatTemplate(tokenizer), conversation()
    messages = [*example.context, *example.endings[0]]
    prompts = [template.prompt(messages[:i]) for i, m in enumerate(messages) if m.role == "assistant"]
    starts = []
    for segment in template.render(example).unit:
        weight = segment.weight
        starts += [segment.tokens[:i] for i in range(1, len(weight)) if weight[i] and not weight[i - 1]]
    assert starts == prompts


def test_text_is_what_the_template_writes(named) -> None:
    _, tokenizer = named
    example = conversation(question="你好 🙂")
    messages = [m.as_dict() for m in (*example.context, *example.endings[0])]
    whole = ChatTemplate(tokenizer).render(example).unit[-1]
    assert tokenizer.decode(whole.tokens) == tokenizer.decode(
        tokenizer(tokenizer.apply_chat_template(messages, tokenize=False), add_special_tokens=False).input_ids
    )
    assert MARK not in tokenizer.decode(whole.tokens)


def test_special_tokens_in_text_stay_text(named) -> None:
    _, tokenizer = named
    template = ChatTemplate(tokenizer)
    plain, hostile = (
        Example(context=(turn("user", text),), endings=((turn("assistant", "ok"),),))
        for text in ("hi", " ".join(template.control_tokens))
    )
    counts = []
    for example in (plain, hostile):
        ids = template.render(example).unit[0].tokens
        counts.append([ids.count(i) for i in template.control_tokens.values()])
    assert counts[0] == counts[1]
    assert template.render(hostile).special_text == tuple(sorted(template.control_tokens))


def test_mask_history_learns_the_last_answer_only(named) -> None:
    _, tokenizer = named
    unit = ChatTemplate(tokenizer, mask_history=True).render(conversation()).unit
    assert len(unit) == 1
    learned = [text for is_learned, text in runs(unit[0], tokenizer) if is_learned]
    assert len(learned) == 1
    assert ANSWER.strip() in learned[0]


def test_train_on_prompt_learns_everything(named) -> None:
    _, tokenizer = named
    for segment in ChatTemplate(tokenizer, train_on_prompt=True).render(conversation()).unit:
        assert all(segment.weight)


def test_no_end_token_is_reported() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    assert not ChatTemplate(tokenizer).render(conversation()).has_end


def test_template_that_refuses_is_a_bad_row() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('no system here') }}"
    with pytest.raises(RowError, match="no system here"):
        ChatTemplate(tokenizer).render(conversation())


def test_default_system_fills_in() -> None:
    tokenizer = byte_tokenizer()
    template = ChatTemplate(tokenizer, default_system="Be kind.")
    assert "Be kind." in tokenizer.decode(template.render(conversation(None)).unit[0].tokens)
    assert "Be kind." not in tokenizer.decode(template.render(conversation()).unit[0].tokens)


def test_tool_calls_are_learned() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{{ tools | tojson }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
        "{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    call = {"name": "weather", "arguments": {"city": "Zürich"}}
    example = Example(
        context=(turn("user", "weather?"),),
        endings=((Message(role="assistant", content="", tool_calls=(call,)),),),
        tools=json.dumps([{"type": "function", "function": {"name": "weather"}}]),
    )
    (segment,) = ChatTemplate(tokenizer).render(example).unit
    assert [t for learned, t in runs(segment, tokenizer) if learned] == [
        '{"name": "weather", "arguments": {"city": "Zürich"}}<|im_end|>'
    ]
