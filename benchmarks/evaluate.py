"""Answers a second: `luthier evaluate` (generate) against transformers' generate, one by one and batched.

python benchmarks/evaluate.py --rows FILE.json [--count 200] [--rounds 4] [--tokens 48] [--threads N]
                              [--model smollm2-135m]

The rows are cut into as many parts as there are rounds; in each round every side answers the same part, in turns, in
float32 and greedily. Counted: tokenizing, answering, decoding and exact match; models are loaded before. Also: how many
answers are equal, and how large the gap of log-probability is where one is not.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import report
import torch
from decode import TIE, first_difference
from transformers import AutoModelForCausalLM, AutoTokenizer

from luthier.config.load import load_config
from luthier.core.log import setup
from luthier.core.types import Sampling
from luthier.engines.local import LocalEngine
from luthier.evaluation.answers import answer
from luthier.evaluation.kind import Task
from luthier.evaluation.kinds.generate import GenerateKind
from luthier.evaluation.rows import HeldOut
from luthier.evaluation.subject import Subject
from luthier.kernels.cpu import prepare_process, processor_name
from luthier.models.load import resolve
from luthier.workflows.build import load_speaker

BATCH = 32
TARGET = 4.0


def read_rows(file: Path, count: int) -> list[dict[str, str]]:
    """Return the first rows with an answer."""
    rows = [row for row in json.loads(file.read_text(encoding="utf-8")) if row.get("output")]
    return [{key: row.get(key, "") for key in ("instruction", "input", "output")} for row in rows[:count]]


def settings(args: argparse.Namespace, rows: list[dict[str, str]], folder: Path) -> Any:
    """Return the settings of an evaluation of these rows."""
    file = folder / "part.json"
    file.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    told = {"model_name_or_path": args.model, "eval_dataset": str(file), "eval_kinds": "generate", "dtype": "float32"}
    more = {
        "max_new_tokens": args.tokens,
        "predict_batch_size": BATCH,
        "threads": args.threads,
        "eval_metrics": "exact",
    }
    return load_config({**told, **more}).config


def by_luthier(subject: Subject, config: Any) -> tuple[float, list[str]]:
    """Return seconds and answers of one evaluation; nothing of the one before is left."""
    subject.memo.clear()
    engine = subject.engine
    assert isinstance(engine, LocalEngine)
    engine.forget()
    began = time.perf_counter()
    rows = HeldOut(config.data.eval_dataset, config, "answer")
    kind = GenerateKind(Task(config, rows))
    kind.measure(subject)
    return time.perf_counter() - began, [p.answer for p in answer(subject, rows, config.generate)]


def by_transformers(
    model: Any, tokenizer: Any, rows: list[dict[str, str]], tokens: int, batch: int
) -> tuple[float, list[str]]:
    """Return seconds and answers of generate on `batch` prompts at a time, in order."""
    began, texts = time.perf_counter(), []
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        asked = [[{"role": "user", "content": _question(row)}] for row in part]
        given = tokenizer.apply_chat_template(
            asked, add_generation_prompt=True, return_dict=True, return_tensors="pt", padding=True
        )
        with torch.inference_mode():
            ids = model.generate(**given, max_new_tokens=tokens, do_sample=False)
        texts += tokenizer.batch_decode(ids[:, given["input_ids"].shape[1] :], skip_special_tokens=True)
    sum(text.strip() == row["output"].strip() for text, row in zip(texts, rows, strict=True))
    return time.perf_counter() - began, texts


def _question(row: dict[str, str]) -> str:
    return f"{row['instruction']}\n{row['input']}" if row["input"] else row["instruction"]


def differences(subject: Subject, model: Any, config: Any, ours: list[str], theirs: list[str]) -> list[float]:
    """Return the gap of log-probability where an answer first differs from that of transformers, one by one."""
    examples = HeldOut(config.data.eval_dataset, config, "answer").examples
    gaps: list[float] = []
    for example, mine, peer in zip(examples, ours, theirs, strict=True):
        if mine == peer:
            continue
        prompt = subject.template.prompt(example.context)
        tokens = subject.engine.generate([prompt], Sampling(max_new_tokens=config.generate.max_new_tokens))[0][0].tokens
        with torch.inference_mode():
            ids = model.generate(torch.tensor([prompt]), max_new_tokens=config.generate.max_new_tokens, do_sample=False)
        gap = first_difference(model, prompt, tokens, tuple(ids[0, len(prompt) :].tolist()))
        gaps.append(0.0 if gap is None else gap)
    return gaps


def compare(args: argparse.Namespace, folder: Path) -> None:
    """Measure and print everything."""
    rows = read_rows(args.rows, args.count)
    size = -(-len(rows) // args.rounds)
    parts = [rows[start : start + size] for start in range(0, len(rows), size)]
    speaker = load_speaker(settings(args, rows, folder))
    subject = Subject(args.model, speaker.model, speaker.template, lambda: speaker.engine)
    files = resolve(args.model).base
    tokenizer = AutoTokenizer.from_pretrained(files, padding_side="left")
    peer = AutoModelForCausalLM.from_pretrained(files, dtype=torch.float32).eval()
    by_transformers(peer, tokenizer, rows[:2], 4, 1)
    seconds: dict[str, list[float]] = {"luthier": [], "one": [], "batched": []}
    equal, gaps = 0, list[float]()
    for part in parts:
        config = settings(args, part, folder)
        took, ours = by_luthier(subject, config)
        one, theirs = by_transformers(peer, tokenizer, part, args.tokens, 1)
        batched, _ = by_transformers(peer, tokenizer, part, args.tokens, BATCH)
        for name, value in (("luthier", took), ("one", one), ("batched", batched)):
            seconds[name].append(value)
        equal += sum(a == b for a, b in zip(ours, theirs, strict=True))
        gaps += differences(subject, peer, config, ours, theirs)
    rate = {name: [len(part) / s for part, s in zip(parts, took, strict=True)] for name, took in seconds.items()}
    facts: dict[str, Any] = {"rows": len(rows), "max_new_tokens": args.tokens, "processor": processor_name()}
    facts["threads"] = torch.get_num_threads()
    print(report.line("evaluate_answers_per_second_one_by_one", rate["luthier"], rate["one"], TARGET, **facts))
    print(report.line("evaluate_answers_per_second_batched", rate["luthier"], rate["batched"], 1.0, **facts))
    facts = {"rows": len(rows), "equal": equal, "ties": sum(gap <= TIE for gap in gaps)}
    print(json.dumps({"measure": "evaluate_greedy_agreement", **facts, "gaps": [round(gap, 6) for gap in gaps]}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--threads", type=int, default=0, help="0 uses every core")
    args = parser.parse_args()
    setup()
    prepare_process(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        compare(args, Path(folder))


if __name__ == "__main__":
    main()
