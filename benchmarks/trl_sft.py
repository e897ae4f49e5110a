"""The peer side of benchmarks/sft.py: TRL's SFTTrainer, same rows, same order, own environment."""

from __future__ import annotations

import peer
from trl import SFTConfig, SFTTrainer  # pyright: ignore[reportMissingImports]


def main() -> None:
    options = peer.arguments()
    common = peer.common_settings(options)
    peer.train(SFTTrainer, SFTConfig(**common, learning_rate=1e-4, completion_only_loss=True, packing=False), options)


if __name__ == "__main__":
    main()
