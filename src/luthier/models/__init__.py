"""Assemble the network: load, patch, score."""
