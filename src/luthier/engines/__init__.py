"""Prompts -> completions, one file an engine."""
