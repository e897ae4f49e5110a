"""What named templates write, word by word: families whose tokenizers are not at hand are held by these."""

import pytest
from chats import CALL, OTHER, says, tokenizer_for, user

from luthier.core.types import Message
from luthier.data.template import ChatTemplate

PROMPTS = {
    "qwen": "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nA<|im_end|>\n<|im_start|>assistant\nB<|im_end|>\n<|im_start|>user\nC<|im_end|>\n<|im_start|>assistant\n",
    "qwen3": "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nA<|im_end|>\n<|im_start|>assistant\nB<|im_end|>\n<|im_start|>user\nC<|im_end|>\n<|im_start|>assistant\n",
    "llama2": "(bos)[INST] <<SYS>>\nS\n<</SYS>>\n\nA [/INST] B <|im_end|>(bos)[INST] C [/INST]",
    "llama3": "(bos)<|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nA<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nB<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nC<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "llama4": "(bos)<|header_start|>system<|header_end|>\n\nS<|eot|><|header_start|>user<|header_end|>\n\nA<|eot|><|header_start|>assistant<|header_end|>\n\nB<|eot|><|header_start|>user<|header_end|>\n\nC<|eot|><|header_start|>assistant<|header_end|>\n\n",
    "gemma": "(bos)<start_of_turn>user\nS\n\nA<end_of_turn>\n<start_of_turn>model\nB<end_of_turn>\n<start_of_turn>user\nC<end_of_turn>\n<start_of_turn>model\n",
    "mistral": "(bos)[INST] S\n\nA[/INST] B<|im_end|>[INST] C[/INST]",
    "mixtral": "(bos)[INST] S\n\nA [/INST] B<|im_end|>[INST] C [/INST]",
    "ministral": "(bos)[INST]S\n\nA[/INST]B<|im_end|>[INST]C[/INST]",
    "mistral_small": "(bos)[SYSTEM_PROMPT]S[/SYSTEM_PROMPT][INST]A[/INST]B<|im_end|>[INST]C[/INST]",
    "phi": "<|system|>\nS<|end|>\n<|user|>\nA<|end|>\n<|assistant|>\nB<|end|>\n<|user|>\nC<|end|>\n<|assistant|>\n",
    "phi4": "<|im_start|>system<|im_sep|>S<|im_end|><|im_start|>user<|im_sep|>A<|im_end|><|im_start|>assistant<|im_sep|>B<|im_end|><|im_start|>user<|im_sep|>C<|im_end|><|im_start|>assistant<|im_sep|>",
    "phi4_mini": "<|system|>S<|end|><|user|>A<|end|><|assistant|>B<|end|><|user|>C<|end|><|assistant|>",
    "smollm3": "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nA<|im_end|>\n<|im_start|>assistant\nB<|im_end|>\n<|im_start|>user\nC<|im_end|>\n<|im_start|>assistant\n",
    "yi": "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nA<|im_end|>\n<|im_start|>assistant\nB<|im_end|>\n<|im_start|>user\nC<|im_end|>\n<|im_start|>assistant\n",
    "baichuan": "S<reserved_102>A<reserved_103>B<reserved_102>C<reserved_103>",
    "baichuan2": "S<reserved_106>A<reserved_107>B<reserved_106>C<reserved_107>",
    "chatglm2": "[gMASK]sopS\n\n[Round 1]\n\n问：A\n\n答：B\n\n[Round 2]\n\n问：C\n\n答：",
    "chatglm3": "[gMASK]sop<|system|>\nS<|user|>\nA<|assistant|>\nB<|user|>\nC<|assistant|>",
    "glm4": "[gMASK]<sop><|system|>\nS<|user|>\nA<|assistant|>\nB<|user|>\nC<|assistant|>",
    "glm4_moe": "[gMASK]<sop><|system|>\nS<|user|>\nA<|assistant|>\n<think></think>\nB<|user|>\nC<|assistant|>",
    "glm4_7": "[gMASK]<sop><|system|>\nS<|user|>\nA<|assistant|></think>\nB<|user|>\nC<|assistant|>",
    "deepseek": "(bos)S\n\nUser: A\n\nAssistant: B<|im_end|>User: C\n\nAssistant:",
    "deepseek3": "(bos)S<｜User｜>A<｜Assistant｜>B<|im_end|><｜User｜>C<｜Assistant｜>",
    "deepseekr1": "(bos)S<｜User｜>A<｜Assistant｜>B<|im_end|><｜User｜>C<｜Assistant｜>",
    "deepseekcoder": "S### Instruction:\nA\n### Response:\nB\n<|EOT|>\n### Instruction:\nC\n### Response:",
    "intern2": "(bos)<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nA<|im_end|>\n<|im_start|>assistant\nB<|im_end|>\n<|im_start|>user\nC<|im_end|>\n<|im_start|>assistant\n",
    "falcon": "SUser: A\nFalcon:B\nUser: C\nFalcon:",
    "default": "System: S<|im_end|>\nHuman: A<|im_end|>\nAssistant:B<|im_end|>\nHuman: C<|im_end|>\nAssistant:",
    "plain": "System: S\nHuman: A\nAssistant: B<|im_end|>\nHuman: C\nAssistant: ",
    "empty": "SABC",
    "granite3": "<|start_of_role|>system<|end_of_role|>S<|end_of_text|>\n<|start_of_role|>user<|end_of_role|>A<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>B<|end_of_text|>\n<|start_of_role|>user<|end_of_role|>C<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>",
    "olmo2": "(bos)<|system|>\nS\n<|user|>\nA\n<|assistant|>\nB<|im_end|>\n<|user|>\nC\n<|assistant|>\n",
    "starcoder2": "(bos)S### Instruction\nA\n\n### Response\nB<|im_end|>\n\n### Instruction\nC\n\n### Response\n",
    "cohere": "(bos)<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>S<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|USER_TOKEN|>A<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>B<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|USER_TOKEN|>C<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
    "cpm": "(bos)S<用户>A<AI>B<|im_end|><用户>C<AI>",
    "cpm3": "(bos)<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nA<|im_end|>\n<|im_start|>assistant\nB<|im_end|>\n<|im_start|>user\nC<|im_end|>\n<|im_start|>assistant\n",
    "gpt_oss": "<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\n\nReasoning: medium\n\n# Valid channels: analysis, commentary, final. Channel must be included for every message.<|end|><|start|>developer<|message|># Instructions\n\nS<|end|><|start|>user<|message|>A<|end|><|start|>assistant<|channel|>final<|message|>B<|end|><|start|>user<|message|>C<|end|><|start|>assistant",
    "gemma4": "(bos)<|turn>system\nS<turn|>\n<|turn>user\nA<turn|>\n<|turn>model\nB<turn|>\n<|turn>user\nC<turn|>\n<|turn>model\n",
    "alpaca": "S\n\n### Instruction:\nA\n\n### Response:\nB<|im_end|>\n\n### Instruction:\nC\n\n### Response:\n",
    "vicuna": "S USER: A ASSISTANT: B<|im_end|>USER: C ASSISTANT:",
    "zephyr": "<|system|>\nS<|im_end|>\n<|user|>\nA<|im_end|>\n<|assistant|>\nB<|im_end|>\n<|user|>\nC<|im_end|>\n<|assistant|>\n",
}
"""System S, question A, answer B, question C; <|im_end|> is the end token of the tokenizer."""

