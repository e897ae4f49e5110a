"""Models and adapters as GGUF files, which llama.cpp, Ollama and LM Studio read."""

from luthier.export.gguf.adapter import adapter_obstacle, write_adapter_gguf
from luthier.export.gguf.architectures import obstacle
from luthier.export.gguf.forms import FORMS, Form, form_of
from luthier.export.gguf.plan import Planned, planned
from luthier.export.gguf.quantize import Quantized, quantize_file
from luthier.export.gguf.write import write_gguf

__all__ = [
    "FORMS",
    "Form",
    "Planned",
    "Quantized",
    "adapter_obstacle",
    "form_of",
    "obstacle",
    "planned",
    "quantize_file",
    "write_adapter_gguf",
    "write_gguf",
]
