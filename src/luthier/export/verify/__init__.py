"""Prove that a written model is the model that was trained."""
