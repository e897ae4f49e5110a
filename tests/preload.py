"""Imported once by the server that test jobs are forked from; runs no tensor operation, so forking is safe."""

import luthier.cli
import luthier.export.merge
import luthier.workflows.chat
import luthier.workflows.estimate
import luthier.workflows.evaluate
import luthier.workflows.train
import accelerate
import peft
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.models.llama import modeling_llama
from luthier.core.registry import FAMILIES, FORMATS, OBJECTIVES, TUNINGS

for shelf in (FAMILIES, FORMATS, OBJECTIVES, TUNINGS):
    shelf.names()
