"""Hold the values of a GGUF file against config.json, the tokenizer and the generation config."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import isclose, prod
from typing import TYPE_CHECKING, Any

from luthier.core.log import printable
from luthier.export.verify.report import Check

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from luthier.export.source import Source
    from luthier.export.verify.container import Container

ARCHITECTURES: dict[str, tuple[str, ...]] = {
    "llama": ("llama",), "mistral": ("llama",), "mixtral": ("llama",), "ministral": ("llama", "mistral3"),
    "ministral3": ("mistral3",), "internlm3": ("llama",), "smollm3": ("smollm3",), "qwen2": ("qwen2",),
    "qwen2_moe": ("qwen2moe",), "qwen3": ("qwen3",), "qwen3_moe": ("qwen3moe",), "gemma": ("gemma",),
    "gemma2": ("gemma2",), "gemma3_text": ("gemma3",), "gemma3": ("gemma3",), "phi": ("phi2",), "phi3": ("phi3",),
    "phimoe": ("phimoe",), "glm": ("chatglm", "glm4"), "glm4": ("glm4",), "glm4_moe": ("glm4moe",),
    "deepseek_v2": ("deepseek2",), "deepseek_v3": ("deepseek2",), "minicpm3": ("minicpm3",), "falcon": ("falcon",),
    "gpt2": ("gpt2",), "gpt_neox": ("gptneox",), "granite": ("granite",), "granitemoe": ("granitemoe",),
    "olmo2": ("olmo2",), "olmo3": ("olmo2",), "starcoder2": ("starcoder2",), "cohere": ("command-r",),
    "cohere2": ("cohere2",), "gpt_oss": ("gpt-oss",), "llama4_text": ("llama4",),
}  # fmt: skip
"""model_type of transformers -> names that llama.cpp has for it."""


@dataclass(frozen=True, slots=True)
class Expected:
    """A key of the file and what it must say."""

    key: str
    value: Any
    absent: Any = None
    """What llama.cpp takes where the key is missing; None: the key must be there."""
    also: Any = None
    """Another value that is right."""


def expected_sizes(facts: Any) -> Iterator[Expected]:
    """Yield what config.json says about the network."""
    heads, width = _first(facts, "num_attention_heads", "n_head"), _first(facts, "hidden_size", "n_embd")
    # Where llama.cpp has no sliding window, the file may end where both still see the same.
    window = getattr(facts, "sliding_window", None)
    yield Expected("{arch}.context_length", _first(facts, "max_position_embeddings", "n_positions"), also=window)
    yield Expected("{arch}.embedding_length", width)
    yield Expected("{arch}.block_count", _first(facts, "num_hidden_layers", "n_layer"))
    yield Expected("{arch}.attention.head_count", heads)
    yield Expected("{arch}.vocab_size", facts.vocab_size, absent=facts.vocab_size)
    yield from _if_there(facts, _BY_NAME)
    if not hasattr(facts, "kv_lora_rank"):  # latent attention counts its heads in another way
        kv_heads = _first(facts, "num_key_value_heads", "num_kv_heads", default=heads)
        if facts.model_type == "falcon" and not facts.new_decoder_architecture:
            kv_heads = 1 if facts.multi_query else heads
        yield Expected("{arch}.attention.head_count_kv", kv_heads, absent=heads)
        size = getattr(facts, "head_dim", None) or width // heads
        for part in ("key", "value"):
            yield Expected(f"{{arch}}.attention.{part}_length", size, absent=width // heads)
    yield from _expected_rope(facts, heads, width)


_BY_NAME: dict[str, tuple[str, ...]] = {
    "{arch}.attention.layer_norm_rms_epsilon": ("rms_norm_eps",),
    "{arch}.attention.layer_norm_epsilon": ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"),
    "{arch}.expert_count": ("num_local_experts", "n_routed_experts", "num_experts"),
    "{arch}.expert_used_count": ("num_experts_per_tok", "experts_per_token"),
    "{arch}.attention.q_lora_rank": ("q_lora_rank",),
    "{arch}.attention.kv_lora_rank": ("kv_lora_rank",),
    "{arch}.final_logit_softcapping": ("final_logit_softcapping",),
    "{arch}.attn_logit_softcapping": ("attn_logit_softcapping",),
}
"""Key -> names in config.json. Where config.json has one of them, the file must have the key."""
_DIALECTS: dict[str, dict[str, tuple[str, ...]]] = {
    "granite": {"{arch}.embedding_scale": ("embedding_multiplier",), "{arch}.residual_scale": ("residual_multiplier",),
                "{arch}.attention.scale": ("attention_multiplier",), "{arch}.logit_scale": ("logits_scaling",)},
    "cohere": {"{arch}.logit_scale": ("logit_scale",)},
}  # fmt: skip


def _if_there(facts: Any, table: dict[str, tuple[str, ...]]) -> Iterator[Expected]:
    more = next((keys for start, keys in _DIALECTS.items() if facts.model_type.startswith(start)), {})
    for key, names in {**table, **more}.items():
        found = _first(facts, *names)
        if found is not None:
            yield Expected(key, found)
    # A file that is made without experts or a window may leave the key out.
    window = getattr(facts, "sliding_window", None)
    if window and getattr(facts, "use_sliding_window", True) and "sliding_attention" in (facts.layer_types or ()):
        yield Expected("{arch}.attention.sliding_window", window)


def _expected_rope(facts: Any, heads: int, width: int) -> Iterator[Expected]:
    said = getattr(facts, "rope_parameters", None) or {}
    said = said.get("full_attention") or said  # several kinds of layers: the file holds the long-range one
    if not said or getattr(facts, "alibi", False):
        return
    if said.get("rope_theta"):
        yield Expected("{arch}.rope.freq_base", said["rope_theta"], absent=10000.0)
    size = getattr(facts, "qk_rope_head_dim", None) or getattr(facts, "head_dim", None) or width // heads
    share = said.get("partial_rotary_factor") or 1.0
    turned = size if hasattr(facts, "qk_rope_head_dim") else int(size * share)
    yield Expected("{arch}.rope.dimension_count", turned, absent=size)
    kind = said.get("rope_type", "default")
    yield from _SCALINGS.get(kind, lambda said: iter(()))(said)


def _linear(said: dict[str, Any]) -> Iterator[Expected]:
    yield Expected("{arch}.rope.scaling.type", "linear")
    yield Expected("{arch}.rope.scaling.factor", said["factor"])


def _yarn(said: dict[str, Any]) -> Iterator[Expected]:
    yield Expected("{arch}.rope.scaling.type", "yarn")
    yield Expected("{arch}.rope.scaling.factor", said["factor"])
    yield Expected("{arch}.rope.scaling.original_context_length", said["original_max_position_embeddings"])


def _long(said: dict[str, Any]) -> Iterator[Expected]:
    yield Expected("{arch}.rope.scaling.original_context_length", said["original_max_position_embeddings"])


def _plain(said: dict[str, Any]) -> Iterator[Expected]:
    yield Expected("{arch}.rope.scaling.type", "none", absent="none")


_SCALINGS: dict[str, Callable[[dict[str, Any]], Iterator[Expected]]] = {
    "default": _plain, "linear": _linear, "yarn": _yarn, "longrope": _long,
}  # fmt: skip
_SCALING_TENSORS = {
    "llama3": ("rope_freqs.weight",),
    "longrope": ("rope_factors_long.weight", "rope_factors_short.weight"),
}


def expected_tokens(tokenizer: Any) -> Iterator[Expected]:
    """Yield what the tokenizer says about itself."""
    for word in ("bos", "eos", "unk"):
        number = getattr(tokenizer, f"{word}_token_id")
        if number is not None:
            yield Expected(f"tokenizer.ggml.{_WORDS[word]}_token_id", number)
    begins, ends = habits(tokenizer)
    yield Expected("tokenizer.ggml.add_bos_token", begins)
    yield Expected("tokenizer.ggml.add_eos_token", ends, absent=False)
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if template is not None:
        yield Expected("tokenizer.chat_template", template)


_WORDS = {"bos": "bos", "eos": "eos", "unk": "unknown"}


def habits(tokenizer: Any) -> tuple[bool, bool]:
    """Return whether the tokenizer puts a begin and an end token around plain text."""
    ids = tokenizer("a")["input_ids"]
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    return bool(begin is not None and ids[:1] == [begin]), bool(end is not None and len(ids) > 1 and ids[-1] == end)


def _first(facts: Any, *names: str, default: Any = None) -> Any:
    return next((v for v in (getattr(facts, n, None) for n in names) if v is not None), default)


def _same(found: Any, wanted: Any) -> bool:
    if isinstance(found, list) and not isinstance(wanted, list):  # one number for each layer
        return bool(found) and all(_same(each, wanted) for each in found)
    if isinstance(wanted, bool) or isinstance(found, bool):
        return found == wanted
    if isinstance(wanted, (int, float)) and isinstance(found, (int, float)):
        return isclose(found, wanted, rel_tol=1e-6)
    return found == wanted


def _differences(container: Container, wanted: list[Expected]) -> list[str]:
    said: list[str] = []
    for each in wanted:
        found = container.get(each.key)
        name = each.key.replace("{arch}.", "")
        if found is None:
            if each.absent is None or not _same(each.absent, each.value):
                said.append(f"{name} is missing, should be {printable(each.value, 40)}")
        elif not _same(found, each.value) and not (each.also is not None and _same(found, each.also)):
            said.append(f"{name} is {printable(found, 40)}, should be {printable(each.value, 40)}")
    return said


# ---- checks


def check_metadata(container: Container, source: Source) -> Check:
    """Compare every value with what the model's own files say."""
    limit = "as config.json, the tokenizer and the generation config say; nothing defaulted"
    facts = source.facts.get_text_config()
    wanted = [*expected_sizes(facts), *expected_tokens(source.tokenizer)]
    said = _differences(container, wanted)
    known = ARCHITECTURES.get(facts.model_type)
    if known is None or container.architecture not in known:
        said.insert(0, f"architecture is {container.architecture!r} for a model of type {facts.model_type!r}")
    kind = (getattr(facts, "rope_parameters", None) or {}).get("rope_type", "default")
    said += [f"{name} is missing, rope_type is {kind}" for name in _SCALING_TENSORS.get(kind, ())
             if name not in container.tensors]  # fmt: skip
    said += _wrong_tokens(container, source.tokenizer)
    said += _wrong_stops(container, source)
    said += self_contradictions(container)
    return _answer(said, len(wanted), limit)


