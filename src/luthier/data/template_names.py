"""Every name that a template is asked for by, and its format.

Families that differ from a main one in a few strings are spelt here as that difference.
"""

from __future__ import annotations

from dataclasses import replace

from luthier.data import default_systems as systems
from luthier.data import family_chats as main
from luthier.data import tool_formats as tools
from luthier.data.chat_format import THINK, ChatFormat
from luthier.data.chinese_chats import CHINESE
from luthier.data.family_chats import CHATML, HELPFUL, QWEN, QWEN3, QWEN3_NOTHINK, plain

OWN = ("default", "auto")
"""Names of the tokenizer's own template; "default" is a plain one where there is none."""


_CHATML_NAMES: dict[str, ChatFormat] = {
    "chatml": CHATML,
    "chatml_de": replace(CHATML, default_system="Du bist ein freundlicher und hilfsbereiter KI-Assistent."),
    "smollm": replace(CHATML, family="SmolLM"),
    "smollm2": replace(
        CHATML,
        family="SmolLM 2",
        default_system="You are a helpful AI assistant named SmolLM, trained by Hugging Face",
    ),
    "smollm3": replace(QWEN3, family="SmolLM 3"),
    "yi": replace(CHATML, family="Yi"),
    "qwen": QWEN,
    "qwen3": QWEN3,
    "qwen3_nothink": QWEN3_NOTHINK,
    "qwen3_5": replace(QWEN3, family="Qwen 3.5", tools=tools.QWEN3_5),
    "qwen3_5_nothink": replace(QWEN3_NOTHINK, family="Qwen 3.5 without thoughts", tools=tools.QWEN3_5),
    "mimo": replace(QWEN3, family="MiMo", default_system=HELPFUL),
    "mimo_v2": replace(
        QWEN3,
        family="MiMo 2",
        default_system="You are MiMo, a helpful AI assistant engineered by Xiaomi.",
        thought=THINK,
    ),
    "intern2": replace(CHATML, family="InternLM 2, 3", prefix="{bos}", default_system=systems.INTERN),
    "cpm3": replace(CHATML, family="MiniCPM 3", prefix="{bos}"),
    "cpm4": replace(CHATML, family="MiniCPM 4", prefix="{bos}"),
    "falcon_h1": replace(CHATML, family="Falcon-H1", prefix="{bos}"),
    "dbrx": replace(CHATML, family="DBRX", default_system=systems.DBRX),
    "opencoder": replace(CHATML, family="OpenCoder", default_system="You are OpenCoder, created by OpenCoder Team."),
    "sailor": replace(
        CHATML,
        family="Sailor",
        user="<|im_start|>question\n{text}<|im_end|>\n",
        ask="<|im_start|>answer\n",
        default_system="You are an AI assistant named Sailor created by Sea AI Lab. "
        "Your answer should be friendly, unbiased, faithful, informative and detailed.",
        results=None,
    ),
    "ernie": replace(
        CHATML,
        family="ERNIE 4.5 thinking",
        system="<|im_start|>system\n{text}<|im_end|>\n\n",
        user="<|im_start|>user\n{text}<|im_end|>\n\n",
        end="<|im_end|>\n\n",
        results=("", "<|im_start|>tool\n{text}<|im_end|>\n\n", ""),
        default_system="<global_setting>\nthink_mode=True\n</global_setting>",
    ),
    "lfm2": replace(
        CHATML,
        family="LFM2",
        results=("", "<|im_start|>tool\n<|tool_response_start|>{text}<|tool_response_end|><|im_end|>\n", ""),
        tools=tools.LFM2,
        default_system="You are a helpful AI assistant.",
    ),
    "phi4": replace(
        CHATML,
        family="Phi 4",
        system="<|im_start|>system<|im_sep|>{text}<|im_end|>",
        user="<|im_start|>user<|im_sep|>{text}<|im_end|>",
        ask="<|im_start|>assistant<|im_sep|>",
        end="<|im_end|>",
        results=None,
        needs=("<|im_start|>", "<|im_sep|>", "<|im_end|>"),
    ),
    "moonlight": plain(
        "Moonlight",
        system="<|im_system|>system<|im_middle|>{text}<|im_end|>",
        user="<|im_user|>user<|im_middle|>{text}<|im_end|>",
        ask="<|im_assistant|>assistant<|im_middle|>",
        end="<|im_end|>",
        default_system="You are a helpful assistant provided by Moonshot-AI.",
        needs=("<|im_system|>", "<|im_user|>", "<|im_assistant|>", "<|im_middle|>", "<|im_end|>"),
    ),
}
_LLAMA_NAMES: dict[str, ChatFormat] = {
    "llama2": main.LLAMA2,
    "llama2_zh": replace(
        main.LLAMA2,
        family="Llama 2 Chinese",
        default_system="You are a helpful assistant. 你是一个乐于助人的助手。",
    ),
    "llama3": main.LLAMA3,
    "llama4": main.LLAMA4,
    "gemma": main.GEMMA,
    "gemma2": main.GEMMA,
    "gemma3": main.GEMMA,
    "gemma4": main.GEMMA4,
    "mistral": main.MISTRAL,
    "mixtral": plain(
        "Mistral 7B 0.1, 0.2, Mixtral 8x7B",
        prefix="{bos}",
        system="{text}\n\n",
        system_in_user=True,
        user="[INST] {text} [/INST]",
        answer=" {text}",
    ),
    "ministral": main.MINISTRAL,
    "ministral3": main.MINISTRAL,
    "mistral_small": main.MISTRAL_SMALL,
    "phi": main.PHI,
    "phi_small": replace(main.PHI, family="Phi 3 small", prefix="<|endoftext|>"),
    "phi4_mini": replace(
        main.PHI,
        family="Phi 4 mini",
        system="<|system|>{text}<|end|>",
        user="<|user|>{text}<|end|>",
        ask="<|assistant|>",
        end="<|end|>",
    ),
    "starchat": replace(main.PHI, family="StarChat", ask="<|assistant|>"),
    "openchat": plain(
        "OpenChat 3.5",
        prefix="{bos}",
        user="GPT4 Correct User: {text}{eos}",
        ask="GPT4 Correct Assistant:",
        answer=" {text}",
    ),
    "openchat-3.6": plain(
        "OpenChat 3.6",
        prefix="{bos}",
        user="<|start_header_id|>GPT4 Correct User<|end_header_id|>\n\n{text}<|eot_id|>",
        ask="<|start_header_id|>GPT4 Correct Assistant<|end_header_id|>\n\n",
        needs=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    ),
    "breeze": plain("Breeze", prefix="{bos}", user="[INST] {text} [/INST] ", end="", last_end="{eos}"),
    "solar": plain(
        "Solar",
        system="### System:\n{text}\n\n",
        user="### User:\n{text}\n\n",
        ask="### Assistant:\n",
        end="\n\n",
        last_end="{eos}",
    ),
    "zephyr": plain(
        "Zephyr",
        system="<|system|>\n{text}{eos}\n",
        user="<|user|>\n{text}{eos}\n",
        ask="<|assistant|>\n",
        end="{eos}\n",
        default_system="You are Zephyr, a helpful assistant.",
    ),
    "gpt_oss": main.GPT_OSS,
}
_OTHER_NAMES: dict[str, ChatFormat] = {
    "alpaca": main.ALPACA,
    "vicuna": main.VICUNA,
    "plain": main.PLAIN,
    "empty": main.EMPTY,
    "fewshot": replace(main.EMPTY, family="base models, turns apart", end="\n\n"),
    "falcon": plain("Falcon", user="User: {text}\n", ask="Falcon:", end="\n", last_end="{eos}"),
    "granite3": main.GRANITE3,
    "granite4": replace(
        main.GRANITE3,
        family="Granite 4",
        default_system="You are Granite, developed by IBM. You are a helpful AI assistant.",
        results=("", "<|start_of_role|>tool<|end_of_role|>{text}<|end_of_text|>\n", ""),
        tools=tools.QWEN,
    ),
    "olmo": plain("OLMo 1", prefix="{eos}", user="<|user|>\n{text}", ask="<|assistant|>\n"),
    "olmo2": plain(
        "OLMo 2",
        prefix="{bos}",
        system="<|system|>\n{text}\n",
        user="<|user|>\n{text}\n",
        ask="<|assistant|>\n",
        end="{eos}\n",
        last_end="{eos}",
    ),
    "starcoder2": plain(
        "StarCoder 2",
        prefix="{bos}",
        user="### Instruction\n{text}\n\n",
        ask="### Response\n",
        end="{eos}\n\n",
        default_system=systems.STARCODER,
    ),
    "cohere": plain(
        "Command R",
        prefix="{bos}",
        system="<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>{text}<|END_OF_TURN_TOKEN|>",
        user="<|START_OF_TURN_TOKEN|><|USER_TOKEN|>{text}<|END_OF_TURN_TOKEN|>",
        ask="<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
        end="<|END_OF_TURN_TOKEN|>",
        trim="turns",
        needs=("<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>"),
    ),
    "exaone": plain(
        "EXAONE 3",
        system="[|system|]{text}[|endofturn|]\n",
        user="[|user|]{text}\n",
        ask="[|assistant|]",
        end="{eos}\n",
        needs=("[|endofturn|]",),
    ),
}
ALIASES = {
    "llama3": "llama3_1 llama3_2 llama3_3",
    "qwen": "qwen2 qwen2_5",
    "phi": "phi3",
    "intern2": "intern3 internlm2 internlm3",
    "cpm": "minicpm",
    "cohere": "command_r",
    "granite3": "granite",
    "deepseek3": "deepseek_v3",
    "deepseekr1": "deepseek_r1",
}
FORMATS: dict[str, ChatFormat] = {**_CHATML_NAMES, **_LLAMA_NAMES, **CHINESE, **_OTHER_NAMES}
NAMES: dict[str, ChatFormat] = {
    **FORMATS,
    "default": main.DEFAULT,
    **{alias: FORMATS[name] for name, aliases in ALIASES.items() for alias in aliases.split()},
}
"""All names, aliases among them."""
