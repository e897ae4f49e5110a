"""Write docs/llamafactory.md: what becomes of each of LLaMA-Factory's keys, from the tables that the loader reads."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

from luthier.cli.arguments import PAGE_ADDRESS, SERVING, WORDS
from luthier.config import compat
from luthier.config.load import SHELVES, adapter, homes
from luthier.config.schema import SECTIONS

TARGET = Path(__file__).with_name("llamafactory.md")
KEYS = Path(__file__).with_name("llamafactory_keys.yaml")
HEAD = """# LLaMA-Factory's files and commands

Made by `make docs` from the tables that the loader reads. A flat file of that tool runs as it is:

    luthier train llama3_lora_sft.yaml learning_rate=1e-5
    luthier train --model_name_or_path smollm2-135m --stage sft --dataset rows.jsonl

`key=value` and `--key value` may follow a file or stand for one; JSON is read like YAML. Every key below is honoured,
left out with a line that says why that changes nothing, or refused with the reason (exit code 2). A key that is not
below, and that this package does not have, is an error that names the nearest one. `luthier convert FILE --out NEW` writes the nested form of this package,
with where each value came from and what was left out; `luthier validate FILE` shows every value. A file of Axolotl, TRL
or Unsloth is refused with the nearest keys.
"""
DIFFERENCES = """
## What is different on purpose

| | there | here |
|---|---|---|
| defaults of answers | `do_sample: true`, `temperature` 0.95, `top_p` 0.7, `top_k` 50, `max_new_tokens` 1024 | the most probable token, `max_new_tokens` 512: two runs of `predict` agree. `do_sample: true` brings the values of that tool for what is not named; `do_sample: false` is greedy whatever `temperature` says |
| `packing` | rows see each other unless `neat_packing` | they never do |
| `bf16: true` | bfloat16 | bfloat16 where the device multiplies it fast, else float32, which is said |
| `gradient_checkpointing` | on | off; `memory_budget: 6GB` recomputes as few layers as fit |
| `learning_rate` | 5e-5 | where none is named, the usual one of method and objective, which is said |
| `trust_remote_code: true` | runs code of the model folder | does nothing for models that transformers knows; for others `allow_remote_code: true` |
| `do_train` missing | nothing is trained | `luthier train` trains, unless `do_eval` or `do_predict` asks for something else |
| `output_dir` that holds a run | written over with `overwrite_output_dir` | moved aside with it |
| rows that cannot be trained on | skipped with a warning | refused by name, or skipped and counted with `bad_rows: skip` |
| `ppo` | answers drawn by `temperature`, `top_p`, `top_k` | one answer to a prompt and `max_new_tokens` as there; drawn by `rollout_temperature` (1) and `rollout_top_p` (1), because what is learned from is the whole distribution |
| `pref_bco_weight` | the threshold is the mean reward since the run began | that of the optimizer step, so a resumed run needs no memory of it |
| `galore_layerwise`, `apollo_layerwise` | each layer is updated inside the backward pass | the same update at the step, after `max_grad_norm` |
| `deepspeed`, `fsdp` | spread the memory of a run over processes | left out: every process holds the whole model unless accelerate is told otherwise |
| `export` | unverified | read back, run and compared; `export_verify: false` leaves that out |

## Files that scripts read afterwards

Written for every run, whatever its settings look like, beside `events.jsonl`, from which they are made: after a resume
there is no gap and no line twice.

| file | |
|---|---|
| `trainer_log.jsonl` | a line for each log step: `current_steps`, `total_steps`, `loss` or `eval_loss`, `reward`, `accuracy`, `lr`, `epoch`, `percentage`, `elapsed_time`, `remaining_time`, `throughput` (tokens a second), `total_tokens` |
| `train_results.json`, `eval_results.json`, `predict_results.json`, `all_results.json` | `train_loss` (the mean over all steps), `train_runtime`, `eval_loss`, `predict_bleu-4`, `predict_rouge-1`, `predict_rouge-2`, `predict_rouge-l` (0 to 100; `pip install 'luthier[evaluate]'`), `predict_loss`, `predict_exact_match`, `predict_runtime` and others; `total_flos` is not counted |
| `trainer_state.json` | as transformers' `TrainerState`, `log_history` included; also in each `checkpoint-N/` |
| `generated_predictions.jsonl` | of `do_predict`: `prompt` with its template, `predict`, `label` |
| `training_loss.png`, `training_eval_loss.png`, `training_rewards_accuracies.png` | with `plot_loss`, which is on |
| `training_args.yaml` | what is not the default, in the keys of that tool; `luthier train` reads it |
| `adapter_model.safetensors` or `model.safetensors`, tokenizer | the result, at the root; `checkpoint-N/` have the same layout, for peft and transformers |

