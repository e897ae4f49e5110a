"""POST /v1/embeddings and /v1/models through the official client."""

from __future__ import annotations

from typing import Any

import pytest
from openai import BadRequestError, NotFoundError, OpenAI
from serving import Running


def test_vectors_of_texts_and_ids(client: OpenAI, live: Running, tokenizer: Any) -> None:
    texts = ["tea", "Kö 🙂?", "a longer question about the weather"]
    found = client.embeddings.create(model="tiny", input=texts)
    assert [each.index for each in found.data] == [0, 1, 2]
    engine = live.service.voices["tiny"].served.engine
    for text, each in zip(texts, found.data, strict=True):
        vector = engine.embed([tokenizer(text)["input_ids"]])[0]
        assert each.embedding == pytest.approx((vector / vector.norm()).tolist(), abs=1e-5)
        plain = client.embeddings.create(model="tiny", input=text, encoding_format="float").data[0].embedding
        assert plain == pytest.approx(each.embedding, abs=1e-6), "base64, which the client asks for, is the same"
    assert found.usage.prompt_tokens == sum(len(tokenizer(text)["input_ids"]) for text in texts)
    ids = client.embeddings.create(model="tiny", input=tokenizer("tea")["input_ids"])
    assert ids.data[0].embedding == pytest.approx(found.data[0].embedding, abs=1e-6)


@pytest.mark.parametrize("more", [{"input": ""}, {"input": []}, {"input": [[400]]}, {"input": "x", "dimensions": 8}])
def test_what_is_refused(client: OpenAI, more: dict[str, Any]) -> None:
    with pytest.raises(BadRequestError) as refused:
        client.embeddings.create(**{"model": "tiny", **more})
    assert refused.value.param is not None


def test_more_texts_than_there_are_places(live: Running, client: OpenAI) -> None:
    with pytest.raises(BadRequestError, match="more than the 96"):
        client.embeddings.create(model="tiny", input=["x"] * 97)
    assert live.service.taken == 0


def test_models(client: OpenAI) -> None:
    (card,) = client.models.list().data
    assert card.id == "tiny"
    assert client.models.retrieve("tiny") == card
    with pytest.raises(NotFoundError) as refused:
        client.models.retrieve("gpt-4")
    assert refused.value.code == "model_not_found"
