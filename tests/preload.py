"""Imported once by the server that test jobs are forked from; runs no tensor operation, so forking is safe."""

from importlib import import_module

from luthier.core.registry import FAMILIES, FORMATS, OBJECTIVES, TUNINGS

HEAVY = [
    "accelerate",
    "accelerate.optimizer",
    "peft",
    "torch",
    "transformers",
    "transformers.models.llama.modeling_llama",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "luthier.cli",
    "luthier.workflows.export",
    "luthier.workflows.chat",
    "luthier.workflows.estimate",
    "luthier.workflows.evaluate",
    "luthier.workflows.train",
]

for name in HEAVY:
    import_module(name)
for shelf in (FAMILIES, FORMATS, OBJECTIVES, TUNINGS):
    shelf.names()
