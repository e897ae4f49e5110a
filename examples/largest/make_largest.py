"""Write the task of the group objectives: which of five numbers is the largest?

The rows are synthetic. sft.jsonl teaches the form of an answer and nothing else: its answers are numbers of the list
drawn by chance, right one time in five. prompts.jsonl and heldout.jsonl hold questions with the right answer in the
column "answer", which only the reward reads; no list stands in two files.

    python make_largest.py [--out FOLDER]
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

ASK = "Which of these numbers is the largest: {numbers}? Answer with the number only."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    folder = parser.parse_args().out
    draw = random.Random(5)
    lists: set[tuple[int, ...]] = set()
    while len(lists) < 960:
        lists.add(tuple(draw.sample(range(10, 100), 5)))
    rows = [
        (each, ASK.format(numbers=", ".join(map(str, each)))) for each in sorted(lists, key=lambda _: draw.random())
    ]
    files: dict[str, list[dict[str, Any]]] = {
        "sft": [{"instruction": ask, "output": str(draw.choice(each))} for each, ask in rows[:192]],
        "prompts": [{"prompt": ask, "answer": str(max(each))} for each, ask in rows[192:832]],
        "heldout": [{"prompt": ask, "answer": str(max(each))} for each, ask in rows[832:]],
    }
    for name, written in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in written), encoding="utf-8")


if __name__ == "__main__":
    main()
