"""What an export takes: seconds with verification, memory of a merged one, and how near GGUF files are to the model.

python benchmarks/export.py [--forms f16,q8_0,q6_k,q5_k_m,q4_k_m]

Seconds: SmolLM2-135M with a LoRA adapter, merged and Q8_0, verified, in one process each. Memory: a random model of
1.3 GB in bfloat16 with files of 256 MB and an adapter of rank 16; peak above what the process takes after its imports,
against 1.3 times the largest file plus the adapter.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from luthier.kernels.cpu import processor_name
from luthier.models.load import resolve

SECONDS_TARGET, MEMORY_TARGET = 120, 1.3
SHARD_GB = 0.256
WATCHED = """
import sys
import luthier.workflows.export, peft, transformers.models.llama.modeling_llama
from luthier.cli import main
peak = lambda: next(int(l.split()[1]) * 1024 for l in open("/proc/self/status") if l.startswith("VmHWM"))
before = peak()
try:
    main()
finally:
    print("PEAK", peak() - before, before, file=sys.stderr)
"""


def adapter(base: str, folder: Path, *, dtype: torch.dtype, rank: int = 16) -> None:
    """Write a LoRA adapter that does something."""
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    tuned = get_peft_model(model, LoraConfig(r=rank, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.01)
    tuned.save_pretrained(str(folder))
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)


def large_model(folder: Path) -> None:
    """Write a random model of 1.3 GB in bfloat16."""
    config = LlamaConfig(
        hidden_size=1536, intermediate_size=6144, num_hidden_layers=16, num_attention_heads=12,
        num_key_value_heads=4, vocab_size=49152, tie_word_embeddings=True, dtype=torch.bfloat16,
    )  # fmt: skip
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size=f"{SHARD_GB * 1000:.0f}MB")
    AutoTokenizer.from_pretrained(resolve("smollm2-135m").base).save_pretrained(folder)


def export(model: Path, out: Path, *options: str) -> tuple[float, list[int], dict[str, Any]]:
    """Run an export; return its seconds, its peak above and at the imports in bytes, and what it says."""
    start = time.monotonic()
    command = [sys.executable, "-c", WATCHED, "export", str(model), "--out", str(out), "--json", *options]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(options)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    peak = next(line for line in done.stderr.splitlines() if line.startswith("PEAK"))
    return time.monotonic() - start, [int(x) for x in peak.split()[1:]], json.loads(done.stdout.splitlines()[-1])


def seconds(folder: Path, forms: str) -> None:
    """Time merged and Q8_0 exports of the packaged model, then print how near each form is."""
    adapter(resolve("smollm2-135m").base, folder / "small", dtype=torch.float32)
    took = {}
    for form, options in (("merged", ()), ("gguf", ("--quantize", "q8_0"))):
        took[form], _, said = export(folder / "small", folder / f"small-{form}", "--format", form, *options)
        took[f"{form} checks"] = sum(len(report["checks"]) for report in said["exports"][0]["verify"])
    total = took["merged"] + took["gguf"]
    print(json.dumps({"measure": "merged + q8_0 + verification, seconds", "luthier": round(total, 1),
                      "target": SECONDS_TARGET, "parts": took, "processor": processor_name()}), flush=True)  # fmt: skip
    _, _, said = export(folder / "small", folder / "small-forms", "--format", "gguf", "--quantize", forms)
    for report in said["exports"][0]["verify"]:
        numbers = {check["name"]: check["numbers"] for check in report["checks"] if check["numbers"]}
        print(json.dumps({"measure": "distance", "file": report["subject"], **numbers}), flush=True)


def memory(folder: Path) -> None:
    """Print the peak memory of a merged export against the largest file and the adapter."""
    large_model(folder / "large")
    adapter(str(folder / "large"), folder / "tuned", dtype=torch.bfloat16)
    options = ("--format", "merged", "--no-verify", f"export_size={SHARD_GB}")
    took, (peak, imports), _ = export(folder / "tuned", folder / "merged", *options)
    files = [file.stat().st_size for file in (folder / "merged").glob("*.safetensors")]
    own = (folder / "tuned" / "adapter_model.safetensors").stat().st_size
    print(json.dumps({
        "measure": "peak of a merged export above imports, times the largest file, adapter taken off",
        "luthier": round((peak - own) / max(files), 3), "target": MEMORY_TARGET, "peak_mb": peak // 10**6,
        "imports_mb": imports // 10**6, "largest_file_mb": max(files) // 10**6, "model_mb": sum(files) // 10**6,
        "adapter_mb": own // 10**6, "seconds": round(took, 1), "processor": processor_name(),
    }), flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--forms", default="f16,q8_0,q6_k,q5_k_m,q4_k_m")
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="export-"))
    try:
        memory(folder)
        seconds(folder, asked.forms)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
