"""Turn a run into files that other programs read."""
