"""The classes that scripts import: every one loads and tunes through the same calls."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from luthier.core.errors import ModelError
from luthier.facade import adapters, loading, modes
from luthier.facade.parameters import PROJECTIONS, AdapterArguments, LoadArguments, bind, signature_of
from luthier.kernels.cpu import has_fast_bfloat16

_KINDS = {
    "FastVisionModel": "models that see pictures",
    "FastSentenceTransformer": "sentence embeddings",
    "UnslothVisionDataCollator": "rows with pictures",
}
"""Class that scripts import -> what it is for."""


class FastLanguageModel:
    """Loads a language model and puts an adapter on it."""

    _targets: ClassVar[Any] = PROJECTIONS

    @staticmethod
    def from_pretrained(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Return (model, tokenizer). Raises TypeError for an unknown parameter, a LuthierError for what cannot be."""
        return loading.load(bind(LoadArguments, "from_pretrained", args, kwargs))

    @classmethod
    def get_peft_model(cls, model: Any, *args: Any, **kwargs: Any) -> Any:
        """Return `model` with an adapter that learns; one that has it already, or learns as a whole, as it is.

        Raises TypeError for an unknown parameter and for a model with another adapter, and a LuthierError for what
        cannot be had.
        """
        usual = {} if args[1:] else {"target_modules": cls._targets}
        return adapters.add(model, bind(AdapterArguments, "get_peft_model", args, {**usual, **kwargs}))

    for_inference = staticmethod(modes.for_inference)
    for_training = staticmethod(modes.for_training)


class FastModel(FastLanguageModel):
    """The same, with an adapter on every linear layer of the decoder where none are named."""

    _targets: ClassVar[Any] = None


FastTextModel = FastModel
FastLlamaModel = FastMistralModel = FastQwen2Model = FastQwen3Model = FastLanguageModel
DEVICE_TYPE = "cuda" if torch.cuda.is_available() else "cpu"


class _Refused:
    """A class of models that luthier does not train."""

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Raise ModelError with the reason."""
        raise ModelError(
            f"{cls.__name__} is for {_KINDS[cls.__name__]}, and luthier trains text models only; FastLanguageModel "
            "takes those",
            code="model_kind",
        )

    get_peft_model = from_pretrained


class FastVisionModel(_Refused):
    """Refused: luthier trains text models only."""


class FastSentenceTransformer(_Refused):
    """Refused: luthier trains text models only."""


class UnslothVisionDataCollator(_Refused):
    """Refused: luthier trains text models only."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Raise ModelError with the reason."""
        self.from_pretrained()


def is_bfloat16_supported() -> bool:
    """Tell whether bfloat16 is the faster number format here: on the GPU if there is one, else on the processor."""
    return torch.cuda.is_bf16_supported() if torch.cuda.is_available() else has_fast_bfloat16()


is_bf16_supported = is_bfloat16_supported


def _show_signatures() -> None:
    loads: Any = FastLanguageModel.from_pretrained
    tunes: Any = FastLanguageModel.__dict__["get_peft_model"].__func__
    loads.__signature__, tunes.__signature__ = (
        signature_of(LoadArguments),
        signature_of(AdapterArguments, "cls", "model"),
    )


_show_signatures()
