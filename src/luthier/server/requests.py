"""What may be asked: the bodies of requests, as OpenAI's API names their fields."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, JsonValue

from luthier.server.fields import Body, Drawn, Lenient, Name, Objects, TokenId, Unoffered

FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


class TextPart(Lenient):
    """A part of a message; there are only texts."""

    type: Literal["text"]
    text: str


Content = str | Annotated[list[TextPart], Field(min_length=1, max_length=1024)]


class SystemMessage(Lenient):
    """What the model is told beforehand."""

    role: Literal["system", "developer"]
    content: Content


class UserMessage(Lenient):
    """What is asked."""

    role: Literal["user"]
    content: Content


class CalledFunction(Lenient):
    """A function and its arguments, as JSON text."""

    name: FunctionName
    arguments: str


class CallOfMessage(Lenient):
    """A call that the model made earlier."""

    id: Name
    type: Literal["function"] = "function"
    function: CalledFunction


class AssistantMessage(Lenient):
    """What the model said earlier."""

    role: Literal["assistant"]
    content: Content | None = None
    refusal: str | None = None
    reasoning_content: str | None = Field(None, description="What it thought before it answered.")
    tool_calls: Annotated[list[CallOfMessage], Field(max_length=128)] | None = None
    audio: Unoffered = None
    function_call: Unoffered = None


class ToolMessage(Lenient):
    """What a tool returned."""

    role: Literal["tool"]
    content: Content
    tool_call_id: Name


Message = Annotated[SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]


class Function(Lenient):
    """A function that the model may call."""

    name: FunctionName
    description: str | None = None
    parameters: Objects | None = Field(None, description="JSON schema of the arguments.")
    strict: bool | None = Field(None, description="Accepted: called functions always get what fits their schema when "
                                "a call is required.")  # fmt: skip


class Tool(Lenient):
    """A tool; there are only functions."""

    type: Literal["function"]
    function: Function


class NameOfFunction(Lenient):
    """The function to call."""

    name: FunctionName


class NamedChoice(Lenient):
    """Call this function."""

    type: Literal["function"]
    function: NameOfFunction


class TextFormat(Lenient):
    """Any text."""

    type: Literal["text"]


class JsonFormat(Lenient):
    """A JSON object."""

    type: Literal["json_object"]


class NamedSchema(Lenient):
    """A JSON schema."""

    name: FunctionName
    description: str | None = None
    schema_: Objects | None = Field(None, alias="schema")
    strict: bool | None = Field(None, description="Accepted: answers always follow the schema.")


class SchemaFormat(Lenient):
    """JSON that follows a schema."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


Format = Annotated[TextFormat | JsonFormat | SchemaFormat, Field(discriminator="type")]


class ChatRequest(Drawn):
    """A conversation to answer."""

    messages: list[Message] = Field(min_length=1, max_length=4096)
    max_tokens: int | None = Field(None, ge=1, le=2**31 - 1, description="Most tokens of one answer.")
    max_completion_tokens: int | None = Field(None, ge=1, le=2**31 - 1, description="The newer name of max_tokens.")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20, description="Needs logprobs: true.")
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedChoice | None = None
    parallel_tool_calls: bool | None = Field(None, description="false: at most one call.")
    response_format: Format | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = Field(
        None, description="For templates that know it."
    )
    chat_template_kwargs: Annotated[dict[str, JsonValue], Field(max_length=16)] | None = Field(
        None, description="Variables of the chat template; only those that it declares."
    )
    modalities: Annotated[list[Literal["text"]], Field(min_length=1, max_length=1)] | None = None
    metadata: Objects | None = Field(None, description="Accepted; nothing is kept.")
    store: Literal[False] | None = Field(None, description="Nothing is kept.")
    service_tier: Literal["auto", "default"] | None = None
    safety_identifier: Name | None = None
    prompt_cache_key: Name | None = Field(None, description="Accepted: equal beginnings are always shared.")
    audio: Unoffered = None
    functions: Unoffered = None
    function_call: Unoffered = None
    prediction: Unoffered = None
    web_search_options: Unoffered = None


Ids = Annotated[list[TokenId], Field(min_length=1)]
Texts = Annotated[list[str], Field(min_length=1, max_length=256)]


class CompletionRequest(Drawn):
    """Text, or token ids, to go on with."""

    prompt: str | Texts | Ids | Annotated[list[Ids], Field(min_length=1, max_length=256)]
    max_tokens: int | None = Field(None, ge=0, le=2**31 - 1, description="Most tokens of one answer; 16 if left out.")
    echo: bool | None = Field(None, description="Begin the answer with the prompt.")
    logprobs: int | None = Field(None, ge=0, le=20, description="Most probable tokens reported beside each one.")
    best_of: Literal[1] | None = None
    suffix: Unoffered = None


class EmbeddingRequest(Body):
    """Texts, or token ids, to make vectors of."""

    model: str = Field(min_length=1, max_length=256, description="One of /v1/models.")
    input: str | Texts | Ids | Annotated[list[Ids], Field(min_length=1, max_length=256)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Unoffered = None
    user: Name | None = None
