"""What is answered, field by field as OpenAI's types have them; what there is not is null, never missing."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

FinishReason = Literal["stop", "length", "tool_calls"]


class Usage(BaseModel):
    """Tokens of a request; those of its template are among them."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TopLogprob(BaseModel):
    """A token that might have stood here."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    """A token of an answer and the most probable ones at its place."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """Tokens of an answer with their log-probabilities."""

    content: list[TokenLogprob] | None
    refusal: None = None


class FunctionCall(BaseModel):
    """A function and its arguments, as JSON text."""

    name: str
    arguments: str


class ToolCall(BaseModel):
    """A call of a function."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class ChatMessage(BaseModel):
    """An answer."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    reasoning_content: str | None
    tool_calls: list[ToolCall] | None
    function_call: None = None
    audio: None = None
    annotations: list[str] | None = None


class ChatChoice(BaseModel):
    """One of n answers."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class ChatReply(BaseModel):
    """Answers to a conversation."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    system_fingerprint: str | None
    service_tier: None = None


class TextLogprobs(BaseModel):
    """Tokens of a text with their log-probabilities; that of a text's first token is null."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class TextChoice(BaseModel):
    """One of n answers to one of the prompts."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Literal["stop", "length"]


class TextReply(BaseModel):
    """Texts that go on with prompts."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage
    system_fingerprint: str | None


class EmbeddingUsage(BaseModel):
    """Tokens of the texts."""

    prompt_tokens: int
    total_tokens: int


class Embedding(BaseModel):
    """The vector of one text, as numbers or as base64 of little-endian float32."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingReply(BaseModel):
    """Vectors of texts."""

    object: Literal["list"] = "list"
    model: str
    data: list[Embedding]
    usage: EmbeddingUsage


class ModelCard(BaseModel):
    """A model that answers here."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "luthier"
    parent: str | None
    """The model that an adapter stands on."""
    max_model_len: int | None
    """Most tokens of prompt and answer; null while it is loaded."""


class ModelList(BaseModel):
    """The models that answer here."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class Health(BaseModel):
    """How the server is."""

    status: str
    detail: str | None = None
