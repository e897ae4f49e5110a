# ruff: noqa: RUF001
"""How families describe tools and call them, as facts. The words are those that the models were trained on."""

from dataclasses import replace

from luthier.data.chat_format import ToolFormat

DEFAULT = ToolFormat(
    name="default",
    intro="These tools may be called:\n",
    each="{name}: {description}\nArguments: {parameters}",
    outro="\nTo call one, write its name and its arguments as JSON, and nothing after them:\n"
    "Action: tool name\nAction Input: arguments",
    call="Action: {name}\nAction Input: {arguments}",
)
QWEN = ToolFormat(
    name="qwen",
    intro="# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n",
    outro="\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
    "<tool_call></tool_call> XML tags:\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>',
    call='<tool_call>\n{"name": "{name}", "arguments": {arguments}}\n</tool_call>',
)
LING = replace(QWEN, name="ling")
QWEN3_5 = ToolFormat(
    name="qwen3_5",
    place="front",
    intro="# Tools\n\nYou have access to the following functions:\n\n<tools>\n",
    outro="\n</tools>\n\nIf you choose to call a function ONLY reply in the following format with NO suffix:\n\n"
    "<tool_call>\n<function=example_function_name>\n<parameter=example_parameter_1>\nvalue_1\n</parameter>\n"
    "<parameter=example_parameter_2>\nThis is the value for the second parameter\nthat can span\nmultiple lines\n"
    "</parameter>\n</function>\n</tool_call>\n\n<IMPORTANT>\nReminder:\n"
    "- Function calls MUST follow the specified format: an inner <function=...></function> block must be nested within "
    "<tool_call></tool_call> XML tags\n"
    "- Required parameters MUST be specified\n"
    "- You may provide optional reasoning for your function call in natural language BEFORE the function call, but NOT "
    "after\n"
    "- If there is no function call available, answer the question like normal with your current knowledge and do not "
    "tell the user about function calls\n</IMPORTANT>",
    call="<tool_call>\n<function={name}>\n{arguments}</function>\n</tool_call>",
    argument="<parameter={key}>\n{value}\n</parameter>\n",
    lead="\n\n",
)
LLAMA3 = ToolFormat(
    name="llama3",
    place="front",
    intro="You have access to the following functions. To call a function, please respond with JSON for a function "
    'call.Respond in the format {"name": function name, "parameters": dictionary of argument name and its value}.'
    "Do not use variables.\n\n",
    each="{tool_indented}",
    between="\n\n",
    call='{"name": "{name}", "parameters": {arguments}}',
    join=", ",
    open_many="[",
    close_many="]",
)
MISTRAL = ToolFormat(
    name="mistral",
    place="query",
    intro="[AVAILABLE_TOOLS] [",
    between=", ",
    outro="][/AVAILABLE_TOOLS]",
    open="[TOOL_CALLS] [",
    call='{"name": "{name}", "arguments": {arguments}}',
    join=", ",
    close="]",
    lead="",
)
TEKKEN = replace(MISTRAL, intro="[AVAILABLE_TOOLS][", open="[TOOL_CALLS][")
GLM4 = ToolFormat(
    name="glm4",
    intro="# 可用工具\n\n",
    each="## {name}\n\n{function_indented}\n在调用上述函数时，请使用 Json 格式表示调用的参数。",
    between="\n\n",
    call="{name}\n{arguments}",
    join="<|assistant|>",
    lead="<|assistant|>",
)
GLM4_MOE = ToolFormat(
    name="glm4_moe",
    place="turn",
    intro="# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n",
    outro="\n</tools>\n\nFor each function call, output the function name and arguments within the following XML "
    "format:\n<tool_call>{function-name}\n<arg_key>{arg-key-1}</arg_key>\n<arg_value>{arg-value-1}</arg_value>\n"
    "<arg_key>{arg-key-2}</arg_key>\n<arg_value>{arg-value-2}</arg_value>\n...\n</tool_call>",
    call="\n<tool_call>{name}\n{arguments}</tool_call>",
    argument="<arg_key>{key}</arg_key>\n<arg_value>{value}</arg_value>\n",
    join="",
    lead="",
)
DEEPSEEK = ToolFormat(
    name="deepseek",
    intro="## Tools\n\n### Function\n\nYou have the following functions available:\n",
    each="\n- `{name}`:\n```json\n{function}\n```",
    open="<｜tool▁calls▁begin｜>",
    call="<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n{arguments}\n```<｜tool▁call▁end｜>",
    close="<｜tool▁calls▁end｜>",
    lead="",
)
SEED_OSS = ToolFormat(
    name="seed_oss",
    intro="Tool List:\nYou are authorized to use the following tools (described in JSON Schema format). Before "
    "performing any task, you must decide how to call them based on the descriptions and parameters of these tools.\n[",
    between=", ",
    outro="]\n工具调用请遵循如下格式:\n<seed:tool_call>\n<function=example_function_name>\n"
    "<parameter=example_parameter_1>value_1</parameter>\n<parameter=example_parameter_2>This is the value for the "
    "second parameter\nthat can span\nmultiple lines</parameter>\n</function>\n</seed:tool_call>\n",
    call="<seed:tool_call>\n<function={name}>\n{arguments}</function>\n</seed:tool_call>",
    argument="<parameter={key}>{value}</parameter>\n",
)
MINIMAX1 = ToolFormat(
    name="minimax1",
    intro="You are provided with these tools:\n<tools>\n",
    outro="\n</tools>\n\nIf you need to call tools, please respond with <tool_calls></tool_calls> XML tags, and "
    "provide tool-name and json-object of arguments, following the format below:\n<tool_calls>\n"
    '{"name": <tool-name-1>, "arguments": <args-json-object-1>}\n...\n</tool_calls>',
    open="<tool_calls>\n",
    call='{"name": "{name}", "arguments": {arguments}}',
    close="\n</tool_calls>",
)
MINIMAX2 = ToolFormat(
    name="minimax2",
    intro="# Tools\nYou may call one or more tools to assist with the user query.\n"
    "Here are the tools available in JSONSchema format:\n\n<tools>\n",
    each="<tool>{function}</tool>",
    outro="\n</tools>\n\nWhen making tool calls, use XML format to invoke tools and pass parameters:\n\n"
    '<minimax:tool_call>\n<invoke name="tool-name-1">\n<parameter name="param-key-1">param-value-1</parameter>\n'
    '<parameter name="param-key-2">param-value-2</parameter>\n...\n</invoke>\n</minimax:tool_call>',
    open="<minimax:tool_call>\n",
    call='<invoke name="{name}">\n{arguments}</invoke>',
    argument='<parameter name="{key}">{value}</parameter>\n',
    close="\n</minimax:tool_call>",
)
LFM2 = ToolFormat(
    name="lfm2",
    gap="\n",
    intro="List of tools: <|tool_list_start|>[",
    between=", ",
    outro="]<|tool_list_end|>",
    open="<|tool_call_start|>[",
    call="{name}({arguments})",
    argument="{key}={json}",
    argument_join=", ",
    join=", ",
    close="]<|tool_call_end|>",
    lead="",
)
HARMONY = ToolFormat(name="harmony", call="")
GEMMA4 = ToolFormat(name="gemma4", call="")
NAMED: dict[str, ToolFormat] = {
    form.name: form
    for form in (
        DEFAULT,
        QWEN,
        LING,
        QWEN3_5,
        LLAMA3,
        MISTRAL,
        GLM4,
        GLM4_MOE,
        DEEPSEEK,
        SEED_OSS,
        MINIMAX1,
        MINIMAX2,
        LFM2,
    )
}
"""Those that any template can be given."""
