"""SFT, DPO and decoding of whole models on a GPU, beside the peers that are installed."""

from __future__ import annotations

import json
import random
import subprocess
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
import turns
from gpu_kernels import prepare

from luthier.core.types import Sampling
from luthier.engines.hf import HfEngine
from luthier.engines.local import LocalEngine
from luthier.models.load import resolve

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator, Mapping

HERE = Path(__file__).parent
Line = dict[str, Any]
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
GEOMETRY: Mapping[str, Mapping[str, int]] = {
    "random-1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
                  "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256, "max_position_embeddings": 8192},
    "random-tiny": {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
                    "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 320, "max_position_embeddings": 2048},
}  # fmt: skip
"""Llama models of random weights: speed does not depend on what they say."""


def _folder(name: str, inside: Path) -> Path:
    """Return the folder of a model, made here if it is a random one."""
    if name not in GEOMETRY:
        return Path(resolve(name).base)
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    ids = {"bos_token_id": 256, "eos_token_id": 258, "pad_token_id": 256}
    config = LlamaConfig(**GEOMETRY[name], **ids, tie_word_embeddings=True)  # pyright: ignore[reportArgumentType, reportCallIssue]
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(inside)
    _tokenizer().save_pretrained(inside)
    return inside


def _tokenizer() -> Any:
    """Every byte is a token, plus three control tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    backend.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    backend.add_special_tokens([AddedToken(t, special=True) for t in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = CHATML
    return tokenizer


def _words(draw: random.Random, least: int, most: int) -> str:
    letters = "etaoinshrdlu"
    count = draw.randint(least, most)
    return " ".join("".join(draw.choices(letters, k=draw.randint(2, 7))) for _ in range(count))


def _rows(stage: str, count: int) -> list[Mapping[str, str]]:
    draw = random.Random(0)
    sides = ("output",) if stage == "sft" else ("chosen", "rejected")
    return [
        {"instruction": _words(draw, 5, 40), **{side: _words(draw, 10, 90) for side in sides}} for _ in range(count)
    ]


def _peer_row(row: Mapping[str, str]) -> Mapping[str, Any]:
    roles = {"output": "completion", "chosen": "chosen", "rejected": "rejected"}
    answers = {roles[name]: [{"role": "assistant", "content": row[name]}] for name in roles if name in row}
    return {"prompt": [{"role": "user", "content": row["instruction"]}], **answers}


def _installed(python: Path, package: str) -> bool:
    code = f"import importlib.util as u, sys; sys.exit(u.find_spec({package!r}) is None)"
    return subprocess.run([str(python), "-c", code], check=False).returncode == 0


def _train(stage: str, name: str, options: argparse.Namespace) -> Iterator[Line]:
    """Yield rows a second and peak memory of luthier and of each installed peer, rounds in turns."""
    batch = 2 if options.small else {"sft": 8, "dpo": 4}[stage]
    settings = {"stage": stage, "learning_rate": 5e-6, "device": options.device}
    task = turns.Task(
        peer_script="gpu_peer.py", batch=batch, cutoff=1024, settings=settings, peer_row=_peer_row
    )  # fmt: skip
    peers = [peer for peer in ("trl", "unsloth") if _installed(options.peer_python, peer)]
    peers = [peer for peer in peers if peer == "trl" or (stage == "sft" and options.device == "cuda")]
    with tempfile.TemporaryDirectory() as root:
        model = _folder(name, Path(root, "model"))
        files = {form: Path(root, f"{form}.json") for form in ("rows", "peer_rows")}
        rows = _rows(stage, batch * options.steps)
        files["rows"].write_text(json.dumps(rows), encoding="utf-8")
        files["peer_rows"].write_text(json.dumps([_peer_row(row) for row in rows]), encoding="utf-8")
        for dtype in options.dtypes:
            sides: dict[str, Callable[[], turns.Side]] = {
                "luthier": lambda d=dtype: turns.run_luthier(task, model, files["rows"], d, options.steps),
                **{p: lambda p=p, d=dtype: _peer(p, task, model, files["peer_rows"], d, options) for p in peers},
            }
            facts = {"model": name, "dtype": dtype, "batch": batch, "steps": options.steps}
            yield from _compare(stage, sides, task, facts, rounds=1 if options.small else 3)


def _compare(
    stage: str, sides: dict[str, Callable[[], turns.Side]], task: turns.Task, facts: Line, *, rounds: int
) -> Iterator[Line]:
    found: dict[str, list[turns.Side]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side in [*found]:
            try:
                found[side].append(sides[side]())
            except (subprocess.CalledProcessError, OSError, ValueError) as error:
                yield {"measure": stage, "side": side, **facts, "error": str(error)[:500]}
                del found[side]
    for side, ran in found.items():
        speeds = [one.rows_per_second(task.batch) for one in ran]
        yield {
            "measure": stage, "side": side, **facts, "rows_per_second": round(median(speeds), 3),
            "spread": [round(min(speeds), 3), round(max(speeds), 3)],
            "peak_gb": round(max(one.peak_gb() for one in ran), 3), "losses": ran[0].losses,
        }  # fmt: skip


def _peer(peer: str, task: turns.Task, model: Path, rows: Path, dtype: str, options: argparse.Namespace) -> turns.Side:
    words = {"peer": peer, "stage": task.settings["stage"], "model": model, "rows": rows, "dtype": dtype,
             "device": options.device, "steps": options.steps, "batch": task.batch, "cutoff": task.cutoff}  # fmt: skip
    command = [str(options.peer_python), str(HERE / task.peer_script)]
    command += [part for name, value in words.items() for part in (f"--{name}", str(value))]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=folder)
    return turns.Side(**json.loads(done.stdout.splitlines()[-1]))


def _decode(name: str, options: argparse.Namespace) -> Iterator[Line]:
    """Yield greedy tokens a second of our decoder and of transformers' generate, in turns, prompts included."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    prepare(options)
    draw = random.Random(1)
    with tempfile.TemporaryDirectory() as root:
        model_folder = _folder(name, Path(root, "model"))
        tokenizer = AutoTokenizer.from_pretrained(model_folder)
        count, length = (4, 8) if options.small else (32, 128)
        prompts = [list(tokenizer(_words(draw, 20, 80))["input_ids"]) for _ in range(count)]
        for dtype in options.dtypes:
            model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=getattr(torch, dtype))
            model = model.to(options.device).eval()
            # An end token would let one side stop early.
            engines = {"luthier": LocalEngine(model, tokenizer), "transformers": HfEngine(model, tokenizer)}
            for engine in engines.values():
                engine.end_ids = [-1] if isinstance(engine, LocalEngine) else []
            for answers in (1, count):
                facts = {"model": name, "dtype": dtype, "answers": answers, "tokens": length}
                yield from _decode_sides(engines, prompts[:answers], Sampling(max_new_tokens=length), facts, options)


def _decode_sides(
    engines: dict[str, Any], prompts: list[list[int]], how: Sampling, facts: Line, options: argparse.Namespace
) -> Iterator[Line]:
    found: dict[str, list[float]] = {side: [] for side in engines}
    for number in range(2 if options.small else 4):
        for side, engine in engines.items():
            if isinstance(engine, LocalEngine):
                engine.forget()
            began = time.perf_counter()
            made = sum(len(answer[0].tokens) for answer in engine.generate(prompts, how))
            if options.device == "cuda":
                torch.cuda.synchronize()
            # The first round warms up.
            if number > 0:
                found[side].append(made / (time.perf_counter() - began))
    for side, speeds in found.items():
        spread = [round(min(speeds), 2), round(max(speeds), 2)]
        yield {
            "measure": "decode",
            "side": side,
            **facts,
            "tokens_per_second": round(median(speeds), 2),
            "spread": spread,
        }


MEASURES: Mapping[str, Callable[[str, argparse.Namespace], Iterator[Line]]] = {
    "sft": lambda name, options: _train("sft", name, options),
    "dpo": lambda name, options: _train("dpo", name, options),
    "decode": _decode,
}