AFTER_RESULTS = {
    "qwen3": '<|im_start|>user\nA<|im_end|>\n<|im_start|>assistant\nB\n<tool_call>\n{"name": "weather", "arguments": {"city": "苏州 🙂"}}\n</tool_call>\n<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich"}}\n</tool_call><|im_end|>\n<|im_start|>user\n<tool_response>\n1\n</tool_response>\n<tool_response>\n2\n</tool_response><|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n',
    "mistral": '(bos)[INST] A[/INST] B[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "苏州 🙂"}}, {"name": "weather", "arguments": {"city": "Zürich"}}]<|im_end|>[TOOL_RESULTS] {"content": 1}[/TOOL_RESULTS][TOOL_RESULTS] {"content": 2}[/TOOL_RESULTS]',
    "glm4": '[gMASK]<sop><|user|>\nA<|assistant|>\nB<|assistant|>weather\n{"city": "苏州 🙂"}<|assistant|>weather\n{"city": "Zürich"}<|observation|>\n1<|observation|>\n2<|assistant|>',
    "glm4_moe": "[gMASK]<sop><|user|>\nA/nothink<|assistant|>\n<think></think>\nB\n<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>苏州 🙂</arg_value>\n</tool_call>\n<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Zürich</arg_value>\n</tool_call><|observation|>\n<tool_response>\n1\n</tool_response>\n<tool_response>\n2\n</tool_response><|assistant|>\n<think></think>",
    "deepseek3": '(bos)<｜User｜>A<｜Assistant｜>B<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n{"city": "苏州 🙂"}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n{"city": "Zürich"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜><|im_end|><｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>1<｜tool▁output▁end｜>\n<｜tool▁output▁begin｜>2<｜tool▁output▁end｜><｜tool▁outputs▁end｜>',
    "gpt_oss": '<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\n\nReasoning: medium\n\n# Valid channels: analysis, commentary, final. Channel must be included for every message.<|end|><|start|>user<|message|>A<|end|><|start|>assistant<|channel|>commentary<|message|>B<|end|><|start|>assistant to=functions.weather<|channel|>commentary json<|message|>{"city": "苏州 🙂"}<|call|><|start|>assistant to=functions.weather<|channel|>commentary json<|message|>{"city": "Zürich"}<|call|><|start|>functions.weather to=assistant<|channel|>commentary<|message|>1<|end|><|start|>functions.weather to=assistant<|channel|>commentary<|message|>2<|end|><|start|>assistant<|channel|>analysis<|message|><|end|><|start|>assistant',
    "gemma4": '(bos)<|turn>user\nA<turn|>\n<|turn>model\nB<|tool_call>call:weather{city:<|"|>苏州 🙂<|"|>}<tool_call|><|tool_call>call:weather{city:<|"|>Zürich<|"|>}<tool_call|><|tool_response>response:weather{value:<|"|>1<|"|>}<tool_response|><|tool_response>response:weather{value:<|"|>2<|"|>}<tool_response|><|channel>thought\n<channel|>',
    "vicuna": 'A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite answers to the user\'s questions. USER: A ASSISTANT: B\nAction: weather\nAction Input: {"city": "苏州 🙂"}\nAction: weather\nAction Input: {"city": "Zürich"}<|im_end|>USER: 1USER: 2 ASSISTANT:',
    "llama3": '(bos)<|start_header_id|>user<|end_header_id|>\n\nA<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nB\n[{"name": "weather", "parameters": {"city": "苏州 🙂"}}, {"name": "weather", "parameters": {"city": "Zürich"}}]<|eot_id|><|start_header_id|>ipython<|end_header_id|>\n\n1<|eot_id|><|start_header_id|>ipython<|end_header_id|>\n\n2<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n',
}
"""Question A, text B with two calls, results 1 and 2, with thinking off."""
DEFAULT_SYSTEM = {
    "qwen": "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
    "smollm2": "You are a helpful AI assistant named SmolLM, trained by Hugging Face",
    "chatml_de": "Du bist ein freundlicher und hilfsbereiter KI-Assistent.",
    "granite4": "You are Granite, developed by IBM. You are a helpful AI assistant.",
}


