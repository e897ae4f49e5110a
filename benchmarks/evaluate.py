"""200 generated answers: `luthier evaluate` against transformers' generate, one prompt at a time and in batches.

python benchmarks/evaluate.py [--rows 200] [--rounds 2]

All sides answer the same tickets greedily, at most 48 new tokens, with the model that is loaded already. The
first comparison is in float32 and counts equal answers; then each side takes the number format that is fastest for it.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from report import line
from transformers import AutoModelForCausalLM

from luthier.config.load import load_config
from luthier.core.types import Sampling
from luthier.evaluation.answers import answer
from luthier.kernels.cpu import has_fast_bfloat16, prepare_process, processor_name
from luthier.models.load import resolve
from luthier.workflows.evaluate import loaded
from luthier.workflows.held_out import held_out_rows

TARGET = 4.0
NEW = 48
BATCH = 32
TICKETS = Path(__file__).parents[1] / "examples" / "tickets" / "train.jsonl"


def one_by_one(model: Any, tokenizer: Any, prompts: list[list[int]]) -> list[str]:
    """The loop that everybody writes."""
    texts = []
    for prompt in prompts:
        with torch.inference_mode():
            out = model.generate(torch.tensor([prompt]), max_new_tokens=NEW, do_sample=False)
        texts.append(tokenizer.decode(out[0, len(prompt) :], skip_special_tokens=True))
    return texts


def batched(model: Any, tokenizer: Any, prompts: list[list[int]]) -> list[str]:
    """The same in batches, padded on the left, prompts of like length together."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    texts = [""] * len(prompts)
    for start in range(0, len(order), BATCH):
        chosen = order[start : start + BATCH]
        width = max(len(prompts[i]) for i in chosen)
        pad = tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (width - len(prompts[i])) + list(prompts[i]) for i in chosen])
        mask = torch.tensor([[0] * (width - len(prompts[i])) + [1] * len(prompts[i]) for i in chosen])
        with torch.inference_mode():
            out = model.generate(ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False)
        for i, row in zip(chosen, out[:, width:], strict=True):
            texts[i] = tokenizer.decode(row, skip_special_tokens=True)
    return texts


def compare(dtype: str, rows: int, rounds: int) -> None:
    """Answer by turns and print the ratios."""
    config = load_config({
        "model_name_or_path": "smollm2-135m", "eval_dataset": str(TICKETS), "dtype": dtype, "predict_samples": rows,
        "predict_batch_size": BATCH,
    }).config  # fmt: skip
    held_out, how = held_out_rows(config), Sampling(max_new_tokens=NEW)
    assert held_out is not None
    theirs: Any = AutoModelForCausalLM.from_pretrained(resolve("smollm2-135m").base, dtype=getattr(torch, dtype)).eval()
    theirs.generation_config.pad_token_id = theirs.generation_config.eos_token_id
    seconds: dict[str, list[float]] = {"ours": [], "loop": [], "batched": []}
    texts: dict[str, list[str]] = {}
    with loaded(config, "smollm2-135m") as subject:
        prompts = [list(subject.template.prompt(e.context, e.tools)) for e in held_out.with_answers]
        _ = subject.engine

        def ours() -> list[str]:
            subject.memo.clear()
            subject.engine.forget()  # pyright: ignore[reportAttributeAccessIssue]
            return [p.answer for p in answer(subject, held_out, how)]

        sides = {
            "ours": ours,
            "loop": lambda: one_by_one(theirs, subject.tokenizer, prompts),
            "batched": lambda: batched(theirs, subject.tokenizer, prompts),
        }
        for _round in range(rounds):
            for name, side in sides.items():
                start = time.monotonic()
                texts[name] = side()
                seconds[name].append(time.monotonic() - start)
    equal = sum(a == b for a, b in zip(texts["ours"], texts["loop"], strict=True))
    rates = {name: [rows / each for each in times] for name, times in seconds.items()}
    facts = {"dtype": dtype, "rows": rows, "equal_answers": equal, "processor": processor_name()}
    print(line("answers/s against one by one", rates["ours"], rates["loop"], TARGET, **facts), flush=True)
    print(line("answers/s against batches of 32", rates["ours"], rates["batched"], 1.0, **facts), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=2)
    asked = parser.parse_args()
    prepare_process()
    for dtype in ("float32", *(["bfloat16"] if has_fast_bfloat16() else [])):
        compare(dtype, asked.rows, asked.rounds)
    print(json.dumps({"done": True}))


if __name__ == "__main__":
    main()
