"""Verify a merged model folder: its files, its weights, and what plain transformers makes of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from luthier.core.log import printable
from luthier.core.progress import parts
from luthier.export.verify.reference import require_memory
from luthier.export.verify.report import Check, Report, guarded, not_done
from luthier.export.verify.shards import check_files, check_weights
from luthier.export.verify.tokens import encode
from luthier.export.verify.torture import added, torture
from luthier.models.reward_files import says_reward

if TYPE_CHECKING:
    from pathlib import Path

    from luthier.export.source import Source

NUM_PROMPTS = 8
USUAL_LOGIT = 10.0
"""Logits up to this size may differ by LIMITS, larger ones by more in proportion."""
LIMITS = {torch.float32: 1e-4, torch.float16: 0.1, torch.bfloat16: 0.5}
"""Most that a logit may move by what the file's number format rounds."""
_OWN = frozenset(
    {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "quantization_config", "architectures"}
    | {"use_cache", "auto_map"}
)
"""Entries of config.json that say how a model is stored or called."""

LogitsOf = Callable[[list[list[int]]], list[Tensor]]
"""Prompts of ids -> logits behind each id, [N, V] for each prompt."""


@parts(5)
def verify_merged(folder: Path, *, logits_of: LogitsOf | None, source: Source) -> Report:
    """Hold a merged folder against the model with its adapter on; `logits_of` None: that cannot be asked."""
    files, weights = check_files(folder)
    checks = [files]
    optional = ("lm_head.weight",) if source.facts.tie_word_embeddings else ()
    if files.passed:
        checks.append(guarded("weights", "", lambda: check_weights(weights, source.weights, optional=optional)))
    checks.append(guarded("config", "", lambda: check_config(folder, source)))
    checks.append(guarded("generation config", "", lambda: check_generation(folder, source)))
    checks.append(guarded("tokenizer", "", lambda: check_same_tokenizer(folder, source.tokenizer)))
    if files.passed:
        checks.append(guarded("reload", "", lambda: check_reload(folder, source, logits_of)))
    else:
        checks.append(not_done("reload", "the files are damaged"))
    return Report(folder.name, tuple(checks))


def check_config(folder: Path, source: Source) -> Check:
    """Compare config.json with the model's configuration."""
    from transformers import AutoConfig

    limit = "config.json says what the model's own says"
    found, wanted = (each.to_dict() for each in (AutoConfig.from_pretrained(folder), source.facts))
    other = sorted(k for k in (found.keys() | wanted.keys()) - _OWN if found.get(k) != wanted.get(k))
    if other:
        shown = f"{other[0]} is {printable(found.get(other[0]), 40)}, should be {printable(wanted.get(other[0]), 40)}"
        return Check("config", False, shown, limit, {"differ": len(other)})
    return Check("config", True, f"{len(wanted)} entries are equal", limit, {"differ": 0})


def check_generation(folder: Path, source: Source) -> Check:
    """Compare the tokens that end an answer."""
    from luthier.export.source import generation_of

    limit = "the same ids end an answer"
    found, wanted = (_ids(each.eos_token_id) for each in (generation_of(str(folder)), source.generation))
    shown = f"eos_token_id is {found}" + ("" if found == wanted else f", should be {wanted}")
    return Check("generation config", found == wanted, shown, limit)


def _ids(value: Any) -> list[int]:
    return sorted(value if isinstance(value, list) else [value] if value is not None else [])


def check_same_tokenizer(folder: Path, tokenizer: Any) -> Check:
    """Load the tokenizer of a folder and compare it with the one that trained."""
    from transformers import AutoTokenizer

    limit = "equal ids for every text, equal chat template and end token"
    found = AutoTokenizer.from_pretrained(folder)
    texts = [*torture(tokenizer), *added(tokenizer)]
    other = [text for text, a, b in zip(texts, encode(found, texts), encode(tokenizer, texts), strict=True) if a != b]
    numbers = {"texts": len(texts), "differ": len(other)}
    said = [f"{len(other)} of {len(texts)} texts differ, the first is {printable(other[0], 40)}"] if other else []
    said += ["the chat template is another one"] if found.chat_template != tokenizer.chat_template else []
    said += ["the end token is another one"] if found.eos_token_id != tokenizer.eos_token_id else []
    shown = "; ".join(said) or f"{len(texts)} texts are equal, and so is the chat template"
    return Check("tokenizer", not said, shown, limit, numbers)


def check_reload(folder: Path, source: Source, logits_of: LogitsOf | None) -> Check:
    """Load a folder with plain transformers and compare logits with the model that has its adapter on."""
    import transformers
    from transformers.utils.logging import disable_progress_bar

    require_memory(source)
    kind = "AutoModelForSequenceClassification" if says_reward(source.facts) else "AutoModelForCausalLM"
    stored = _stored_dtype(folder)
    allowed = LIMITS.get(stored, 0.5)
    name = str(stored).removeprefix("torch.")
    limit = f"every weight finds its place; logits within {{:.2g}} of the model with its adapter on ({name})"
    disable_progress_bar()
    options: dict[str, Any] = {"dtype": torch.float32, "output_loading_info": True}
    model, info = getattr(transformers, kind).from_pretrained(folder, **options)
    lost = sorted({*info["missing_keys"], *info["unexpected_keys"], *map(str, info["mismatched_keys"])})
    if lost:
        said = f"{len(lost)} weights do not find their place, the first is {lost[0]}"
        return Check("reload", False, said, limit.format(allowed))
    if logits_of is None:
        return Check("reload", True, "every weight finds its place; logits were not compared", limit.format(allowed))
    prompts = prompts_of(source.tokenizer, source.facts.get_text_config().vocab_size)
    with torch.inference_mode():
        found = [model.eval()(input_ids=torch.tensor([ids])).logits[0].float() for ids in prompts]
    del model
    wanted = logits_of(prompts)
    gap = max(_farthest(a, b) for a, b in zip(found, wanted, strict=True))
    # Numbers are rounded in proportion to their size.
    allowed *= max(1.0, max(float(each.abs().max()) for each in wanted) / USUAL_LOGIT)
    shown = f"logits of {len(prompts)} prompts differ by at most {gap:.2g}"
    numbers = {"prompts": len(prompts), "worst_logit": gap}
    return Check("reload", gap <= allowed, shown, limit.format(allowed), numbers)


def _farthest(found: Tensor, wanted: Tensor) -> float:
    gap = (found - wanted.float()).abs().max()
    return float(gap) if bool(torch.isfinite(gap)) else float("inf")


def _stored_dtype(folder: Path) -> torch.dtype:
    """Return the narrowest number format of a folder's weights that have a point."""
    dtypes = {weight.dtype for weight in check_files(folder)[1].values() if weight.dtype.is_floating_point}
    return min(dtypes, key=lambda dtype: (dtype.itemsize, str(dtype)), default=torch.float32)


def prompts_of(tokenizer: Any, vocabulary: int) -> list[list[int]]:
    """Return ids of a few texts, of those that the embedding has rows for."""
    from luthier.export.verify.questions import BEGINNINGS, QUESTIONS

    texts: Sequence[str] = [*QUESTIONS[:4], *BEGINNINGS[:4]]
    found = [[i for i in tokenizer(text)["input_ids"] if i < vocabulary] for text in texts]
    return [ids for ids in found if ids][:NUM_PROMPTS]
