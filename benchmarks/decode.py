"""Tokens per second of luthier's decoder and of transformers' generate, in turns, greedy, on the same prompts.

python benchmarks/decode.py --rows FILE.json [--rounds 3] [--tokens 128] [--model smollm2-135m]

Counted: every token up to and including the end of an answer, over the whole time, prompts included. Also: how often
greedy answers agree token by token over 50 prompts, and how many prompt tokens a group of 16 answers computes.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import median
from typing import Any

import report
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from luthier.core.log import setup
from luthier.core.types import Sampling
from luthier.engines.hf import HfEngine
from luthier.engines.local import LocalEngine
from luthier.kernels.cpu import has_fast_bfloat16, prepare_process, processor_name
from luthier.models.load import resolve

TARGETS = {1: (2.0, 5.0), 32: (2.5, 4.0)}
"""Answers at once -> asked ratio with the same dtype, and best against best."""
TIE = 1e-4


def read_prompts(tokenizer: Any, rows: Path, count: int) -> list[list[int]]:
    """Return the first `count` rows as chat prompts."""
    texts = [f"{row['instruction']}\n{row.get('input', '')}".strip() for row in json.loads(rows.read_text())[:count]]
    return [
        list(tokenizer.apply_chat_template([{"role": "user", "content": t}], add_generation_prompt=True)["input_ids"])
        for t in texts
    ]


def speed(engine: Any, prompts: list[list[int]], how: Sampling) -> tuple[float, list[tuple[int, ...]]]:
    """Return tokens per second and the answers."""
    began = time.perf_counter()
    answers = [one[0].tokens for one in engine.generate(prompts, how)]
    return sum(map(len, answers)) / (time.perf_counter() - began), answers


def first_difference(model: Any, prompt: list[int], ours: tuple[int, ...], theirs: tuple[int, ...]) -> float | None:
    """Return the gap of log-probability, under the model, at the first token that differs; None if none does."""
    place = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), None)
    if place is None:
        return None if len(ours) == len(theirs) else float("inf")
    with torch.inference_mode():
        logits = model(torch.tensor([[*prompt, *theirs[:place]]]), use_cache=False).logits[0, -1].float()
    logp = torch.log_softmax(logits, -1)
    return float((logp[theirs[place]] - logp[ours[place]]).abs())


def agreement(name: str, ours: Any, theirs: Any, prompts: list[list[int]], how: Sampling) -> None:
    """Print how many answers agree, and by how much the others miss."""
    mine, peer = (engine.generate(prompts, how) for engine in (ours, theirs))
    gaps = [
        first_difference(theirs.model, p, a[0].tokens, b[0].tokens) for p, a, b in zip(prompts, mine, peer, strict=True)
    ]
    differ = [gap for gap in gaps if gap is not None]
    facts = {"prompts": len(prompts), "equal": gaps.count(None), "ties": sum(gap <= TIE for gap in differ)}
    print(json.dumps({"measure": f"greedy_agreement_{name}", **facts, "gaps": [round(g, 6) for g in differ]}))


def compare(args: argparse.Namespace) -> None:
    """Measure and print everything."""
    folder = resolve(args.model).base
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompts = read_prompts(tokenizer, args.rows, 50)
    how = Sampling(max_new_tokens=args.tokens)
    dtypes = [torch.float32, torch.bfloat16] if has_fast_bfloat16() else [torch.float32]
    models = {
        str(dtype).removeprefix("torch."): AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        for dtype in dtypes
    }
    peers = {f"generate {name}": HfEngine(model, tokenizer) for name, model in models.items()}
    ours = {f"local {name}": LocalEngine(model, tokenizer) for name, model in models.items()}
    ours["local int8"] = LocalEngine(models["float32"], tokenizer, kind="int8")
    sides: dict[str, Any] = peers | ours
    for count, (same, best) in TARGETS.items():
        chosen = prompts[:count]
        found: dict[str, list[float]] = {name: [] for name in sides}
        for engine in sides.values():
            speed(engine, chosen[:2], Sampling(max_new_tokens=4))
        for _ in range(args.rounds):
            for name, engine in sides.items():
                if isinstance(engine, LocalEngine):
                    engine.forget()
                found[name].append(speed(engine, chosen, how)[0])
        facts = {"answers": count, "processor": processor_name()}
        for name in models:
            pair = found[f"local {name}"], found[f"generate {name}"]
            print(report.line(f"decode_tokens_per_second_{count}_{name}", *pair, same, **facts), flush=True)
        mine, theirs = (max(side, key=lambda name: median(found[name])) for side in (ours, peers))
        line = report.line(
            f"decode_tokens_per_second_{count}_best", found[mine], found[theirs], best, **facts, sides=[mine, theirs]
        )
        print(line, flush=True)
    for name in ("float32", "int8"):
        agreement(name, ours[f"local {name}"], peers["generate float32"], prompts, Sampling(max_new_tokens=64))
    group(ours["local float32"], tokenizer, args.rows)


def group(engine: LocalEngine, tokenizer: Any, rows: Path) -> None:
    """Print how many prompt tokens 16 answers to one prompt of 300 tokens compute."""
    text = " ".join(row["output"] for row in json.loads(rows.read_text())[:40])
    prompt = tokenizer(text)["input_ids"][:300]
    engine.forget()
    before = engine.counts["prompt_tokens"]
    engine.generate([prompt], Sampling(max_new_tokens=8, temperature=1.0, sampling_seed=0), n=16)
    computed = (engine.counts["prompt_tokens"] - before) / len(prompt)
    print(json.dumps({"measure": "group_prompt_computed_times", "luthier": computed, "target": 1}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=128)
    setup()
    prepare_process()
    compare(parser.parse_args())


if __name__ == "__main__":
    main()
