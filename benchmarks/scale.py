"""Whether a token costs the same whatever stands around it, and how near a step comes to the speed of plain products.

python benchmarks/scale.py --rows FILE.json [--rounds 3]

1. Cost per token as sequences grow from 512 to 16,384 tokens, attention left out; a batch always has 16,384 tokens.
2. Cost per row of reading from the token cache and packing, from 1,000 to 100,000 rows.
3. Multiplications that a step needs, over its time and over the measured speed of products of the same sizes.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch

from luthier.config.load import load_config
from luthier.core.types import Segment
from luthier.data.loader import Layout, MapLoader
from luthier.data.pack import pack
from luthier.data.prepare import prepare
from luthier.data.store import StoreBuilder
from luthier.kernels.attention import FOREST_ATTENTION
from luthier.kernels.cpu import has_fast_bfloat16, prepare_process, processor_name
from luthier.models.device import place
from luthier.models.load import load_model, load_tokenizer, put_kernels, resolve
from luthier.models.policy import Policy
from luthier.models.recompute import recompute_layers
from luthier.objectives.sft import Sft
from luthier.workflows.build import make_preparer

if TYPE_CHECKING:
    from luthier.core.batch import PackedBatch

SHARE_TARGETS = {"float32": 0.85, "bfloat16": 0.55}
FLAT = 0.10


def load(dtype: str, rows: Path) -> tuple[Any, Policy, Any]:
    """Return settings, policy and tokenized rows."""
    settings = {"model_name_or_path": "smollm2-135m", "dataset": str(rows), "dtype": dtype, "cutoff_len": 1024}
    config = load_config({**settings, "finetuning_type": "lora", "lora_rank": 16, "lora_target": "all"}).config
    files, placement = resolve(config.model.model_name_or_path), place(config.model)
    model = load_model(files, config.model, placement)
    preparer = make_preparer(load_tokenizer(files, config.model), config, model.config.model_type)
    model = config.tuning.apply(model)
    put_kernels(model, config.model)
    return config, Policy(model).train(), prepare(config.data.dataset, preparer)[0]


def seconds_of(step: Any) -> float:
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def step_of(policy: Policy, batch: PackedBatch) -> None:
    """Forward and backward of one batch."""
    Sft()(policy(batch), batch).total.backward()
    policy.zero_grad(set_to_none=True)


def attention_seconds(policy: Policy, batch: PackedBatch) -> float:
    """Return what the attention of all layers takes, forward and back, and forward once more where it is recomputed."""
    config = policy.model.get_base_model().config  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    size = config.hidden_size // config.num_attention_heads
    heads, dtype = (config.num_attention_heads, config.num_key_value_heads), next(policy.parameters()).dtype
    q, k, v = (torch.randn(h, batch.num_tokens, size, dtype=dtype, requires_grad=True) for h in (*heads, heads[1]))
    call = FOREST_ATTENTION.choose("cpu")[1]

    def once() -> None:
        with torch.no_grad():
            call(q, k, v, batch.spans, size**-0.5)
        call(q, k, v, batch.spans, size**-0.5).float().sum().backward()

    return config.num_hidden_layers * median(seconds_of(once) for _ in range(3))


def context(policy: Policy, rounds: int) -> None:
    """Print the cost of a token in rows of growing length; every layer is recomputed, so that the longest fits."""
    recompute_layers(policy.model, 10**6)
    draw = torch.Generator().manual_seed(0)
    lengths = (512, 2048, 8192, 16384)
    batches = {}
    for length in lengths:
        rows = torch.randint(1000, 40_000, (lengths[-1] // length, length + 1), generator=draw).tolist()
        batches[length] = pack([[Segment(tokens=ids, weight=[0.0] + [1.0] * length)] for ids in rows])
    found: dict[int, list[float]] = {length: [] for length in lengths}
    for _ in range(rounds):
        for length, batch in batches.items():
            whole = seconds_of(lambda b=batch: step_of(policy, b))
            found[length].append((whole - attention_seconds(policy, batch)) / batch.num_tokens * 1e3)
    costs = {length: round(median(values), 4) for length, values in found.items()}
    spread = max(costs.values()) / min(costs.values()) - 1
    line = {"measure": "milliseconds_a_token_by_context", **{str(k): v for k, v in costs.items()}}
    print(json.dumps({**line, "spread": round(spread, 3), "target": FLAT}), flush=True)
    recompute_layers(policy.model, 0)


def rows_read(units: Any) -> None:
    """Print what a row costs between cache and packed batch as a data set grows."""
    costs: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for count in (1000, 10_000, 100_000):
            builder = StoreBuilder()
            for i in range(count):
                builder.add(units[i % len(units)], 0)
            file = Path(folder, f"{count}.safetensors")
            builder.build().save(file, {})
            store, _ = type(builder.build()).load(file)
            loader = MapLoader(store, torch.arange(count).numpy(), Layout(rows_per_batch=8), seed=0)
            plan = loader.plan(0)
            read = min(
                seconds_of(lambda s=store, p=plan: [pack([s[i] for i in window[0]]) for window in p[:100]])
                for _ in range(5)
            )
            costs[str(count)] = round(read / 800 * 1e6, 2)
    spread = max(costs.values()) / min(costs.values()) - 1
    line = {"measure": "microseconds_a_row_by_rows", **costs, "spread": round(spread, 3), "target": FLAT}
    print(json.dumps(line), flush=True)


def product_speed(dtype: torch.dtype) -> float:
    """Return FLOP/s of products of SmolLM2's sizes, the fastest shape."""
    best = 0.0
    for inputs, outputs in ((576, 1536), (1536, 576), (576, 576)):
        x, w = torch.randn(1500, inputs).to(dtype), torch.randn(outputs, inputs).to(dtype)
        for _ in range(3):
            torch.mm(x, w.t())
        taken = min(seconds_of(lambda a=x, b=w: [torch.mm(a, b.t()) for _ in range(3)]) for _ in range(8))
        best = max(best, 6 * 1500 * inputs * outputs / taken)
    return best


