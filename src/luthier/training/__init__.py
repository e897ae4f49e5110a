"""The loop, optimizers, checkpoints, metrics."""