def check_metadata_alone(container: Container) -> Check:
    """See whether the values agree with each other and with the tensors."""
    limit = "values that the network needs are there and agree with the tensors"
    needed = ("{arch}.context_length", "{arch}.embedding_length", "{arch}.block_count", "{arch}.attention.head_count",
              "tokenizer.ggml.model", "tokenizer.ggml.tokens")  # fmt: skip
    said = [f"{key.replace('{arch}', container.architecture)} is missing" for key in needed if not container.get(key)]
    if not container.architecture:
        said.insert(0, "general.architecture is missing")
    said += self_contradictions(container)
    return _answer(said, len(needed), limit)


def _answer(said: list[str], count: int, limit: str) -> Check:
    numbers = {"compared": count, "wrong": len(said)}
    if said:
        more = f", and {len(said) - 3} more" if said[3:] else ""
        return Check("metadata", False, "; ".join(said[:3]) + more, limit, numbers)
    return Check("metadata", True, f"{count} values are right", limit, numbers)


def _wrong_tokens(container: Container, tokenizer: Any) -> list[str]:
    """Return in which way the list of tokens differs from the tokenizer's."""
    there, size = container.get("tokenizer.ggml.tokens") or [], len(tokenizer)
    size = min(size, len(there))  # a token without a row in the embedding does not exist; rows are compared elsewhere
    wanted = tokenizer.convert_ids_to_tokens(list(range(size)))
    # What users added is written as it is, in which blanks are blanks.
    other = [i for i, t in enumerate(wanted) if t is not None and there[i] not in (t, t.replace("▁", " "))]
    if not other:
        return []
    first = other[0]
    return [f"{len(other)} tokens differ, the first is {first}: {there[first]!r}, should be {wanted[first]!r}"]


