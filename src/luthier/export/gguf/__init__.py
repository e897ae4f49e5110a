"""Models and adapters as GGUF files, which llama.cpp, Ollama and LM Studio read."""

from luthier.export.gguf.architectures import obstacle
from luthier.export.gguf.forms import FORMS, form_of
from luthier.export.gguf.plan import Planned, planned
from luthier.export.gguf.write import write_gguf

__all__ = ["FORMS", "Planned", "form_of", "obstacle", "planned", "write_gguf"]
