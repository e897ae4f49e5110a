"""GRPO as scripts write it: no vLLM, several rewards that read columns, prompts of limited length."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from datasets import Dataset
from safetensors import safe_open

pytest.importorskip("trl")

if TYPE_CHECKING:
    from pathlib import Path

ROWS = Dataset.from_list(
    [{"prompt": [{"role": "user", "content": f"what is {i} " + "and " * i}], "answer": str(i)} for i in range(4)]
)


def correct(prompts: Any, completions: Any, answer: list[str], **kwargs: Any) -> list[float]:
    return [2.0 if a in c[0]["content"] else 0.0 for c, a in zip(completions, answer, strict=True)]


def short(completions: Any, **kwargs: Any) -> list[float]:
    return [len(set(c[0]["content"])) / 10 for c in completions]


def test_grpo(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from luthier import FastLanguageModel, PatchFastRL, SamplingParams

    PatchFastRL("GRPO", FastLanguageModel)
    from trl import GRPOConfig, GRPOTrainer

    def printing(prompts: Any, completions: Any, **kwargs: Any) -> list[float]:
        print("question:", prompts[0][-1]["content"])
        return [0.1 * len(c[0]["content"]) for c in completions]

    model, tokenizer = FastLanguageModel.from_pretrained(
        model_name=str(tiny), max_seq_length=256, load_in_4bit=False, fast_inference=True, max_lora_rank=8,
        gpu_memory_utilization=0.6,
    )  # fmt: skip
    model = FastLanguageModel.get_peft_model(model, r=8, target_modules=["q_proj", "v_proj"], lora_alpha=8)
    params = SimpleNamespace(min_p=0.1, top_p=1.0, top_k=-1, seed=3407, stop=["x"], include_stop_str_in_output=True)
    args = GRPOConfig(
        vllm_sampling_params=params,
        use_vllm=True,
        learning_rate=5e-3,
        optim="adamw_8bit",
        warmup_ratio=0.1,
        logging_steps=1,
        per_device_train_batch_size=1,
        num_generations=4,
        max_prompt_length=20,
        max_completion_length=8,
        max_steps=2,
        importance_sampling_level="sequence",
        loss_type="dr_grpo",
        mask_truncated_completions=False,
        epsilon=0.2,
        epsilon_high=0.28,
        delta=1.5,
        beta=0.04,
        report_to="none",
        output_dir=str(tmp_path),
    )
    trainer = GRPOTrainer(
        model=model, processing_class=tokenizer, reward_funcs=[correct, short, printing], args=args, train_dataset=ROWS
    )  # fmt: skip
    assert (args.per_device_train_batch_size, args.use_vllm, args.min_p) == (4, False, 0.1)
    ids, *_ = trainer._tokenize_prompts([ROWS[3]["prompt"]])
    whole = tokenizer.apply_chat_template(ROWS[3]["prompt"], add_generation_prompt=True, return_dict=True)["input_ids"]
    assert ids == [whole[-20:]]
    assert len(whole) > 20
    assert list(model.peft_config) == ["default"], "the reference is the model with its adapter off"

    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    trainer.train()
    log = [line for line in trainer.state.log_history if "reward" in line]
    assert len(log) == 2
    assert {"rewards/correct/mean", "rewards/short/mean", "rewards/printing/mean", "kl"} <= set(log[0])
    assert log[0]["kl"] == pytest.approx(0.0, abs=1e-4)
    assert "question:" in capsys.readouterr().out
    changed = [name for name, p in model.named_parameters() if name in before and not torch.equal(p, before[name])]
    assert any("lora_B" in name for name in changed)

    # Before and after, as the last cells of such scripts compare.
    model.save_lora(str(tmp_path / "saved"))
    with safe_open(tmp_path / "saved" / "adapter_model.safetensors", framework="pt") as file:
        assert all(bool(file.get_tensor(name).any()) for name in file.keys())  # noqa: SIM118  not a mapping
    text = tokenizer.apply_chat_template(ROWS[1]["prompt"], tokenize=False, add_generation_prompt=True)
    how = SamplingParams(temperature=0.0, max_tokens=6)
    base = model.fast_generate([text], sampling_params=how, lora_request=None)[0].outputs[0]
    tuned = model.fast_generate(text, sampling_params=how, lora_request=model.load_lora(str(tmp_path / "saved")))
    assert isinstance(base.text, str)
    assert 0 < len(tuned[0].outputs[0].token_ids) <= 6