def multiplications(policy: Policy, batch: PackedBatch) -> float:
    """Return the FLOPs that a LoRA step needs: causal attention counts half of the square, recomputing nothing."""
    plain: Any = policy.model.get_base_model()  # pyright: ignore[reportCallIssue]
    c, head = plain.config, plain.get_output_embeddings().weight
    linear = sum(p.numel() for n, p in plain.named_parameters() if p.ndim == 2 and "lora" not in n and "embed" not in n)
    linear -= head.numel() if not c.tie_word_embeddings else 0
    lora = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    pairs = 0.0
    for index, (start, end) in enumerate(zip(batch.spans.start, batch.spans.end, strict=True)):
        above = sum(batch.spans.end[a] - batch.spans.start[a] for a in batch.spans.ancestors(index))
        pairs += (end - start) * above + (end - start) * (end - start + 1) / 2
    attention = 3.5 * 4 * pairs * c.hidden_size * c.num_hidden_layers
    return batch.num_tokens * (4 * linear + 6 * lora) + len(batch.rows) * 4 * head.numel() + attention


def share(dtype: str, policy: Policy, units: Any, rounds: int) -> None:
    """Print the share of the measured product speed that a step reaches."""
    batches = [pack([units[i] for i in range(s, s + 8)]) for s in (0, 8, 16, 24)]
    step_of(policy, batches[0])
    shares: list[float] = []
    for _ in range(rounds):
        for batch in batches:
            before = product_speed(getattr(torch, dtype))
            taken = seconds_of(lambda b=batch: step_of(policy, b))
            speed = max(before, product_speed(getattr(torch, dtype)))
            shares.append(multiplications(policy, batch) / taken / speed)
    line = {"measure": f"share_of_product_speed_{dtype}", "ratio": round(median(shares), 3)}
    spread = [round(min(shares), 3), round(max(shares), 3)]
    print(json.dumps({**line, "target": SHARE_TARGETS[dtype], "spread": spread}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, required=True, help="JSON list of alpaca rows")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=["share", "rows", "context"])
    options = parser.parse_args()
    prepare_process()
    print(json.dumps({"processor": processor_name()}), flush=True)
    dtypes = ["float32", "bfloat16"] if has_fast_bfloat16() else ["float32"]
    for dtype in dtypes:
        _, policy, units = load(dtype, options.rows.resolve())
        last = dtype == dtypes[-1]
        parts = {
            "share": lambda p=policy, u=units, d=dtype: share(d, p, u, options.rounds),
            "rows": lambda u=units, is_last=last: rows_read(u) if is_last else None,
            "context": lambda p=policy, is_last=last: context(p, options.rounds) if is_last else None,
        }
        for name, measure in parts.items():
            if options.only in (None, name):
                measure()


if __name__ == "__main__":
    main()