def _text(tokenizer, ids) -> str:
    return tokenizer.decode(ids).replace("<|endoftext|>", "(bos)")


@pytest.mark.parametrize("name", PROMPTS)
def test_prompt(name) -> None:
    tokenizer = tokenizer_for(name)
    messages = [Message(role="system", content="S"), user("A"), says("B"), user("C")]
    assert _text(tokenizer, ChatTemplate(tokenizer).prompt(messages)) == PROMPTS[name]


@pytest.mark.parametrize("name", AFTER_RESULTS)
def test_prompt_after_results(name) -> None:
    tokenizer = tokenizer_for(name)
    results = [Message(role="tool", content=text) for text in "12"]
    template = ChatTemplate(tokenizer, options={"enable_thinking": False})
    assert _text(tokenizer, template.prompt([user("A"), says("B", CALL, OTHER), *results])) == AFTER_RESULTS[name]


@pytest.mark.parametrize("name", DEFAULT_SYSTEM)
def test_default_system(name) -> None:
    tokenizer = tokenizer_for(name)
    template = ChatTemplate(tokenizer)
    assert _text(tokenizer, template.prompt([user("A")])).count(DEFAULT_SYSTEM[name]) == 1
    given = Message(role="system", content="S")
    assert DEFAULT_SYSTEM[name] not in _text(tokenizer, template.prompt([given, user("A")]))


def test_results_of_two_functions_are_named_in_order() -> None:
    other = {"name": "clock", "arguments": {}}
    for name in ("gpt_oss", "gemma4"):
        tokenizer = tokenizer_for(name)
        results = [Message(role="tool", content=text) for text in ("first", "second")]
        text = _text(tokenizer, ChatTemplate(tokenizer).prompt([user("A"), says("", CALL, other), *results]))
        after = text.partition("clock")[2]
        assert after.index("weather") < after.index("first") < after.index("clock") < after.index("second")
