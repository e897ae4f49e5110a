"""Train on the tickets and show before and after on held-out rows: what `make demo` runs.

python examples/tickets/demo.py [--output-dir FOLDER]
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

from luthier.config.load import load_config
from luthier.core.log import setup
from luthier.runs.store import new_run_path
from luthier.training.metrics import peak_memory_bytes
from luthier.workflows.evaluate import Evaluation, evaluate
from luthier.workflows.train import train

SETTINGS = Path(__file__).with_name("tickets.yaml")
SHOWN = 3


def side_by_side(before: Evaluation, after: Evaluation) -> None:
    """Print some answers of both models beside the expected ones."""
    for old, new in list(zip(before.predictions, after.predictions, strict=True))[:SHOWN]:
        print(f"\n{old.question}\n  expected: {old.expected}\n  before:   {old.answer!r}\n  after:    {new.answer}")


def main() -> None:
    """Evaluate, train, evaluate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output-dir", type=Path)
    run = parser.parse_args().output_dir or new_run_path(Path("runs"), "tickets")
    setup()
    config = load_config(SETTINGS, [f"output_dir={run}"]).config
    began = time.monotonic()
    before = evaluate(config)
    train(config)
    after = evaluate(
        replace(config, model=replace(config.model, model_name_or_path=str(run))), out=run / "predictions.jsonl"
    )
    seconds = time.monotonic() - began
    side_by_side(before, after)
    print(f"\nbefore  {before.line()}\nafter   {after.line()}")
    print(f"\ntalk to it:  .venv/bin/luthier chat {run} --compare\nexport it:   .venv/bin/luthier export {run}")
    print(
        f"demo before={before.exact_match:.2f} after={after.exact_match:.2f} seconds={seconds:.0f} "
        f"peak_gb={peak_memory_bytes() / 1e9:.1f} run={run}"
    )


if __name__ == "__main__":
    main()
