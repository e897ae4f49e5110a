"""The peer side of benchmarks/gpu.py: SFT or DPO by TRL, or SFT by unsloth; runs wherever those are installed.

python gpu_peer.py --peer trl --stage sft --model FOLDER --rows FILE --dtype bfloat16 --steps 8 --batch 8 --cutoff 1024
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from typing import Any


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", choices=["trl", "unsloth"], required=True)
    parser.add_argument("--stage", choices=["sft", "dpo"], required=True)
    for name in ("--model", "--rows", "--dtype", "--device"):
        parser.add_argument(name, required=True)
    for name in ("--steps", "--batch", "--cutoff"):
        parser.add_argument(name, type=int, required=True)
    return parser.parse_args()


def load(options: argparse.Namespace) -> tuple[Any, Any, Any]:
    """Return model, tokenizer and LoRA settings for the trainer; unsloth puts its adapter in itself."""
    import torch

    rank = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0}
    dtype = getattr(torch, options.dtype)
    if options.peer == "unsloth":
        from unsloth import FastLanguageModel  # pyright: ignore[reportMissingImports]

        model, tokenizer = FastLanguageModel.from_pretrained(
            options.model, max_seq_length=options.cutoff, dtype=dtype, load_in_4bit=False
        )
        return FastLanguageModel.get_peft_model(model, **rank), tokenizer, None
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype)
    lora = LoraConfig(**rank, target_modules="all-linear", task_type="CAUSAL_LM")
    return model, AutoTokenizer.from_pretrained(options.model), lora


def main() -> None:
    options = arguments()
    model, tokenizer, lora = load(options)
    import torch
    import trl  # pyright: ignore[reportMissingImports]
    from datasets import Dataset
    from peer import in_order
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        """Seconds of every optimizer step, the device waited for."""

        def __init__(self) -> None:
            self.seconds: list[float] = []
            self.losses: list[float] = []
            self._began = 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self._began = now(options.device)

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.seconds.append(now(options.device) - self._began)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "loss" in logs:
                self.losses.append(logs["loss"])

    kinds = {"sft": (trl.SFTTrainer, trl.SFTConfig), "dpo": (trl.DPOTrainer, trl.DPOConfig)}
    trainer, config = kinds[options.stage]
    own = {"completion_only_loss": True, "packing": False} if options.stage == "sft" else {"beta": 0.1}
    settings = config(
        output_dir="gpu-bench-peer", per_device_train_batch_size=options.batch, max_steps=options.steps,
        learning_rate=5e-6, lr_scheduler_type="constant", logging_steps=1, save_strategy="no", report_to=[],
        use_cpu=options.device == "cpu", bf16=options.dtype == "bfloat16", gradient_checkpointing=False,
        max_length=options.cutoff, disable_tqdm=True, **own,
    )  # fmt: skip
    clock = Clock()
    with open(options.rows, encoding="utf-8") as file:
        rows = json.load(file)
    more = {"peft_config": lora} if lora is not None else {}
    in_order(trainer)(
        model=model, args=settings, train_dataset=Dataset.from_list(rows), processing_class=tokenizer,
        callbacks=[clock], **more,
    ).train()  # fmt: skip
    on_gpu = options.device == "cuda"
    peak = torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": clock.seconds, "losses": clock.losses, "peak_bytes": peak}))


def now(device: str) -> float:
    """Return the time, with nothing on its way."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main()
