"""The training loop written out with the library's parts: python examples/loop.py [--model NAME]."""

import argparse
from pathlib import Path

import torch

from luthier.config.load import load_config
from luthier.data.pack import pack
from luthier.data.prepare import prepare
from luthier.models.device import place
from luthier.models.load import load_model, load_tokenizer, put_kernels, resolve
from luthier.models.policy import Policy
from luthier.objectives.sft import Sft
from luthier.workflows.build import make_preparer

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default="smollm2-135m")
rows = Path(__file__).with_name("data") / "instruments.jsonl"
config = load_config({"model_name_or_path": parser.parse_args().model, "dataset": str(rows), "lora_rank": 16}).config

files = resolve(config.model.model_name_or_path)
model = load_model(files, config.model, place(config.model))
preparer = make_preparer(load_tokenizer(files, config.model), config, model.config.model_type)
model = config.tuning.apply(model)
put_kernels(model, config.model)
policy, objective = Policy(model).train(), Sft()

units, report = prepare(config.data.dataset, preparer)
print(report.total())
optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=2e-4)
for start in range(0, len(units), 8):
    batch = pack([units[i] for i in range(start, min(start + 8, len(units)))])
    loss = objective(policy(batch), batch)  # a sum over the batch
    mean = loss.total / objective.count(batch)
    mean.backward()
    optimizer.step()
    optimizer.zero_grad()
    print(f"{batch.num_tokens} tokens computed, loss {mean.item():.4f}")
