# ruff: noqa: RUF001
"""The chat formats of the main families, as facts."""

from __future__ import annotations

from dataclasses import replace

from luthier.data import tool_formats as tools
from luthier.data.chat_format import THINK, ChatFormat

THINK_LINES = ("<think>\n", "\n</think>\n\n")
HELPFUL = "You are a helpful assistant."
_IM = ("<|im_start|>", "<|im_end|>")


def plain(family: str, *, needs: tuple[str, ...] = (), **facts: object) -> ChatFormat:
    """Return a format that calls tools in the plain way."""
    return ChatFormat(family=family, tools=tools.DEFAULT, needs=needs, **facts)  # pyright: ignore[reportArgumentType]


CHATML = ChatFormat(
    family="any with ChatML tokens",
    system="<|im_start|>system\n{text}<|im_end|>\n",
    user="<|im_start|>user\n{text}<|im_end|>\n",
    ask="<|im_start|>assistant\n",
    end="<|im_end|>\n",
    results=("", "<|im_start|>tool\n{text}<|im_end|>\n", ""),
    tools=tools.DEFAULT,
    needs=_IM,
)
QWEN = replace(
    CHATML,
    family="Qwen 1.5, 2, 2.5",
    default_system="You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
    results=("<|im_start|>user", "\n<tool_response>\n{text}\n</tool_response>", "<|im_end|>\n"),
    tools=tools.QWEN,
)
QWEN3_NOTHINK = replace(QWEN, family="Qwen 3 without thoughts", default_system="")
QWEN3 = replace(QWEN3_NOTHINK, family="Qwen 3", thought=THINK_LINES)
LLAMA2 = ChatFormat(
    family="Llama 2",
    user="{bos}[INST] {text} [/INST]",
    answer=" {text} ",
    system="<<SYS>>\n{text}\n<</SYS>>\n\n",
    system_in_user=True,
    trim="turns",
    tools=tools.DEFAULT,
)
LLAMA3 = ChatFormat(
    family="Llama 3, 3.1, 3.2, 3.3",
    prefix="{bos}",
    system="<|start_header_id|>system<|end_header_id|>\n\n{text}<|eot_id|>",
    user="<|start_header_id|>user<|end_header_id|>\n\n{text}<|eot_id|>",
    ask="<|start_header_id|>assistant<|end_header_id|>\n\n",
    end="<|eot_id|>",
    results=("", "<|start_header_id|>ipython<|end_header_id|>\n\n{text}<|eot_id|>", ""),
    tools=tools.LLAMA3,
    trim="all",
    text_end="<|end_of_text|>",
    needs=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
)
LLAMA4 = replace(
    LLAMA3,
    family="Llama 4",
    text_end="",
    system="<|header_start|>system<|header_end|>\n\n{text}<|eot|>",
    user="<|header_start|>user<|header_end|>\n\n{text}<|eot|>",
    ask="<|header_start|>assistant<|header_end|>\n\n",
    end="<|eot|>",
    results=("", "<|header_start|>ipython<|header_end|>\n\n{text}<|eot|>", ""),
    needs=("<|header_start|>", "<|header_end|>", "<|eot|>"),
)
GEMMA = ChatFormat(
    family="Gemma 1, 2, 3",
    prefix="{bos}",
    system="{text}\n\n",
    system_in_user=True,
    user="<start_of_turn>user\n{text}<end_of_turn>\n",
    ask="<start_of_turn>model\n",
    end="<end_of_turn>\n",
    results=("", "<start_of_turn>tool\n{text}<end_of_turn>\n", ""),
    trim="turns",
    tools=tools.DEFAULT,
    needs=("<start_of_turn>", "<end_of_turn>"),
)
GEMMA4 = ChatFormat(
    family="Gemma 4",
    user="",
    end="<turn|>\n",
    tools=tools.GEMMA4,
    thought=("<|channel>thought\n", "<channel|>"),
    writes_empty_thought=False,
    needs=("<|turn>", "<turn|>", "<|tool_response>"),
    jinja="gemma4",
)
GPT_OSS = ChatFormat(
    family="gpt-oss",
    user="",
    end="<|end|>",
    last_end="<|return|>",
    tools=tools.HARMONY,
    thought=("<|channel|>analysis<|message|>", "<|end|>"),
    writes_empty_thought=False,
    needs=("<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|return|>", "<|call|>"),
    jinja="gpt_oss",
)
MISTRAL = ChatFormat(
    family="Mistral 7B 0.3, Mixtral 8x22B",
    prefix="{bos}",
    system="{text}\n\n",
    system_in_user=True,
    user="[INST] {text}[/INST]",
    answer=" {text}",
    results=("", '[TOOL_RESULTS] {"content": {text}}[/TOOL_RESULTS]', ""),
    tools=tools.MISTRAL,
)
MINISTRAL = replace(
    MISTRAL,
    family="Ministral",
    user="[INST]{text}[/INST]",
    answer="{text}",
    results=("", '[TOOL_RESULTS]{"content": {text}}[/TOOL_RESULTS]', ""),
    tools=tools.TEKKEN,
    needs=("[INST]", "[/INST]"),
)
MISTRAL_SMALL = replace(
    MINISTRAL,
    family="Mistral Small 3",
    system="[SYSTEM_PROMPT]{text}[/SYSTEM_PROMPT]",
    system_in_user=False,
    needs=("[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"),
)
PHI = ChatFormat(
    family="Phi 3, 3.5",
    system="<|system|>\n{text}<|end|>\n",
    user="<|user|>\n{text}<|end|>\n",
    ask="<|assistant|>\n",
    end="<|end|>\n",
    tools=tools.DEFAULT,
    needs=("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
)
GLM4 = ChatFormat(
    family="GLM-4",
    prefix="[gMASK]<sop>",
    system="<|system|>\n{text}",
    user="<|user|>\n{text}",
    ask="<|assistant|>",
    answer="\n{text}",
    end="",
    last_end="<|user|>",
    call_end="<|observation|>",
    results=("", "<|observation|>\n{text}", ""),
    tools=tools.GLM4,
    needs=("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
)
GLM4_MOE = replace(
    GLM4,
    family="GLM-4.5, 4.6",
    tools=tools.GLM4_MOE,
    results=("<|observation|>", "\n<tool_response>\n{text}\n</tool_response>", ""),
    thought=("\n<think>", "</think>"),
    past_thought="\n<think></think>",
    thought_off="/nothink",
)
GLM4_7 = replace(
    GLM4_MOE,
    family="GLM-4.7",
    thought=THINK,
    empty_thought="</think>",
    past_thought="</think>",
    thought_off="",
)
DEEPSEEK3 = ChatFormat(
    family="DeepSeek V2.5, V3",
    prefix="{bos}",
    user="<｜User｜>{text}",
    ask="<｜Assistant｜>",
    results=(
        "<｜tool▁outputs▁begin｜>",
        "<｜tool▁output▁begin｜>{text}<｜tool▁output▁end｜>",
        "<｜tool▁outputs▁end｜>",
    ),
    results_join="\n",
    ask_after_results="",
    tools=tools.DEEPSEEK,
    needs=("<｜User｜>", "<｜Assistant｜>"),
)
GRANITE3 = ChatFormat(
    family="Granite 3",
    system="<|start_of_role|>system<|end_of_role|>{text}<|end_of_text|>\n",
    user="<|start_of_role|>user<|end_of_role|>{text}<|end_of_text|>\n",
    ask="<|start_of_role|>assistant<|end_of_role|>",
    end="<|end_of_text|>\n",
    tools=tools.DEFAULT,
    needs=("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"),
)
PLAIN = ChatFormat(
    family="base models",
    system="System: {text}\n",
    user="Human: {text}\n",
    ask="Assistant: ",
    end="{eos}\n",
    tools=tools.DEFAULT,
)
EMPTY = ChatFormat(family="base models, nothing added", user="{text}", end="", last_end="{eos}")
ALPACA = ChatFormat(
    family="base models, Stanford Alpaca",
    system="{text}\n\n",
    default_system="Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.",
    user="### Instruction:\n{text}\n\n",
    ask="### Response:\n",
    end="{eos}\n\n",
    tools=tools.DEFAULT,
)
VICUNA = ChatFormat(
    family="Vicuna",
    system="{text} ",
    default_system="A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions.",
    user="USER: {text}",
    ask=" ASSISTANT:",
    answer=" {text}",
    tools=tools.DEFAULT,
)
DEFAULT = ChatFormat(
    family="base models",
    system="System: {text}{eos}\n",
    user="Human: {text}{eos}\n",
    ask="Assistant:",
    end="{eos}\n",
    tools=tools.DEFAULT,
)
MINIMAX1 = ChatFormat(
    family="MiniMax-Text-01, M1",
    system="<beginning_of_sentence>system ai_setting=assistant\n{text}<end_of_sentence>\n",
    default_system=HELPFUL,
    user="<beginning_of_sentence>user name=user\n{text}<end_of_sentence>\n",
    ask="<beginning_of_sentence>ai name=assistant\n",
    end="<end_of_sentence>\n",
    results=("", "<beginning_of_sentence>tool name=tools\n{text}<end_of_sentence>\n", ""),
    tools=tools.MINIMAX1,
    needs=("<beginning_of_sentence>", "<end_of_sentence>"),
)
MINIMAX2 = ChatFormat(
    family="MiniMax-M2",
    system="]~!b[]~b]system\n{text}[e~[\n",
    default_system="You are a helpful assistant. Your name is MiniMax-M2.1 and is built by MiniMax.",
    user="]~b]user\n{text}[e~[\n",
    ask="]~b]ai\n",
    end="[e~[\n",
    results=("]~b]tool", "\n<response>{text}</response>", "[e~[\n"),
    tools=tools.MINIMAX2,
    thought=THINK_LINES,
    needs=("]~!b[", "]~b]", "[e~["),
)
SEED_OSS = ChatFormat(
    family="Seed-OSS",
    system="{bos}system\n{text}{eos}",
    user="{bos}user\n{text}{eos}",
    ask="{bos}assistant\n",
    results=("", "{bos}tool\n{text}{eos}", ""),
    tools=tools.SEED_OSS,
    thought=("<seed:think>", "</seed:think>"),
    needs=("<seed:think>", "</seed:think>"),
)
