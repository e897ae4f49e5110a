"""POST /v1/chat/completions through the official client."""

from __future__ import annotations

from openai import OpenAI

ASKED = [{"role": "user", "content": "Kö 🙂?"}]


def test_an_answer_and_its_stream_are_the_same(client: OpenAI) -> None:
    whole = client.chat.completions.create(model="tiny", messages=ASKED, max_tokens=10)
    stream = client.chat.completions.create(model="tiny", messages=ASKED, max_tokens=10, stream=True)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text == whole.choices[0].message.content