`training_args.bin`, `optimizer.pt` and `scheduler.pt` are pickles and are not written. `do_predict` writes into
`output_dir`; without `do_train` that need not be a run.
"""
NOTES: dict[str, str] = {
    "adapter_name_or_path": "several: merged in order, the last one is trained on",
    "stage": "pt, sft, rm, ppo, dpo and kto, and more: grpo, orpo, simpo",
    "finetuning_type": "lora, full, freeze and oft, and more",
    "report_to": "none: no tracker, all: tensorboard",
    "export_size": "a fraction is allowed",
}
"""Key -> what its declaration does not say."""


def becomes(key: str) -> tuple[str, str, str]:
    """Return what becomes of a key: honoured, in part, left out, refused or unknown; the setting here; its meaning."""
    if key in compat.ONLY:
        values, reason = compat.ONLY[key]
        return "in part", "", f"only {' or '.join(json.dumps(value) for value in values)}: {reason}"
    if key in homes():
        return "honoured", f"{homes()[key]}.{key}", _meaning(f"{homes()[key]}.{key}")
    if key in compat.RENAMED:
        dotted = compat.RENAMED[key]
        return "honoured", dotted, "" if dotted in compat.WORDS else _meaning(dotted)
    if key in compat.SWITCHES:
        dotted, value = compat.SWITCHES[key]
        return "honoured", f"{dotted}: {value}", ""
    for word, table in (("left out", compat.IGNORED), ("refused", compat.REFUSED)):
        if key in table:
            return word, "", table[key]
    return "unknown", "", ""


def _meaning(dotted: str) -> str:
    """Return the help of a setting, and its default here."""
    section, _, name = dotted.partition(".")
    classes = [SECTIONS[section]] if section in SECTIONS else [cls for _, cls in SHELVES[section][0].items()]
    for cls in classes:
        facts: dict[str, Any] = adapter(cls).json_schema().get("properties", {}).get(name, {})
        if facts:
            text = " ".join(str(facts.get("description", "")).split())
            default = f" (default {json.dumps(facts['default'])})" if facts.get("default") not in (None, "", []) else ""
            return text + default
    return ""


def tables() -> list[str]:
    """Return a table for each group of keys."""
    lines: list[str] = []
    for group, keys in yaml.safe_load(KEYS.read_text(encoding="utf-8")).items():
        lines += [f"\n### {group.capitalize()}\n", "| key | | here | meaning |", "|---|---|---|---|"]
        for key in keys:
            word, dotted, text = becomes(key)
            text = "; ".join(part for part in (text.rstrip("."), NOTES.get(key, "")) if part)
            cell = f"`{dotted}`" if dotted else ""
            lines.append(f"| `{key}` | {word} | {cell} | {text.replace('|', 'or')} |")
    return lines


def commands() -> list[str]:
    """Return the table of commands."""
    lines = ["\n## Commands\n", "| there | here |", "|---|---|"]
    lines += [f"| `{word}` | `luthier {word}` |" for word in ("train", "chat", "export", "version")]
    lines += [f"| `{there}` | `luthier {here}`; `luthier {there}` is the same |" for there, here in WORDS.items()]
    names = ", ".join(f"`{name}`" for name in (*SERVING, "API_KEY"))
    api = f"`luthier api` reads {names}, and listens on 127.0.0.1 where they name no address."
    pages = f"`luthier webui` and `luthier webchat` read {', '.join(f'`{name}`' for name in PAGE_ADDRESS)}."
    return [*lines, "", f"{api} {pages} A model that `webchat` is given is chosen on the page."]


def main() -> None:
    """Write the page, or with --check fail when it is not current."""
    text = "\n".join([HEAD.rstrip(), *commands(), DIFFERENCES.rstrip(), "\n## Keys", *tables()]) + "\n"
    if "--check" in sys.argv:
        is_current = TARGET.is_file() and TARGET.read_text(encoding="utf-8") == text
        sys.exit(0 if is_current else "docs/llamafactory.md is old: run make docs")
    TARGET.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
