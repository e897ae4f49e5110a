"""The peer side of benchmarks/dpo.py: TRL's DPOTrainer with its adapter off as the reference, own environment."""

from __future__ import annotations

import peer
from trl import DPOConfig, DPOTrainer  # pyright: ignore[reportMissingImports]


def main() -> None:
    options = peer.arguments()
    peer.train(DPOTrainer, DPOConfig(**peer.common_settings(options), learning_rate=5e-6, beta=0.1), options)


if __name__ == "__main__":
    main()