def stop_ids(source: Source) -> list[int]:
    """Return every id that ends an answer by the generation config and the tokenizer."""
    own = source.generation.eos_token_id
    ids = own if isinstance(own, list) else [own]
    return sorted({int(i) for i in (*ids, source.tokenizer.eos_token_id) if i is not None})


def named_stops(container: Container) -> set[int]:
    """Return the ids that the file itself says end an answer."""
    keys = ("eos_token_id", "eot_token_id", "eom_token_id")
    single = {container.get(f"tokenizer.ggml.{key}") for key in keys} - {None}
    return single | set(container.get("tokenizer.ggml.eos_token_ids") or ())


def _wrong_stops(container: Container, source: Source) -> list[str]:
    """Return whether the file names the end token that the chat template closes an answer with."""
    turn = end_of_turn(source.tokenizer)
    if turn is None or turn in named_stops(container):
        return []
    token = source.tokenizer.convert_ids_to_tokens(turn)
    return [f"neither eos_token_id nor eot_token_id is {turn} ({token}), with which the chat template ends an answer"]


def end_of_turn(tokenizer: Any) -> int | None:
    """Return the id of the control token that the chat template writes behind an answer; None where it writes none."""
    if not tokenizer.chat_template:
        return None
    turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    tail = text.rpartition("answer")[2]
    control = {token.content: i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    places = sorted((tail.find(token), -len(token), i) for token, i in control.items() if token and token in tail)
    return places[0][2] if places else None


def self_contradictions(container: Container) -> list[str]:
    """Return what the values say that the tensors do not."""
    said: list[str] = []
    embedding, tokens = container.tensors.get("token_embd.weight"), container.get("tokenizer.ggml.tokens") or []
    if embedding is not None:
        if embedding.shape[0] != len(tokens):
            said.append(f"the embedding has {embedding.shape[0]} rows for {len(tokens)} tokens")
        if embedding.shape[1] != container.get("{arch}.embedding_length"):
            said.append(f"the embedding is {embedding.shape[1]} wide, not as embedding_length says")
    blocks = {name.split(".")[1] for name in container.tensors if name.startswith("blk.")}
    if len(blocks) != container.get("{arch}.block_count"):
        said.append(f"there are {len(blocks)} blocks, block_count is {container.get('{arch}.block_count')}")
    for key in ("bos", "eos", "eot", "eom", "unknown", "padding"):
        number = container.get(f"tokenizer.ggml.{key}_token_id")
        if number is not None and not 0 <= number < len(tokens):
            said.append(f"{key}_token_id is {number}, but there are {len(tokens)} tokens")
    for key in ("token_type", "scores"):
        listed = container.get(f"tokenizer.ggml.{key}")
        if listed is not None and len(listed) != len(tokens):
            said.append(f"tokenizer.ggml.{key} has {len(listed)} entries for {len(tokens)} tokens")
    return said + _wrong_file_type(container)


def _wrong_file_type(container: Container) -> list[str]:
    from gguf.constants import LlamaFileType

    said = container.get("general.file_type")
    sizes: Counter[str] = Counter()
    for name, stored in container.tensors.items():
        if len(stored.shape) > 1 and name not in ("token_embd.weight", "output.weight"):
            sizes[stored.type] += prod(stored.shape)
    quantized = any(kind not in ("F32", "F16", "BF16", "F64") for kind in sizes)
    if quantized and container.get("general.quantization_version") is None:
        return ["general.quantization_version is missing"]
    names = {kind.value: kind.name.removeprefix("MOSTLY_").removeprefix("ALL_") for kind in LlamaFileType}
    if said not in names:
        return [f"general.file_type is {said!r}, which is not known"]
    # Mixtures hold many types, and rows that do not divide into blocks fall back to others.
    most, name = sizes.most_common(1)[0][0] if sizes else "F32", names[said]
    if (name in _PURE and most != name) or (name not in _PURE and not quantized):
        return [f"general.file_type says {name}, most numbers are {most}"]
    return []


_PURE = ("F32", "F16", "BF16", "Q8_0", "Q5_0", "Q5_1", "Q4_0", "Q4_1")
"""File types that are named after the type of most of their numbers."""
