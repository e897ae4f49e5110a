"""Numerical operations, each with a plain reference and faster twins that are proven against it."""
