"""What a GGUF file says of a model, from its configuration."""

from __future__ import annotations

from typing import Any

from luthier.core.log import say_once
from luthier.export.gguf.architectures import ARCHITECTURES
from luthier.export.gguf.cuts import head_size_of, heads_of, key_heads_of
from luthier.export.gguf.rope import Metadata, rope_metadata


def model_metadata(facts: Any) -> Metadata:
    """Return every key below the architecture's name, each from the configuration and none left to a default."""
    architecture = ARCHITECTURES[facts.model_type]
    said: Metadata = {
        "vocab_size": facts.vocab_size,
        "context_length": context_length(facts),
        "embedding_length": facts.hidden_size,
        "block_count": facts.num_hidden_layers,
        "feed_forward_length": facts.intermediate_size,
        "attention.head_count": heads_of(facts),
        "attention.head_count_kv": key_heads_of(facts),
        "attention.key_length": head_size_of(facts),
        "attention.value_length": head_size_of(facts),
        architecture.epsilon: float(getattr(facts, "rms_norm_eps", None) or facts.norm_epsilon),
        **{f"rope.{key}": value for key, value in rope_metadata(facts).items()},
        **architecture.more(facts),
    }
    return {f"{architecture.name}.{key}": value for key, value in said.items()}


def context_length(facts: Any) -> int:
    """Return the context in which llama.cpp computes what the model was trained to."""
    longest, window = facts.max_position_embeddings, _window(facts)
    if window is None or window >= longest or ARCHITECTURES[facts.model_type].windows:
        return longest
    say_once(
        f"llama.cpp has no sliding window for {facts.model_type}: the GGUF file names a context of {window}, "
        f"in which both see the same, and not {longest}"
    )
    return window


def _window(facts: Any) -> int | None:
    if not getattr(facts, "use_sliding_window", True):
        return None
    return getattr(facts, "sliding_window", None)
