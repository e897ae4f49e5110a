"""The peer side of benchmarks/grpo.py: TRL's GRPOTrainer with its own generation, own environment."""

from __future__ import annotations

from typing import Any

import peer
from trl import GRPOConfig, GRPOTrainer  # pyright: ignore[reportMissingImports]


def distinct_letters(completions: list[Any], **_: Any) -> list[float]:
    """Grade like the other side: the share of letters that differ."""
    texts = [each[0]["content"] for each in completions]
    return [len(set(text)) / max(1, len(text)) for text in texts]


def main() -> None:
    options = peer.arguments()
    common = peer.common_settings(options)
    del common["max_length"]
    config = GRPOConfig(
        **common,
        learning_rate=1e-5,
        beta=0.0,
        loss_type="grpo",
        num_generations=8,
        max_completion_length=64,
        temperature=1.0,
    )
    peer.train(GRPOTrainer, config, options, reward_funcs=distinct_letters)


if __name__ == "__main__":
    main()
