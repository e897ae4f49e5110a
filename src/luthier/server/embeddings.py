"""POST /v1/embeddings: the mean over a text's tokens of what the last layer makes of them, of length one."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

from luthier.server.alone import compute
from luthier.server.fields import ignored_header
from luthier.server.prompts import read_prompts
from luthier.server.replies import Embedding, EmbeddingReply, EmbeddingUsage

if TYPE_CHECKING:
    from starlette.requests import Request
    from torch import Tensor

    from luthier.server.requests import EmbeddingRequest
    from luthier.server.service import Service


async def answer_embedding(service: Service, body: EmbeddingRequest, request: Request) -> Any:
    """Return the vectors of texts."""
    voice = service.voice(body.model)
    prompts = await service.read(read_prompts, body.input, voice, "input")

    def work(part: Any) -> list[Tensor]:
        vectors_ND = voice.served.engine.embed(part, adapter=voice.adapter)
        return list(vectors_ND / vectors_ND.norm(dim=-1, keepdim=True).clamp(min=1e-12))

    vectors = await compute(service, request, [prompt.ids for prompt in prompts], work, "input")
    packed = body.encoding_format == "base64"
    data = [Embedding(index=i, embedding=_packed(each) if packed else each.tolist()) for i, each in enumerate(vectors)]
    taken = sum(len(prompt.ids) for prompt in prompts)
    usage = EmbeddingUsage(prompt_tokens=taken, total_tokens=taken)
    return EmbeddingReply(model=body.model, data=data, usage=usage), ignored_header(body)


def _packed(vector_D: Tensor) -> str:
    return base64.b64encode(vector_D.numpy().astype("<f4").tobytes()).decode()
