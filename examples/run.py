"""Train from Python with the same settings as a YAML: python examples/run.py [--model NAME] [--output-dir FOLDER]."""

import argparse
from pathlib import Path

import luthier

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default="smollm2-135m")
parser.add_argument("--output-dir", default="runs/from-python")
options = parser.parse_args()

settings = {
    "model_name_or_path": options.model,
    "dataset": str(Path(__file__).with_name("data") / "instruments.jsonl"),
    "finetuning_type": "lora",
    "lora_rank": 16,
    "learning_rate": 2e-4,
    "num_train_epochs": 1,
    "output_dir": options.output_dir,
}
plan = luthier.run("estimate", settings)
print("\n".join(plan.lines()))
result = luthier.run("train", settings)
print(f"{result.run}: loss {result.train_loss:.3f} after {result.steps} steps")
folder = luthier.run("export", {"model_name_or_path": str(result.run), "export_dir": f"{result.run}/export/merged"})
print(f"merged model: {folder}")
