"""A model under evaluation, with a policy that scores and an engine that answers, each made when it is needed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from luthier.core.anatomy import plain_model
from luthier.core.protocols import Engine
from luthier.data.template import ChatTemplate
from luthier.models.policy import Policy
from luthier.models.virtual import virtual_tokens


@dataclass
class Subject:
    """A model by the name that results show."""

    name: str
    model: Any
    template: ChatTemplate
    make_engine: Callable[[], Engine]
    memo: dict[str, Any] = field(default_factory=dict[str, Any])
    """What several kinds of evaluation need and one of them has computed."""

    @property
    def tokenizer(self) -> Any:
        """Return the tokenizer of the template."""
        return self.template.tokenizer

    @cached_property
    def policy(self) -> Policy:
        """Return what scores packed rows with this model."""
        return Policy(self.model).eval()

    @cached_property
    def engine(self) -> Engine:
        """Return what answers prompts with this model."""
        return self.make_engine()

    @property
    def max_tokens(self) -> int:
        """Return the most tokens of a sequence, virtual ones taken off."""
        config = plain_model(self.model).config.get_text_config()
        virtual = virtual_tokens(self.model)
        return (getattr(config, "max_position_embeddings", None) or 1 << 30) - (virtual.num_tokens if virtual else 0)

    @property
    def writing(self) -> str:
        """Return what names the way in which rows become tokens here: equal for models that read the same tokens."""
        t = self.template
        settings = (t.tokenizer.chat_template, t.train_on_prompt, t.mask_history, t.default_system, t.options)
        digest = hashlib.sha256(json.dumps(settings, default=str, sort_keys=True).encode())
        digest.update(t.tokenizer.backend_tokenizer.to_str().encode())
        return digest.hexdigest()[:16]

    def release(self) -> None:
        """Let go of the model and of what was made of it."""
        self.__dict__.pop("policy", None)
        self.__dict__.pop("engine", None)
        self.memo.clear()
        self.model = None
